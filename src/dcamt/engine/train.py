"""A training that leaves a log and checkpoints, and goes on where it was stopped."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from dcamt.config import TrainConfig
from dcamt.data.patches import Batches
from dcamt.engine.log import TrainingLog
from dcamt.engine.precision import told_of_float32, use_float32_where_needed
from dcamt.engine.signals import Interrupted, catch_signals
from dcamt.engine.trainer import Done, Trainer
from dcamt.methods.method import Method


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
    in choosing ``best``. Of several processes each calls it, and the first one writes. Raises
    InputError for a loss that is not finite, Interrupted on SIGINT or SIGTERM once the iteration is
    finished and saved.
    """
    trainer = Trainer(method, batches, settings, fabric)
    last, best = run / "last.safetensors", None
    if resume and last.exists():
        best = trainer.load(last)
    writes = fabric.is_global_zero
    begin, end = trainer.iteration, settings.iterations
    notes = (
        told_of_float32(settings.precision, fabric),
        use_float32_where_needed(method, lambda: batches[begin], fabric),
    )
    for note in notes:
        if note and writes and not quiet:
            print(note, file=sys.stderr)
    log = TrainingLog(run, end, begin, quiet, writes, settings.tracker)

    def record(done: Done) -> None:
        nonlocal best
        log.add(done)
        if validate and _due(done.iteration, settings.validate_every, end):
            log.check()  # a broken network must not become the best one
            dice = validate(method)
            log.validation(dice)
            if writes and (best is None or dice > best):
                best = dice
                trainer.save_weights(run / "best.safetensors", best)
        stopped = is_stopped(stop, fabric, done.iteration)  # once: a signal may come at any moment
        if _due(done.iteration, settings.checkpoint_every, end) or stopped:
            log.flush()
            if writes:
                trainer.save(last, best)
        if stopped and done.iteration < end:
            fabric.barrier()  # the first that leaves ends the others, who may be saving
            raise Interrupted(stopped)

    with log, catch_signals() as stop:
        trainer.run(end, record)


def is_stopped(received: Sequence[int], fabric: Fabric, iteration: int) -> int:
    """The signal to leave on after this iteration, or 0.

    Several processes must leave together, and ask one another every tenth iteration.
    """
    number = received[0] if received else 0
    if fabric.world_size == 1:
        return number
    if iteration % 10:
        return 0
    most: Any = fabric.all_reduce(torch.tensor(number, device=fabric.device), reduce_op="max")
    return int(most)


def _due(done: int, every: int, end: int) -> bool:
    """Every ``every`` iterations and after the last one; 0 is never."""
    return every > 0 and (done % every == 0 or done == end)
