"""``dcamt distill``."""

from pathlib import Path
from typing import Annotated

import typer

from dcamt.commands.options import (
    Iterations,
    PathLike,
    Quiet,
    Resume,
    Sets,
    TrainingDevice,
    command,
)


@command
def distill(
    run: Annotated[PathLike, typer.Argument(help="Folder of a run; an export cannot teach.")],
    out: Annotated[PathLike, typer.Option(help="Run folder to write, of the light network.")],
    *,
    iterations: Iterations = None,
    seed: Annotated[int | None, typer.Option(help="Random seed; default that of the run.")] = None,
    device: TrainingDevice = None,
    set: Sets = (),
    resume: Resume = False,
    quiet: Quiet = False,
) -> Path:
    """Teach one light network what a trained run says, and leave an ordinary run folder of it.

    The networks of ``run`` teach by the mean of their probabilities, with their last weights, on
    every scan that trained them, labelled or not. Data set, split and plan are those of ``run``,
    and so is every setting that ``iterations``, ``seed``, ``device`` and ``set`` do not change, but
    for the network: it has half the width unless ``set`` names a ``network.width`` or a
    ``network.name``, and is a light V-Net where ``run`` has V-Nets. ``resume`` goes on with the
    same teacher only. Returns the run folder ``out``. Raises InputError for whatever the user can
    mend; what exists is never overwritten.
    """
    from dcamt.runs.distill import distill_run

    named = {"train.iterations": iterations, "seed": seed, "device": device}
    changes = [f"{key}={value}" for key, value in named.items() if value is not None]
    return distill_run(Path(run), Path(out), [*changes, *set], resume=resume, quiet=quiet)
