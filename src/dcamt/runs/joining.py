"""How a site joins a federation: it looks at its scans, and makes them ready by the plan of all."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from dcamt.config import Config
from dcamt.data.dataset import Dataset, read_dataset
from dcamt.data.mirror import choose_mirroring
from dcamt.data.plan import check_plan
from dcamt.data.prepare import prepare
from dcamt.data.split import Split, choose_split, hide_labels
from dcamt.data.survey import Survey, fingerprint, survey
from dcamt.errors import first_of
from dcamt.federation import Ready, SiteSummary, agree, summarise
from dcamt.files import write_text
from dcamt.memory import told_of_memory
from dcamt.records.run_folder import RunConfig
from dcamt.runs.build import check_networks, network_stride, resolve_method, resolve_network
from dcamt.runs.plan import Planned

SPLITS = "splits.json"
"""In the folder of a site: its split, if it is not to be drawn."""

_TOO_LARGE = "the scans do not fit", "crop them, or set a coarser data.spacing"


@dataclass(frozen=True)
class Seen:
    """A site's scans as they were looked at, and what it tells of them."""

    split: Split
    visible: Dataset
    survey: Survey
    summary: SiteSummary


@told_of_memory(*_TOO_LARGE)
def look(folder: Path, config: Config) -> Seen:
    """Look at the scans of a site; InputError for whatever keeps it from training on them."""
    found = read_dataset(folder)
    labels = any(case.label is not None for case in found.cases)
    splits = folder / SPLITS
    split = choose_split(
        found,
        splits if splits.exists() else None,
        None if labels else "none",
        config.seed,
        config.data.val_fraction,
    )
    visible = hide_labels(found, split)
    # What intensities become is decided later, from those of all sites.
    data = config.data.model_copy(update={"modality": "normalized"})
    stride = partial(network_stride, config)
    training = (*split.labeled, *split.unlabeled)
    seen = survey(visible, training, data, stride=stride, keep=True, labels=labels)
    if seen.plan is None:
        raise first_of(seen.errors)
    learnt = [look for look in seen.looks if look.name in training]
    named = seen.dataset if labels else replace(seen.dataset, classes=found.classes)
    summary = summarise(named, fingerprint(learnt), config.data)
    return Seen(split, visible, seen, summary)


def share_plan(config: Config, summaries: Mapping[str, SiteSummary]) -> RunConfig:
    """The configuration of all sites, from what they told; InputError if there is no such one."""
    method, network = resolve_method(config.method), resolve_network(config.network)
    plan = agree(summaries, config.data, partial(network_stride, config))
    told = {"plan": plan, "method": method, "network": network}
    shared = RunConfig(**{**dict(config), **told})
    check_networks(shared)
    return shared


@told_of_memory(*_TOO_LARGE)
def make_ready(seen: Seen, shared: RunConfig) -> Planned:
    """What a site does by the plan of all, with its own choice of mirroring; writes the cache."""
    dataset, plan = seen.survey.dataset, shared.plan
    if not seen.split.labeled:
        dataset = replace(dataset, classes=plan.classes, ignore=plan.ignore)
    check_plan(plan, dataset)
    ready = prepare(seen.visible.cases, plan, seen.survey.kept)
    training = {*seen.split.labeled, *seen.split.unlabeled}
    used = [case for case in ready if case.name in training]
    augment, _ = choose_mirroring(shared.train.augment, used, plan.orientation)
    train = shared.train.model_copy(update={"augment": augment})
    config = shared.model_copy(update={"train": train})
    return Planned(config, seen.split, dataset, tuple(ready), tuple(seen.survey.warnings))


def told_of(planned: Planned) -> Ready:
    """What a site tells of what it is to do."""
    numbers = {case.name: number for number, case in enumerate(planned.dataset.cases, 1)}
    augment, split = planned.config.train.augment, planned.split
    return Ready(
        flip=list(augment.flips),
        rotate=augment.turns,
        labeled=[numbers[name] for name in split.labeled],
        unlabeled=[numbers[name] for name in split.unlabeled],
        val=[numbers[name] for name in split.val],
        licence=planned.dataset.licence,
    )


def share_mirroring(shared: RunConfig, ready: Mapping[str, Ready]) -> RunConfig:
    """``shared``, mirroring along an axis unless all scans of some site lie one way along it."""
    first, *others = ready.values()
    chosen = {
        "flip": tuple(axis for axis in first.flip if all(axis in one.flip for one in others)),
        "rotate": all(one.rotate for one in ready.values()),
    }
    augment = shared.train.augment.model_copy(update=chosen)
    train = shared.train.model_copy(update={"augment": augment})
    return shared.model_copy(update={"train": train})


def own_config(shared: RunConfig, number: int, dataset: Path) -> RunConfig:
    """``shared`` for the site of that number, from 0: with a seed of its own for its patches."""
    own = {"dataset": dataset.resolve(), "seed": (shared.seed + number) % 2**32}
    return shared.model_copy(update=own)


def write_summary(folder: Path, summary: SiteSummary) -> None:
    """Keep at the site what it told of its scans: summary.json in its run folder."""
    write_text(folder / "summary.json", json.dumps(asdict(summary), indent=1))
