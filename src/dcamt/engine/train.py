"""The training loop, the same for every method."""

import logging
import math
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader

from dcamt.config import TrainConfig
from dcamt.data.patches import Batches
from dcamt.engine import checkpoint
from dcamt.engine.log import TrainingLog
from dcamt.engine.precision import use_float32_where_needed
from dcamt.errors import InputError
from dcamt.memory import KEPT_UP_TO, kept_memory
from dcamt.methods.method import Method
from dcamt.networks.vnet import channels_last
from dcamt.processes import die_with_parent
from dcamt.types import Progress


class Interrupted(Exception):
    """Work stopped on a signal after saving; the command line leaves with ``exit_code``."""

    def __init__(self, number: int, go_on: str = "continue with --resume"):
        super().__init__(f"stopped by {signal.Signals(number).name}; {go_on}")
        self.exit_code = 128 + number


@dataclass
class Update:
    """Back-propagate and step; the only place that knows how gradients cross processes."""

    fabric: Fabric
    optimizers: dict[str, Optimizer]

    def __call__(self, loss: Tensor, *parts: str) -> None:
        optimizers = [self.optimizers[part] for part in parts or self.optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        # Autocast is for the forward pass: gradients have the types of what they are gradients of.
        with torch.autocast(self.fabric.device.type, enabled=False):
            self.fabric.backward(loss)
        if self.fabric.world_size > 1:
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        if parameter.grad is not None:
                            mean = self.fabric.all_reduce(parameter.grad, reduce_op="mean")
                            parameter.grad.copy_(mean)
        for optimizer in optimizers:
            optimizer.step()


def choose_device(device: str, precision: str, devices: int = 1) -> tuple[str, str]:
    """Resolve ``auto``: a GPU where there is one, in bfloat16 if it has units for that.

    Raises InputError where there is no GPU, or fewer than ``devices``, and one was asked for.
    """
    present = torch.cuda.is_available()
    if device == "cuda" and not present:
        raise InputError("device = cuda: PyTorch sees no GPU here; use --device cpu or auto")
    accelerator = "cuda" if present and device != "cpu" else "cpu"
    if accelerator == "cuda" and devices > torch.cuda.device_count():
        raise InputError(
            f"train.devices = {devices}: PyTorch sees {torch.cuda.device_count()} GPU(s) here"
        )
    if precision == "auto":
        fast = accelerator == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16-mixed" if fast else "32-true"
    return accelerator, precision


def make_fabric(device: str, precision: str, devices: int = 1) -> Fabric:
    """Fabric on the resolved device; InputError if it is not there."""
    accelerator, resolved = choose_device(device, precision, devices)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    kind: Any = resolved
    strategy = "ddp_spawn" if devices > 1 else "auto"
    return Fabric(accelerator=accelerator, devices=devices, precision=kind, strategy=strategy)


def check_sharing(settings: TrainConfig) -> None:
    """InputError if processes are wanted where the system has nothing that they could share."""
    if settings.workers or settings.devices > 1:
        try:
            multiprocessing.Lock()
        except OSError as error:
            raise InputError(
                f"/dev/shm: processes cannot share memory here ({error.strerror}); make it "
                "writable, or set train.workers=0 and train.devices=1"
            ) from None


def make_optimizers(method: Method, settings: TrainConfig) -> dict[str, Optimizer]:
    """What steps each part of ``method``."""
    return {
        name: method.optimizer(name, parameters, settings)
        for name, parameters in method.parts().items()
    }


def learning_rate(train: TrainConfig, iteration: int) -> float:
    """Step decay: divided by 10 at each fraction of ``decay_at``; ``iteration`` counts from 0."""
    passed = sum(iteration >= round(at * train.iterations) for at in train.decay_at)
    return float(train.learning_rate * 0.1**passed)


def train(
    method: Method,
    batches: Batches,
    settings: TrainConfig,
    run: Path,
    fabric: Fabric,
    validate: Callable[[Method], float] | None,
    resume: bool = False,
    quiet: bool = False,
) -> None:
    """Train ``method`` and leave ``last.safetensors``, ``best.safetensors`` and ``log.csv``.

    ``validate`` maps the method to a mean Dice on the validation cases; no other case takes part
    in choosing ``best``. With several processes each trains on its own batches, gradients are
    averaged, and the first one writes. Raises InputError for a loss that is not finite,
    Interrupted on SIGINT or SIGTERM once the iteration is finished and saved.
    """
    channels_last(method.to(fabric.device))
    optimizers = make_optimizers(method, settings)
    state: dict[str, Any] = {"iteration": 0, "best": None}
    if resume and (run / "last.safetensors").exists():
        state = checkpoint.load(run / "last.safetensors", method, optimizers)
    update = Update(fabric, optimizers)
    steps = range(state["iteration"], settings.iterations)
    mine = [step * fabric.world_size + fabric.global_rank for step in steps]
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=mine,
        num_workers=settings.workers,
        pin_memory=fabric.device.type == "cuda",
        worker_init_fn=_begin_worker,
    )
    writes = fabric.is_global_zero
    note = use_float32_where_needed(method, lambda: batches[steps.start], fabric)
    if note and writes and not quiet:
        print(note, file=sys.stderr)
    log = TrainingLog(run, settings.iterations, steps.start, quiet=quiet, writes=writes)
    voxels = math.prod(batches.patch) * (settings.labeled_batch + settings.unlabeled_batch)
    kept = kept_memory() if voxels <= KEPT_UP_TO else nullcontext()
    with log, kept, catch_signals() as stop, _told_of_workers():
        for step, draw, batch in zip(steps, mine, loader, strict=True):
            # Every draw has its own seed, so no random state needs saving.
            torch.manual_seed(batches.seed * 1_000_003 + draw)
            rate = set_learning_rate(optimizers, settings, step)
            method.train()
            with fabric.autocast():
                at = Progress(step, settings.iterations)
                terms = method.step(batch.to(fabric.device), at, update)
            state["iteration"] = step + 1
            log.add(step + 1, rate, terms, batch.cases)
            if validate and _due(step + 1, settings.validate_every, settings):
                log.check()  # a broken network must not become the best one
                dice = validate(method) if writes else 0.0
                log.validation(dice)
                if writes and (state["best"] is None or dice > state["best"]):
                    state["best"] = dice
                    checkpoint.save(run / "best.safetensors", method, {}, state)
            stopped = is_stopped(stop, fabric, step)  # once: a signal may come at any moment
            if _due(step + 1, settings.checkpoint_every, settings) or stopped:
                log.flush()
                if writes:
                    checkpoint.save(run / "last.safetensors", method, optimizers, state)
            if stopped and step + 1 < settings.iterations:
                fabric.barrier()  # the first that leaves ends the others, who may be saving
                raise Interrupted(stopped)


def is_stopped(received: Sequence[int], fabric: Fabric, step: int) -> int:
    """The signal to leave on after this iteration, or 0.

    Several processes must leave together, and ask one another every tenth iteration.
    """
    number = received[0] if received else 0
    if fabric.world_size == 1:
        return number
    if (step + 1) % 10:
        return 0
    numbers: Any = fabric.all_gather(torch.tensor(number, device=fabric.device))
    return int(numbers.max())


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
    except (RuntimeError, OSError, InputError) as error:
        text = str(error)
        # With a GPU a thread stands between, which may be the one to notice.
        if "DataLoader worker" not in text and "pin memory thread" not in text.lower():
            raise
        if text.startswith("Caught "):  # its own error, with its traceback
            last = text.strip().splitlines()[-1].partition(": ")[2]
            raise InputError(f"a worker could not read a case: {last}; use --resume") from None
        raise InputError(
            "a worker process died, perhaps for want of memory; the last checkpoint is kept: "
            "continue with --resume, with a smaller train.workers if it happens again"
        ) from None


def _due(done: int, every: int, settings: TrainConfig) -> bool:
    """Every ``every`` iterations and after the last one; 0 is never."""
    return every > 0 and (done % every == 0 or done == settings.iterations)


def set_learning_rate(
    optimizers: dict[str, Optimizer], settings: TrainConfig, iteration: int
) -> float:
    """Give every SGD the rate of ``iteration``, and return it; the others keep their own."""
    rate = learning_rate(settings, iteration)
    for optimizer in optimizers.values():
        if isinstance(optimizer, SGD):
            for group in optimizer.param_groups:
                group["lr"] = rate
    return rate


@contextmanager
def catch_signals(
    then: Callable[[list[int]], None] = lambda received: None,
) -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM are added to instead of ending the process at once.

    ``then`` is called with it after each.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        then(received)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: a notebook or a test; signals stay as they are
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
