"""``dcamt train``."""

from pathlib import Path
from typing import Annotated

import typer

from dcamt.commands.options import (
    Dataset,
    Init,
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
    label_count,
    optional_path,
)


@command
def train(
    dataset: Dataset,
    out: Annotated[PathLike, typer.Option(help="Run folder to write.")],
    *,
    method: Annotated[str | None, typer.Option(help="Training method; default dca-mt.")] = None,
    splits: Splits = None,
    labeled: Annotated[
        str | int | None, typer.Option(help="Use N labels, hide the rest; or all.")
    ] = None,
    iterations: Iterations = None,
    seed: Seed = None,
    device: TrainingDevice = None,
    config: Recipe = None,
    set: Sets = (),
    plan: PlanFile = None,
    within: Annotated[
        str | None, typer.Option(help="Time for the training, e.g. 2h; it is sized to fit.")
    ] = None,
    init: Init = None,
    resume: Resume = False,
    quiet: Quiet = False,
) -> Path:
    """Train a method and leave a run folder with weights, log, validation and report.

    Returns the run folder ``out``. ``labeled`` keeps that many labels and hides the rest
    (``"all"`` shows every label); ``config`` is a YAML recipe and ``set`` holds ``key=value``
    overrides of it. ``plan`` is a file with a plan (a run's config.yaml) to use in place of a new
    one. ``within``, such as 2h or 90m, chooses spacing, patch, width, batch and iterations so that
    the command ends in that time on this machine, except those that you set. ``init`` are weights
    to start from: a folder of `dcamt train`, `pretrain` or `export`, or a .safetensors file of
    theirs. What fits of the same backbone is taken, the rest drawn by the seed
    (docs/pretraining.md). Raises InputError for whatever the user can mend; what exists is never
    overwritten.
    """
    from dcamt.data.outputs import refuse_within_dataset
    from dcamt.runs.train import train_run
    from dcamt.runs.within import parse_duration

    count = label_count(labeled)
    named = {
        "method.name": method,
        "train.iterations": iterations,
        "seed": seed,
        "device": device,
    }
    resolved = configuration(config, named, set, plan)
    dataset, out = Path(dataset), Path(out)
    refuse_within_dataset(out, dataset)
    return train_run(
        dataset,
        out,
        resolved,
        optional_path(splits),
        count,
        resume=resume,
        quiet=quiet,
        within=None if within is None else parse_duration(within),
        init=optional_path(init),
    )
