"""What a run leaves to read: ``log.csv``, TensorBoard events, MLflow, and a progress line."""

import csv
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from dcamt.engine.events import Events
from dcamt.engine.tracking import MlflowRun
from dcamt.engine.trainer import Done
from dcamt.errors import InputError
from dcamt.files import append, read_text, write_text
from dcamt.wording import percent

_FLUSH_EVERY = 10


@dataclass
class _Entry:
    done: Done
    seconds: float
    val_dice: float | None = None


class TrainingLog:
    """Collects loss terms on the device and writes them every few iterations.

    Fetching a number from a GPU stalls it, so terms stay tensors until ``flush``. There a term
    that is not finite stops the run: InputError names the iteration, the term and the cases.
    """

    def __init__(
        self,
        run: Path,
        iterations: int,
        start: int = 0,
        quiet: bool = False,
        writes: bool = True,
        tracker: str = "tensorboard",
    ):
        self.path = run / "log.csv"
        self.iterations, self.start = iterations, start
        self.waiting: list[_Entry] = []
        self.begin = time.monotonic()
        quiet = quiet or not writes  # of several processes one writes
        self.earlier_seconds = _keep_rows(self.path, start) if writes else 0.0
        self.events = Events(run / "tensorboard", start) if writes else None
        self.mlflow = MlflowRun(run) if writes and tracker == "mlflow" else None
        both: tuple[Events | MlflowRun | None, ...] = (self.events, self.mlflow)
        self.writers = [writer for writer in both if writer]
        console = Console(stderr=True, quiet=quiet)
        self.plain = None if quiet or console.is_terminal else console
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed}/{task.total}  {task.fields[rate]}  left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=iterations, completed=start, rate="", loss="")

    def __enter__(self) -> "TrainingLog":
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()
        if self.events:
            self.events.close()
        if self.mlflow:
            self.mlflow.close(failed=error is not None)

    def add(self, done: Done) -> None:
        """Note the terms of an iteration."""
        if len(self.waiting) >= _FLUSH_EVERY:
            self.flush()
        seconds = self.earlier_seconds + time.monotonic() - self.begin
        detached = {name: value.detach() for name, value in done.terms.items()}
        self.waiting.append(_Entry(replace(done, terms=detached), seconds))

    def validation(self, dice: float) -> None:
        """Note the validation Dice (fraction) after the iteration added last."""
        self.waiting[-1].val_dice = dice
        if self.plain:
            iteration = self.waiting[-1].done.iteration
            self.plain.print(f"iteration {iteration}: validation Dice {percent(dice)}")

    def check(self) -> None:
        """InputError if a term that waits is not finite."""
        for entry in self.waiting:
            _numbers(entry.done)

    def flush(self) -> None:
        """Write what waits; InputError if a term is not finite."""
        entries, self.waiting = self.waiting, []
        rows = [(entry, _numbers(entry.done)) for entry in entries]
        if not rows or self.events is None:
            return
        terms = list(entries[0].done.terms)
        fresh = not self.path.exists()
        with append(self.path) as file:
            table = csv.writer(file)
            if fresh:
                table.writerow(["iteration", "seconds", "learning_rate", *terms, "val_dice"])
            for entry, values in rows:
                dice = "" if entry.val_dice is None else f"{entry.val_dice:.6f}"
                numbers = [f"{v:.6g}" for v in (entry.done.learning_rate, *values)]
                table.writerow([entry.done.iteration, f"{entry.seconds:.2f}", *numbers, dice])
                named = {f"loss/{term}": v for term, v in zip(terms, values, strict=True)}
                if entry.val_dice is not None:
                    named["validation/dice"] = entry.val_dice
                for tag, value in named.items():
                    for writer in self.writers:
                        writer.add(tag, value, entry.done.iteration)
        for writer in self.writers:
            writer.flush()
        self._show(entries[-1].done.iteration, dict(zip(terms, values, strict=True)))

    def _show(self, iteration: int, values: dict[str, float]) -> None:
        seconds = time.monotonic() - self.begin
        rate = (iteration - self.start) / max(seconds, 1e-9)
        loss = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
        self.bar.update(self.task, completed=iteration, rate=f"{rate:.2f} it/s", loss=loss)
        step = max(1, self.iterations // 20)
        if self.plain and iteration % step < _FLUSH_EVERY:
            left = (self.iterations - iteration) / max(rate, 1e-9) / 60
            self.plain.print(
                f"iteration {iteration}/{self.iterations}  {rate:.2f} it/s  "
                f"{left:.1f} min left  {loss}",
                soft_wrap=True,
            )


def _numbers(done: Done) -> list[float]:
    terms = [value.float() for value in done.terms.values()]
    values: list[float] = torch.stack(terms).tolist() if terms else []
    for name, value in zip(done.terms, values, strict=True):
        if not math.isfinite(value):
            raise InputError(
                f"iteration {done.iteration}: the loss '{name}' is {value} on cases "
                f"{', '.join(done.cases)}; the last checkpoint is kept: check these scans, lower "
                "train.learning_rate or train with train.precision=32-true"
            )
    return values


def _keep_rows(path: Path, iteration: int) -> float:
    """Drop the rows after ``iteration``, which will be made again; returns the seconds so far.

    Iterations rise from row to row. A row that does not, such as a last line cut short, ends what
    is kept.
    """
    if not path.exists():
        return 0.0
    if iteration == 0:
        path.unlink()
        return 0.0
    head, *rows = read_text(path).splitlines() or [""]
    kept: list[str] = []
    before = 0
    try:
        for row in rows:
            number = int(row.split(",")[0] or 0)
            if not before < number <= iteration:
                break
            kept.append(row)
            before = number
        seconds = float(kept[-1].split(",")[1])
    except (IndexError, ValueError):
        raise InputError(f"{path}: is broken; remove it and go on, or start a new run") from None
    write_text(path, "\n".join([head, *kept]) + "\n")
    return seconds
