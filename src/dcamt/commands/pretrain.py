"""``dcamt pretrain``."""

from pathlib import Path
from typing import Annotated

import typer

from dcamt.commands.options import (
    Dataset,
    Iterations,
    PathLike,
    PlanFile,
    Quiet,
    Recipe,
    Resume,
    Seed,
    Sets,
    Splits,
    TrainingDevice,
    command,
    configuration,
    optional_path,
)
from dcamt.errors import InputError


@command
def pretrain(
    dataset: Dataset,
    out: Annotated[PathLike, typer.Option(help="Folder to write; `train --init` takes it.")],
    *,
    splits: Splits = None,
    iterations: Iterations = None,
    seed: Seed = None,
    device: TrainingDevice = None,
    config: Recipe = None,
    set: Sets = (),
    plan: PlanFile = None,
    mask: Annotated[
        float | None, typer.Option(help="Share of a patch to hide; default 0.6.")
    ] = None,
    block: Annotated[
        int | None, typer.Option(help="Side of a hidden block, voxels; default 8.")
    ] = None,
    resume: Resume = False,
    quiet: Quiet = False,
) -> Path:
    """Train a backbone on all scans without any label, to start other trainings from.

    It fills in blocks that are hidden of the scans (masked reconstruction). Labelled and unlabelled
    cases take part alike, and no label is opened; cases that validate or test, by ``splits`` or, as
    in `train`, by the seed, take no part. ``mask`` and ``block`` say how much is hidden and in what
    pieces. The section "method" of the recipe is for other trainings and not looked at. Returns the
    folder ``out``, for ``init`` of `train`. Raises InputError for whatever the user can mend.
    """
    from dcamt.data.outputs import refuse_within_dataset
    from dcamt.runs.pretrain import pretrain_run

    changes = [*set]
    for change in changes:
        if change.partition("=")[0].partition(".")[0] == "method":
            raise InputError(f"--set {change}: pretrain has no method; see --mask and --block")
    named = {"train.iterations": iterations, "seed": seed, "device": device}
    resolved = configuration(config, named, changes, plan)
    dataset, out = Path(dataset), Path(out)
    refuse_within_dataset(out, dataset)
    options = {"mask": mask, "block": block}
    return pretrain_run(
        dataset, out, resolved, optional_path(splits), options, resume=resume, quiet=quiet
    )
