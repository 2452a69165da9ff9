"""``dcamt rank``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dcamt.commands.options import Device, PathLike, Quiet, Run, Weights, command

if TYPE_CHECKING:
    from dcamt.runs.rank import Ranked


@command
def rank(
    run: Run,
    input: Annotated[
        PathLike, typer.Argument(help="A folder of scans without labels, or a data set.")
    ],
    out: Annotated[PathLike, typer.Option(help="CSV file to write.")],
    *,
    budget: Annotated[int | None, typer.Option(help="List so many scans; default all.")] = None,
    by: Annotated[
        Literal["spread", "uncertainty", "random"],
        typer.Option(help="Unsure scans of every kind, the least sure ones, or any."),
    ] = "spread",
    weights: Weights = "last",
    device: Annotated[Device, typer.Option(help="Where to compute.")] = "auto",
    quiet: Quiet = False,
) -> "list[Ranked]":
    """Which scans to label next: those that the run is least sure of, of every kind.

    ``input`` is a folder of scans or a data set, whose cases that the run has a label of are left
    out. Returns the first ``budget`` scans, the best to label first, and writes them to the CSV
    file ``out``: rank, case, uncertainty and disagreement of the branches (0 to 1). ``by`` is
    ``spread`` (scans that stand for many unsure ones), ``uncertainty`` alone, or ``random``, drawn
    by the run's seed. See docs/after-training.md. Raises InputError if ``out`` exists or there is
    nothing to rank; a scan that cannot be read does not keep the others from being ranked.
    """
    from dcamt.data.outputs import refuse_within_dataset
    from dcamt.runs.rank import rank_scans

    input, out = Path(input), Path(out)
    refuse_within_dataset(out, input if input.is_dir() else None)
    return rank_scans(
        Path(run), input, out, budget, by, weights=weights, device=device, quiet=quiet
    )
