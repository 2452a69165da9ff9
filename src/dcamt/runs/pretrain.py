"""``dcamt pretrain``: a training like any other, of a backbone on scans without labels."""

from collections.abc import Mapping
from pathlib import Path

from dcamt.config import Config, MethodConfig
from dcamt.runs.build import PRETRAINING
from dcamt.runs.train import train_run


def pretrain_run(
    dataset: Path,
    out: Path,
    config: Config,
    splits: Path | None,
    options: Mapping[str, float | None],
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Pre-train the configured network and write its report; returns ``out``.

    ``options`` are those of the pre-training, None for the default. Raises InputError for anything
    the user can mend.
    """
    (name,) = PRETRAINING
    given = {key: value for key, value in options.items() if value is not None}
    method = MethodConfig.model_validate({"name": name, **given})
    config = config.model_copy(update={"method": method})
    return train_run(dataset, out, config, splits, "none", resume=resume, quiet=quiet)
