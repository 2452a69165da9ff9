"""``dcamt demo``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dcamt.commands.options import PathLike


def demo(
    out: Annotated[PathLike, typer.Option(help="Folder to write to.")] = "demo",
) -> dict[str, Any]:
    """Train DCA-MT and a V-Net on drawn phantoms, segment, evaluate and compare: minutes.

    Returns the mean metrics of each method. Raises InputError if ``out`` holds anything.
    """
    from dcamt.demo import run_demo

    return run_demo(Path(out))
