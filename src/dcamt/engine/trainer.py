"""The training loop, the same for every method."""

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from traceback import clear_frames
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader

from dcamt.config import TrainConfig
from dcamt.data.patches import Batches
from dcamt.engine import checkpoint
from dcamt.engine.gradients import averaged_gradients
from dcamt.errors import InputError
from dcamt.memory import kept_memory
from dcamt.methods.method import Method
from dcamt.networks.convolution import channels_last
from dcamt.networks.shares import in_shares, share_out
from dcamt.processes import die_with_parent
from dcamt.types import Progress


@dataclass(frozen=True)
class Done:
    """An iteration that is done."""

    iteration: int  # counted from 1
    learning_rate: float
    terms: dict[str, Tensor]  # scalars on the device, by name
    cases: tuple[str, ...]  # that its patches are of


class Trainer:
    """Trains a method, iteration by iteration, from wherever it is.

    What an iteration draws depends on the seed and its number alone. So training may stop after
    any of them and go on, here or in other processes, to the same weights. Several processes
    compute one batch in shares: see dcamt.networks.shares.
    """

    def __init__(self, method: Method, batches: Batches, settings: TrainConfig, fabric: Fabric):
        channels_last(method.to(fabric.device))
        if fabric.world_size > 1:
            share_out(method)
        self.method, self.batches, self.settings, self.fabric = method, batches, settings, fabric
        self.optimizers = make_optimizers(method, settings)
        self.update = Update(fabric, self.optimizers)
        self.iteration = 0
        """How many are done."""

    def run(self, until: int, observe: Callable[[Done], None] = lambda done: None) -> None:
        """Train until ``until`` iterations are done, and tell ``observe`` of each.

        Raises InputError if a process that reads patches died or could not read a case.
        """
        steps = range(self.iteration, until)
        fabric, device = self.fabric, self.fabric.device
        patches = self.settings.labeled_batch + self.settings.unlabeled_batch
        voxels = math.prod(self.batches.patch) * patches
        with kept_memory(voxels), _told_of_workers():
            for step, batch in zip(steps, self._loader(steps), strict=True):
                # Every iteration has its own seed, so no random state needs saving.
                torch.manual_seed(self.batches.seed * 1_000_003 + step)
                rate = set_learning_rate(self.optimizers, self.settings, step)
                self.method.train()
                with fabric.autocast(), in_shares(fabric.world_size):
                    at = Progress(step, self.settings.iterations)
                    terms = self.method.step(batch.to(device), at, self.update)
                self.iteration = step + 1
                observe(Done(self.iteration, rate, terms, batch.cases))

    def save(self, path: Path, best: float | None) -> None:
        """Weights, optimisers and how far it is, with the ``best`` validation Dice so far."""
        checkpoint.save(path, self.method, self.optimizers, self._state(best))

    def save_weights(self, path: Path, best: float | None) -> None:
        """The same without optimisers: to predict with, not to train on."""
        checkpoint.save(path, self.method, {}, self._state(best))

    def load(self, path: Path) -> float | None:
        """Go back, or on, to where ``path`` was saved; returns the best validation Dice then.

        Raises InputError for a file that is damaged or of another method.
        """
        state = checkpoint.load(path, self.method, self.optimizers)
        self.iteration = state["iteration"]
        best: float | None = state["best"]
        return best

    def _state(self, best: float | None) -> dict[str, Any]:
        return {"iteration": self.iteration, "best": best}

    def _loader(self, steps: range) -> DataLoader[Any]:
        return DataLoader(
            self.batches,
            batch_size=None,
            sampler=steps,
            num_workers=self.settings.workers,
            pin_memory=self.fabric.device.type == "cuda",
            worker_init_fn=_begin_worker,
        )


@dataclass
class Update:
    """Back-propagate and step; the only place that knows how gradients cross processes."""

    fabric: Fabric
    optimizers: dict[str, Optimizer]

    def __call__(self, loss: Tensor, *parts: str) -> None:
        optimizers = [self.optimizers[part] for part in parts or self.optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
        several = self.fabric.world_size > 1
        # Autocast is for the forward pass: gradients have the types of what they are gradients of.
        with (
            torch.autocast(self.fabric.device.type, enabled=False),
            averaged_gradients(parameters) if several else nullcontext(),
        ):
            self.fabric.backward(loss)
        for optimizer in optimizers:
            optimizer.step()


def make_optimizers(method: Method, settings: TrainConfig) -> dict[str, Optimizer]:
    """What steps each part of ``method``."""
    return {
        name: method.optimizer(name, parameters, settings)
        for name, parameters in method.parts().items()
    }


def learning_rate(train: TrainConfig, iteration: int) -> float:
    """The rate of ``iteration``, counted from 0; see TrainConfig."""
    if train.decay == "polynomial":
        return float(train.learning_rate * (1 - iteration / train.iterations) ** train.power)
    passed = sum(iteration >= round(at * train.iterations) for at in train.decay_at)
    return float(train.learning_rate * 0.1**passed)


def set_learning_rate(
    optimizers: dict[str, Optimizer], settings: TrainConfig, iteration: int
) -> float:
    """Give every SGD the rate of ``iteration``; returns that of the first optimiser.

    The others keep their own rate, but where they name an ``initial_lr``, as PyTorch's schedulers
    do, it falls from there like the protocol's.
    """
    rate = learning_rate(settings, iteration)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            if isinstance(optimizer, SGD):
                group["lr"] = rate
            elif "initial_lr" in group:
                group["lr"] = group["initial_lr"] * (rate / settings.learning_rate)
    first = next(iter(optimizers.values()))
    return float(first.param_groups[0]["lr"])


def _begin_worker(worker: int) -> None:
    """Ctrl-C and batch systems signal the workers too, which must live until the last save."""
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _told_of_workers() -> Iterator[None]:
    """Turn the death of a worker, and an error in one, into one InputError."""
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        text = str(error)
        # With a GPU a thread stands between, which may be the one to notice.
        if "DataLoader worker" not in text and "pin memory thread" not in text.lower():
            raise
        # A kept error keeps its frames, and with them workers that the end of Python waits for.
        clear_frames(error.__traceback__)
        if text.startswith("Caught "):  # its own error, with its traceback
            last = text.strip().splitlines()[-1].partition(": ")[2]
            raise InputError(f"a worker could not read a case: {last}; use --resume") from None
        raise InputError(
            "a worker process died, perhaps for want of memory; the last checkpoint is kept: "
            "continue with --resume, with a smaller train.workers if it happens again"
        ) from None
