"""``dcamt export``."""

from pathlib import Path
from typing import Annotated

import typer

from dcamt.commands.options import PathLike, Run, Weights, command


@command
def export(
    run: Run,
    out: Annotated[PathLike, typer.Option(help="Folder to write; `predict` takes it like a run.")],
    *,
    weights: Weights = "last",
    megabytes: Annotated[float, typer.Option(help="Size of the largest file, MB.")] = 16,
) -> list[Path]:
    """Write half-precision weights in small files, configuration and model card, to hand on.

    Returns the weight files, each of at most ``megabytes``. No path, case name or split is
    carried over. Raises InputError if ``out`` holds anything but a part of this export.
    """
    from dcamt.data.outputs import refuse_within_dataset
    from dcamt.runs.export import export_run

    refuse_within_dataset(Path(out))
    return export_run(Path(run), Path(out), weights, megabytes)
