"""``dcamt prepare``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dcamt.commands.options import PathLike, Quiet, command


@command
def prepare(
    preset: Annotated[Literal["la", "pancreas-nih"], typer.Argument(help="Which benchmark.")],
    source: Annotated[PathLike, typer.Argument(help="The data set as it is distributed.")],
    out: Annotated[PathLike, typer.Argument(help="Folder of the data set to make.")],
    *,
    quiet: Quiet = False,
) -> Path:
    """Make a published benchmark: cropped by the labels of all cases, never for your own data.

    Returns the data set ``out``. The literature crops so; figures on it compare with published
    ones only. See docs/data.md. Raises InputError for a ``source`` that is not as distributed.
    """
    from dcamt.data.benchmarks import prepare_benchmark
    from dcamt.data.outputs import refuse_within_dataset

    source, out = Path(source), Path(out)
    refuse_within_dataset(out, source)
    return prepare_benchmark(preset, source, out, quiet=quiet)
