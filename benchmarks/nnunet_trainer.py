"""nnU-Net's own trainer, for a given time of training.

benchmarks/rival_nnunet.py puts this file into the environment of nnU-Net, where it runs.
RIVAL_SECONDS is the time of training, RIVAL_SEED the seed.

The first iterations are timed. That gives the number of epochs, by which nnU-Net lowers the rate,
and before each epoch the number of its iterations, so that both end together. All else is nnU-Net's
own, but what would take time from the training: no online validation (with fold "all" it would see
the training cases), no checkpoint of the best epoch, no picture of the progress.
"""

import json
import os
import random
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)

TIMED_FIRST = 2
"""Iterations before the first epoch. The last one tells the speed, as the first is slow."""
SECONDS_OF_EPOCH = 30
"""About; a kill costs no more than that. A short training has shorter ones, an hour 120 epochs."""
LEAST_EPOCHS, MOST_EPOCHS = 20, 1000


def epochs_within(seconds: float, seconds_of_iteration: float) -> int:
    """How many epochs a training has: at least 20 steps of the rate, if there are iterations."""
    wanted = min(MOST_EPOCHS, max(LEAST_EPOCHS, round(seconds / SECONDS_OF_EPOCH)))
    return max(1, min(wanted, int(seconds / seconds_of_iteration)))


def iterations_within(seconds: float, epochs: int, recent: list[dict]) -> int:
    """Iterations of the next of ``epochs`` epochs that share ``seconds``, at the recent speed."""
    speed = sum(part["iterations"] for part in recent) / sum(part["seconds"] for part in recent)
    return max(1, round(seconds / epochs * speed))


class TimedTrainer(nnUNetTrainer):
    """``parts`` are seconds and iterations: of each one timed first, and of each epoch done."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.device.type == "cpu" and hasattr(os, "sched_getaffinity"):
            # nnU-Net starts a thread for each core of the machine, also where it may use fewer.
            torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.seconds, self.seed = float(os.environ["RIVAL_SECONDS"]), int(os.environ["RIVAL_SEED"])
        self.num_val_iterations_per_epoch = 0
        self.save_every = 1
        self.logger.plot_progress_png = lambda output_folder: None
        self.parts: list[dict] = []
        self.draw_anew(0)

    def draw_anew(self, number):
        """A resumed training draws the patches of an epoch as one in a single piece does."""
        random.seed(f"{self.seed} {number}")
        np.random.seed([self.seed, number])  # noqa: NPY002  (nnU-Net draws from it)
        torch.manual_seed(self.seed + 1_000_003 * number)

    def on_train_start(self):
        super().on_train_start()
        self.mark = monotonic()
        if not self.parts:
            self.network.train()
            for _ in range(TIMED_FIRST):
                self.train_step(next(self.dataloader_train))
                self.note(1)
            self.num_epochs = epochs_within(self.left(), self.parts[-1]["seconds"])
        self.lr_scheduler.max_steps = self.num_epochs

    def left(self):
        """Seconds."""
        return self.seconds - sum(part["seconds"] for part in self.parts)

    def note(self, iterations):
        """Write down the time and the iterations since it was last called."""
        now = monotonic()
        self.parts.append({"seconds": now - self.mark, "iterations": iterations})
        self.mark = now

    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        self.draw_anew(1 + self.current_epoch)
        epochs, recent = self.num_epochs - self.current_epoch, self.parts[1:][-3:]
        self.num_iterations_per_epoch = iterations_within(self.left(), epochs, recent)

    def on_validation_epoch_end(self, val_outputs):
        """Nothing was validated."""
        nothing = float("nan")
        self.logger.log("mean_fg_dice", nothing, self.current_epoch)
        self.logger.log("dice_per_class_or_region", [nothing], self.current_epoch)
        self.logger.log("val_losses", nothing, self.current_epoch)

    def on_epoch_end(self):
        self.note(self.num_iterations_per_epoch)
        done = sum(part["iterations"] for part in self.parts)
        minutes = (self.seconds - self.left()) / 60
        progress = {
            "epochs": self.num_epochs,
            "parts": self.parts,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
        }
        moved_into_place(self.progress_file(), lambda file: file.write_text(json.dumps(progress)))
        loss = self.logger.get_value("train_losses", step=-1)
        print(
            f"epoch {self.current_epoch + 1} of {self.num_epochs}: {done} iterations, "
            f"{minutes:.1f} of {self.seconds / 60:g} minutes, loss {loss:.3f}",
            flush=True,
        )
        super().on_epoch_end()

    def progress_file(self):
        return Path(self.output_folder) / "progress.json"

    def save_checkpoint(self, filename):
        if Path(filename).name != "checkpoint_best.pth":  # the last weights are scored
            moved_into_place(Path(filename), lambda file: nnUNetTrainer.save_checkpoint(self, file))

    def load_checkpoint(self, filename_or_checkpoint):
        """Go on; an epoch of which the progress was written, but no checkpoint, is done again."""
        super().load_checkpoint(filename_or_checkpoint)
        progress = json.loads(self.progress_file().read_text())
        self.num_epochs = progress["epochs"]
        self.parts = progress["parts"][: TIMED_FIRST + self.current_epoch]

    def perform_actual_validation(self, save_probabilities=False):
        """Not at all: these would be the training cases."""


class TimedTrainerNoMirroring(TimedTrainer, nnUNetTrainerNoMirroring):
    """The same without mirroring, in training and prediction."""


def moved_into_place(path, write):
    """Have ``write`` fill a file beside ``path``, and only then give it that name."""
    part = path.with_name(path.name + ".part")
    write(part)
    part.replace(path)
