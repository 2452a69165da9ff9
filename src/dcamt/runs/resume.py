"""A run that was begun, and refusals of whatever would make another one of it."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dcamt.config import Config, MethodConfig, NetworkConfig
from dcamt.data.dataset import read_dataset
from dcamt.data.prepare import prepare
from dcamt.data.split import Labels, choose_split, hide_labels
from dcamt.errors import InputError
from dcamt.files import same_folder
from dcamt.records.run_folder import CONFIG, read_config, read_split
from dcamt.runs.build import resolve_method, resolve_network
from dcamt.runs.plan import Planned

_CHOSEN = ("train.augment.flip", "train.augment.rotate")
_FREE = {"devices", "workers"}
"""Settings of ``train`` that lead to the same weights whatever they are."""


def reopen(run: Path) -> Planned:
    """A run that was begun; InputError if its data set has not all that it needs any more."""
    config = read_config(run)
    if config.dataset is None:
        raise InputError(f"{run}/{CONFIG}: names no data set; start a new run")
    if not config.dataset.is_dir():
        raise InputError(
            f"{run}: its data set {config.dataset} is not there any more; put it or a link back"
        )
    dataset = read_dataset(config.dataset)
    split = read_split(run, dataset)
    visible = hide_labels(dataset, split)
    ready = prepare(visible.cases, config.plan)
    return Planned(config, split, visible, tuple(ready))


def with_processes(planned: Planned, asked: Config) -> Planned:
    """``planned`` in as many processes as ``asked``, where that was given a number."""
    given = asked.train.model_dump(include=_FREE, exclude_unset=True)
    train = planned.config.train.model_copy(update=given)
    return replace(planned, config=planned.config.model_copy(update={"train": train}))


def refuse_changes(asked: Config, kept: Config, run: Path) -> None:
    """InputError if a value that ``asked`` was given differs from the one the run began with."""

    def compare(new: dict[str, Any], old: dict[str, Any], prefix: str) -> None:
        for key, value in new.items():
            if isinstance(value, dict) and isinstance(old.get(key), dict):
                compare(value, old[key], f"{prefix}{key}.")
            elif f"{prefix}{key}" in _CHOSEN and value is None:
                continue  # the run has what was chosen
            elif value != old.get(key):
                raise InputError(
                    f"{run}: was begun with {prefix}{key} = {old.get(key)}, not {value}; leave the "
                    "option out to resume, or start a new run in another --out"
                )

    values = asked.model_dump(mode="json", exclude_unset=True, exclude={"train": _FREE})
    values.pop("dataset", None)  # `refuse_other_cases` compares it, as a folder
    method = values.get("method", {})
    if method.get("name", kept.method.name) == kept.method.name:
        # As the method reads them: YAML takes 1e-05 for text, and the run has a number.
        given = MethodConfig.model_validate({**method, "name": kept.method.name})
        resolved = resolve_method(given).model_dump(mode="json")
        values["method"] = {key: resolved[key] for key in method}
    if network := values.get("network"):  # null stands for the backbone's own sizes
        named = NetworkConfig.model_validate({"name": kept.network.name, **network})
        resolved = resolve_network(named).model_dump(mode="json")
        values["network"] = {key: resolved[key] for key in network}
    data = values.get("data", {})
    if kept.plan is not None and data.get("patch") == [*kept.plan.patch]:
        del data["patch"]  # the plan has it, whoever chose it
    compare(values, kept.model_dump(mode="json"), "")


def refuse_other_cases(
    run: Path,
    planned: Planned,
    dataset: Path | None,
    splits: Path | None,
    labeled: Labels,
) -> None:
    """InputError if a run is to go on with another data set, or with other cases of it."""
    kept, split, root = planned.config, planned.split, planned.dataset.root
    if dataset is not None and not same_folder(dataset, root):
        raise InputError(
            f"{run}: was begun with the data set {root}, not {dataset}; give that one, or "
            "start a new run in another --out"
        )
    if splits is not None:
        found = read_dataset(root)
        asked = choose_split(found, splits, labeled, kept.seed, kept.data.val_fraction)
        same = all(set(names) == set(getattr(split, use)) for use, names in asdict(asked).items())
    elif labeled == "all":
        found = read_dataset(root)
        same = all(found.case(name).label is None for name in split.unlabeled)
    else:  # cases may have been added since they were drawn
        same = labeled in (None, "none", len(split.labeled))
    if not same:
        raise InputError(
            f"{run}: was begun with other cases; leave out --splits and --labeled to resume, or "
            "start a new run in another --out"
        )
