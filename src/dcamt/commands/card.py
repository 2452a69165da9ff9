"""``dcamt card``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from dcamt.commands.options import PathLike, Weights, command


@command
def card(
    runs: Annotated[
        Iterable[PathLike] | PathLike,
        typer.Argument(help="Run folder, or several that differ in the seed alone."),
    ],
    weights: Weights = "last",
) -> str:
    """Print a model card in Markdown: data, protocol, figures, limits, licence.

    From Python it is returned. It is the card of a run, or of several that differ in their seed
    alone; ``weights`` are the ones handed on with it. Raises InputError for a folder that is no
    finished run, and for runs of different settings or splits.
    """
    from dcamt.runs.card import model_card

    several = [runs] if isinstance(runs, str | Path) else runs
    return model_card([Path(run) for run in several], weights)
