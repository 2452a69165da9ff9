"""The files of a run folder that say what it is: its configuration, data and split."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from dcamt.config import Config, Plan, load_config, save_config
from dcamt.data.dataset import Dataset
from dcamt.data.split import Split
from dcamt.errors import InputError
from dcamt.files import holds, read_json, refuse_existing, write_text

CONFIG = "config.yaml"
_FIRST = {"versions.json", "data.json", "split.json", "summary.json", "sites"}
"""What is written before the configuration, by which a folder is known as a run."""
FEDERATION = "federation"
"""In versions.json of a federation: the protocol, and what each site has."""
LEFT_OUT = "left out"
"""In versions.json, if it happened: the sites that some rounds went on without."""


class RunConfig(Config):
    """The configuration of a run: with a plan. An exported run names no data set."""

    plan: Plan


def read_config(run: Path) -> RunConfig:
    """The configuration of a run folder; InputError if it is none."""
    if not (run / CONFIG).is_file():
        raise InputError(f"{run}: is not a run folder (no {CONFIG}); give one of `dcamt train`")
    config = load_config(run / CONFIG)
    if config.plan is None:
        raise InputError(f"{run}/{CONFIG}: has no plan; give a run that `dcamt train` wrote")
    return RunConfig(**dict(config))


def is_federation(run: Path) -> bool:
    """Whether several sites trained the run: names of cases stay there, here they are numbers."""
    path = run / "versions.json"
    return path.exists() and FEDERATION in read_json(path)


def has_begun(run: Path) -> bool:
    """Whether there is a run to continue."""
    return (run / CONFIG).exists()


def refuse_existing_run(out: Path, resume: bool) -> None:
    """InputError unless ``out`` is empty, or holds what a run killed while it began left."""
    held = holds(out)
    ours = resume and "versions.json" in held and held <= _FIRST
    refuse_existing(out, ours=ours, advice="choose another --out, or continue a run with --resume")


def write_beginning(
    out: Path,
    config: RunConfig,
    split: Split,
    dataset: Dataset,
    versions: dict[str, str],
    notes: Sequence[str] = (),
) -> None:
    """Make ``out`` a run folder. ``notes``: what was chosen for the user, and why."""
    write_first(out, split, dataset, versions, notes)
    save_config(config, out / CONFIG)


def write_first(
    out: Path,
    split: Split,
    dataset: Dataset,
    versions: dict[str, str],
    notes: Sequence[str] = (),
) -> None:
    """What a run folder holds before it has a configuration, which makes it one."""
    data = {"name": dataset.name, "licence": dataset.licence, "chosen": list(notes)}
    write_text(out / "versions.json", json.dumps(versions, indent=1))
    write_text(out / "data.json", json.dumps(data, indent=1))
    write_text(out / "split.json", json.dumps(asdict(split), indent=1))


def read_split(run: Path, dataset: Dataset) -> Split:
    """The split of a run; InputError if it is broken, or if ``dataset`` lacks a case or a label."""
    labels = {case.name: case.label for case in dataset.cases}
    values: dict[str, Any] = read_json(run / "split.json")
    lists = {key: tuple(names) for key, names in values.items() if isinstance(names, list)}
    try:
        split = Split(**lists)
        whole = lists.keys() == values.keys() and labels.keys() >= {*chain(*lists.values())}
    except TypeError:  # other lists, or what no list of names holds
        whole = False
    if not whole:
        raise InputError(
            f"{run}/split.json: is broken or names cases that {dataset.root} does not have; "
            "start a new run"
        )
    for name in (*split.labeled, *split.val, *split.test):
        if labels[name] is None:
            raise InputError(
                f"{dataset.root}: case {name} has lost its label, which the run began with; put "
                "it back, or start a new run"
            )
    return split
