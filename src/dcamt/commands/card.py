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
    alone; ``weights`` are the ones handed on with it. A folder that ``export`` wrote has its card
    already. Raises InputError for a folder that is no finished run, and for runs of different
    settings or splits.
    """
    from dcamt.runs.card import card_handed_on, model_card

    folders = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]
    handed_on = card_handed_on(folders[0]) if len(folders) == 1 else None
    return handed_on or model_card(folders, weights)
