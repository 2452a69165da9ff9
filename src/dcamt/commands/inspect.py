"""``dcamt inspect``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcamt.commands.options import Dataset, PathLike, command, optional_path

if TYPE_CHECKING:
    from dcamt.data.inspect import Inspection


@command
def inspect(
    dataset: Dataset,
    splits: Annotated[PathLike | None, typer.Option(help="Splits file: hide labels.")] = None,
) -> "Inspection":
    """Print cases, sizes, spacings, intensities, classes, labels and every problem found.

    From Python nothing is printed but all of it returned. Every file is opened once; with a
    splits file, neither the labels of its unlabelled cases nor its test cases are. Raises
    InputError only for a folder that is no data set and for an unusable splits file.
    """
    from dcamt.data.inspect import inspect as look

    return look(Path(dataset), optional_path(splits))
