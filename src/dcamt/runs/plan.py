"""What a training will do, decided before its first iteration."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dcamt.config import Config, MethodConfig, Patch, Triple
from dcamt.data.dataset import Dataset, read_dataset
from dcamt.data.mirror import choose_mirroring
from dcamt.data.prepare import Prepared, prepare
from dcamt.data.split import Labels, Split, choose_split, hide_labels
from dcamt.data.survey import fingerprint, survey
from dcamt.errors import InputError, first_of
from dcamt.files import same_folder
from dcamt.memory import told_of_memory
from dcamt.networks.backbone import Stride, common_stride
from dcamt.records.run_folder import RunConfig
from dcamt.runs.build import check_networks, network_stride, resolve_method, resolve_network
from dcamt.runs.within import choose_size


@dataclass(frozen=True)
class Planned:
    """A run before its first iteration.

    dataset: without what the split hides. ready: its cases, prepared. warnings: what a user should
    know. notes: what was chosen for the user, and why.
    """

    config: RunConfig
    split: Split
    dataset: Dataset
    ready: tuple[Prepared, ...]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@told_of_memory("the scans do not fit", "crop them, or set a coarser data.spacing")
def plan_run(
    dataset: Path,
    config: Config,
    splits: Path | None,
    labeled: Labels,
    until: float | None = None,
    beside: Sequence[MethodConfig] = (),
) -> Planned:
    """A run with everything filled in; writes nothing but the cache.

    With ``until`` (seconds of the monotonic clock) it is one that ends before then. The methods
    ``beside`` it can train on its patches, too. Raises InputError for whatever would keep the run,
    or one of them, from training.
    """
    method, network = resolve_method(config.method), resolve_network(config.network)
    if config.dataset is not None and not same_folder(config.dataset, dataset):
        raise InputError(
            f"the recipe names the data set {config.dataset}, but {dataset} is given; leave "
            "'dataset' out of the recipe"
        )
    found = read_dataset(dataset)
    split = choose_split(found, splits, labeled, config.seed, config.data.val_fraction)
    visible = hide_labels(found, split)
    training = (*split.labeled, *split.unlabeled)
    asked = [config.model_copy(update={"method": each}) for each in (config.method, *beside)]

    def stride(patch: Patch, spacing: Triple) -> Stride:
        return common_stride(network_stride(each, patch, spacing) for each in asked)

    seen = survey(
        visible,
        training,
        config.data,
        plan=config.plan,
        stride=stride,
        keep=True,
        labels=labeled != "none",
    )
    if seen.plan is None:
        raise first_of(seen.errors)
    told = {
        "dataset": dataset.resolve(),
        "plan": seen.plan,
        "method": method,
        "network": network,
    }
    planned = RunConfig(**{**dict(config), **told})
    sized = None
    if until is not None:
        learnt = [look for look in seen.looks if look.name in training]
        held_out = [look for look in seen.looks if look.name in split.val]
        sized = choose_size(planned, config, seen.dataset, fingerprint(learnt), held_out, until)
        planned = sized.config
    for each in asked:
        check_networks(planned.model_copy(update={"method": resolve_method(each.method)}))
    ready = prepare(visible.cases, planned.plan, seen.kept)
    used = [case for case in ready if case.name in training]
    augment, why = choose_mirroring(config.train.augment, used, seen.plan.orientation)
    train = planned.train.model_copy(update={"augment": augment})
    planned = planned.model_copy(update={"train": train})
    notes = [why] if why else []
    if sized is not None and until is not None:
        planned, why_so = replace(sized, config=planned).at(until)  # preparation took time as well
        notes.append(why_so)
    return Planned(planned, split, seen.dataset, tuple(ready), tuple(seen.warnings), tuple(notes))
