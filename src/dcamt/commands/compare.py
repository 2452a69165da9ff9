"""``dcamt compare``, and ``dcamt ablate``, which compares DCA-MT's parts."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcamt.commands.options import (
    Dataset,
    Init,
    Iterations,
    PathLike,
    PlanFile,
    Quiet,
    Recipe,
    Sets,
    Splits,
    TrainingDevice,
    command,
    configuration,
    label_counts,
    optional_path,
    with_commas,
)

if TYPE_CHECKING:
    from dcamt.records.results import Results

Counts = Annotated[
    str | int | Iterable[str | int] | None,
    typer.Option(help="Numbers of labels, e.g. 8 or 4,8,16,all (all: V-Net only)."),
]
Seeds = Annotated[int, typer.Option(help="Number of seeds: 0, 1, ...")]
Jobs = Annotated[
    int | None, typer.Option(help="Runs trained at once; default one for each core or GPU.")
]


@command
def compare(
    dataset: Dataset,
    out: Annotated[
        PathLike, typer.Option(help="Folder of the comparison; continued if it exists.")
    ],
    methods: Annotated[
        str | Iterable[str],
        typer.Option(help="NAME[:KEY=VALUE...],... The others are tested against the first."),
    ],
    *,
    labeled: Counts = None,
    seeds: Seeds = 3,
    splits: Splits = None,
    iterations: Iterations = None,
    device: TrainingDevice = None,
    config: Recipe = None,
    set: Sets = (),
    plan: PlanFile = None,
    init: Init = None,
    jobs: Jobs = None,
    quiet: Quiet = False,
) -> "Results":
    """Train, segment and score many methods alike; tables and figures, resumable.

    ``methods`` are names, with options as in ``"dca-mt:paste=0"``; the first one is what the
    others are tested against. Each is trained with every number of labels and seed. ``labeled``
    is one number or several, and ``"all"`` adds the V-Net with all labels. What is finished in
    ``out`` is skipped. With ``init`` each starts from these weights, as in `train`. See
    docs/comparing.md. Returns what ``out``/results.json holds; raises InputError for whatever the
    user can mend.
    """
    from dcamt.runs.compare import compare as run_comparison
    from dcamt.runs.design import Design, parse_rows

    counts, rows = label_counts(labeled), parse_rows(with_commas(methods))
    named = {"train.iterations": iterations, "device": device}
    resolved = configuration(config, named, set, plan)
    design = Design(rows, counts, seeds, optional_path(splits))
    start = optional_path(init)
    return run_comparison(
        Path(dataset), Path(out), design, resolved, jobs=jobs, quiet=quiet, init=start
    )


@command
def ablate(
    dataset: Dataset,
    out: Annotated[PathLike, typer.Option(help="Folder of the ablation; continued if it exists.")],
    *,
    labeled: Counts = None,
    seeds: Seeds = 3,
    splits: Splits = None,
    iterations: Iterations = None,
    device: TrainingDevice = None,
    config: Recipe = None,
    set: Sets = (),
    plan: PlanFile = None,
    init: Init = None,
    jobs: Jobs = None,
    quiet: Quiet = False,
) -> "Results":
    """Compare DCA-MT without and with each of its parts.

    As `compare` does; the rows are those of the paper's ablation.
    """
    from dcamt.runs.compare import compare as run_comparison
    from dcamt.runs.design import Design, ablation_rows

    counts = label_counts(labeled)
    named = {"train.iterations": iterations, "device": device}
    resolved = configuration(config, named, set, plan)
    design = Design(ablation_rows(), counts, seeds, optional_path(splits))
    start = optional_path(init)
    return run_comparison(
        Path(dataset), Path(out), design, resolved, jobs=jobs, quiet=quiet, init=start
    )
