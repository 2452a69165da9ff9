"""What happens at each site of a federation: its scans are looked at, and it trains.

RUN/sites/SITE is the site's own run folder. What lies there stays at the site: names of cases, the
state of its optimisers, its log, the segmentations of its validation cases.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from dcamt.config import Config, Plan
from dcamt.data.dataset import Dataset, read_dataset
from dcamt.data.mirror import choose_mirroring
from dcamt.data.plan import check_plan
from dcamt.data.prepare import prepare
from dcamt.data.split import Split, choose_split, hide_labels
from dcamt.data.survey import Survey, fingerprint, survey
from dcamt.engine import checkpoint
from dcamt.engine.log import TrainingLog
from dcamt.engine.precision import use_float32_where_needed
from dcamt.engine.signals import Interrupted
from dcamt.engine.trainer import Done, Trainer
from dcamt.errors import InputError, first_of
from dcamt.federation import Protocol, Summary, Update, agree, batch_norm, summarise
from dcamt.files import read_text, write_text
from dcamt.inference.sliding_window import window_overlap
from dcamt.inference.validate import mean_dice
from dcamt.memory import told_of_memory
from dcamt.methods.method import Method
from dcamt.records.run_folder import RunConfig, write_beginning
from dcamt.runs.build import (
    build_method,
    check_networks,
    network_stride,
    resolve_method,
    resolve_network,
)
from dcamt.runs.plan import Planned
from dcamt.runs.train import make_batches
from dcamt.types import IGNORE

SPLITS = "splits.json"
"""In the folder of a site: its split, if it is not to be drawn."""


@dataclass(frozen=True)
class Site:
    """A site: its name, its run folder and what it is to do there."""

    name: str
    folder: Path
    planned: Planned

    @property
    def last(self) -> Path:
        return self.folder / "last.safetensors"

    @property
    def cases(self) -> int:
        """Number of scans that it trains on, labelled or not."""
        return len(self.planned.split.labeled) + len(self.planned.split.unlabeled)


@dataclass(frozen=True)
class _Seen:
    """A site's scans as they were looked at, and what it tells of them."""

    split: Split
    visible: Dataset
    survey: Survey
    summary: Summary


@told_of_memory("the scans do not fit", "crop them, or set a coarser data.spacing")
def plan_sites(
    folders: Mapping[str, Path], config: Config
) -> tuple[RunConfig, dict[str, Planned], dict[str, Summary]]:
    """The shared configuration, what each site is to do, and what each told; writes the cache.

    A site keeps its own seed, from which its patches are drawn. Patches are mirrored along an axis
    unless the scans of some site all lie one way along it. Raises InputError for whatever would
    keep a site from training.
    """
    method, network = resolve_method(config.method), resolve_network(config.network)
    seen = {name: _look(folder, config) for name, folder in folders.items()}
    summaries = {name: site.summary for name, site in seen.items()}
    plan = agree(summaries, config.data, partial(network_stride, config))
    window_overlap(plan.patch, config.predict)  # refuses a stride that skips voxels
    told = {"plan": plan, "method": method, "network": network}
    shared = RunConfig(**{**dict(config), **told})
    check_networks(shared)
    planned = {name: _prepare(site, shared, plan) for name, site in seen.items()}
    chosen = [site.config.train.augment for site in planned.values()]
    augment = shared.train.augment.model_copy(
        update={
            "flip": tuple(a for a in chosen[0].flips if all(a in one.flips for one in chosen)),
            "rotate": all(one.turns for one in chosen),
        }
    )
    train = shared.train.model_copy(update={"augment": augment})
    shared = shared.model_copy(update={"train": train})
    for number, (name, folder) in enumerate(folders.items()):
        own = {"dataset": folder.resolve(), "seed": (shared.seed + number) % 2**32}
        planned[name] = replace(planned[name], config=shared.model_copy(update=own))
    return shared, planned, summaries


def _look(folder: Path, config: Config) -> _Seen:
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
    return _Seen(split, visible, seen, summary)


def _prepare(site: _Seen, shared: RunConfig, plan: Plan) -> Planned:
    """What a site does by the plan of all; with its own choice of mirroring."""
    dataset = site.survey.dataset
    if not site.split.labeled:
        dataset = replace(dataset, classes=plan.classes, ignore=plan.ignore)
    check_plan(plan, dataset)
    ready = prepare(site.visible.cases, plan, site.survey.kept)
    training = {*site.split.labeled, *site.split.unlabeled}
    used = [case for case in ready if case.name in training]
    augment, _ = choose_mirroring(shared.train.augment, used, plan.orientation)
    train = shared.train.model_copy(update={"augment": augment})
    config = shared.model_copy(update={"train": train})
    return Planned(config, site.split, dataset, tuple(ready), tuple(site.survey.warnings))


def begin(site: Site, versions: dict[str, str], summary: Summary) -> None:
    """Make the folder of a site a run folder; summary.json is what it told of its scans."""
    planned = site.planned
    write_beginning(site.folder, planned.config, planned.split, planned.dataset, versions)
    write_text(site.folder / "summary.json", json.dumps(asdict(summary), indent=1))


def train_round(
    site: Site,
    shared: Mapping[str, Tensor],
    since: int,
    protocol: Protocol,
    fabric: Fabric,
    stop: Sequence[int],
) -> Update:
    """Train from the weights ``shared`` for the iterations of a round; ``since`` are done.

    The state of the optimisers is the site's own, from its last round. A site that has done its
    part of the round already, before it was stopped, sends that. Raises InputError if it cannot be
    used, Interrupted on a signal, of which ``stop`` tells.
    """
    config, until = site.planned.config, since + protocol.iterations
    method = build_method(config)
    batches = make_batches(site.planned, method, site.planned.split.unlabeled, instead=IGNORE)
    trainer = Trainer(method, batches, config.train, fabric)
    if site.last.exists():
        trainer.load(site.last)
    if trainer.iteration != until:
        _take(method, shared, protocol)
        trainer.iteration = since
        use_float32_where_needed(method, lambda: batches[since], fabric)
        if protocol.proximal:
            _hold_back(trainer, protocol.proximal)
        _train(trainer, site.folder, until, stop)
        trainer.save(site.last, None)
    own = _own(method, protocol) if until < protocol.total else set()
    weights = {
        name: value.detach().to("cpu", copy=True)
        for name, value in method.state_dict().items()
        if name not in own
    }
    return Update(weights, site.cases, _losses(site.folder / "log.csv", since, until))


def _train(trainer: Trainer, folder: Path, until: int, stop: Sequence[int]) -> None:
    log = TrainingLog(folder, trainer.settings.iterations, trainer.iteration, quiet=True)

    def record(done: Done) -> None:
        log.add(done)
        if stop:
            raise Interrupted(stop[0])

    with log:
        trainer.run(until, record)
        log.flush()  # InputError for a loss that is not finite
    for name, value in trainer.method.state_dict().items():
        if not torch.isfinite(value).all():
            raise InputError(f"the weight {name} is not finite; lower train.learning_rate")


def _hold_back(trainer: Trainer, mu: float) -> None:
    """Add FedProx's ``mu / 2 ||w - w_shared||^2`` to the loss of every optimiser.

    Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, equation 2. Its
    gradient is added before each step; the weights are now those that all sites share.
    """
    start = {
        parameter: parameter.detach().clone()
        for optimizer in trainer.optimizers.values()
        for group in optimizer.param_groups
        for parameter in group["params"]
    }

    def pull(optimizer: Optimizer, *given: object) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - start[parameter], alpha=mu)

    for optimizer in trainer.optimizers.values():
        optimizer.register_step_pre_hook(pull)


def _own(method: Method, protocol: Protocol) -> set[str]:
    """Names of the weights that a site keeps for itself."""
    return batch_norm(method) if protocol.strategy == "fedbn" else set()


def _take(method: Method, shared: Mapping[str, Tensor], protocol: Protocol) -> None:
    own = _own(method, protocol)
    weights = {name: value for name, value in shared.items() if name not in own}
    method.load_state_dict(weights, strict=False)


def _losses(log: Path, since: int, until: int) -> dict[str, list[float]]:
    """Each term of the loss in the iterations after ``since``, from the log of a site."""
    rows = [
        row
        for row in csv.DictReader(io.StringIO(read_text(log), newline=""))
        if since < int(row["iteration"]) <= until
    ]
    if not rows:
        raise InputError(f"{log}: lacks the rows of this round; start a new run in another --out")
    others = {"iteration", "seconds", "learning_rate", "val_dice"}
    return {name: [float(row[name]) for row in rows] for name in rows[0] if name not in others}


def own_network(site: Site, shared: Mapping[str, Tensor], protocol: Protocol) -> Method:
    """The network of a site: the shared weights, in FedBN with its own batch norm."""
    method = build_method(site.planned.config)
    if _own(method, protocol) and site.last.exists():
        checkpoint.load(site.last, method)
    _take(method, shared, protocol)
    return method


def score(site: Site, shared: Mapping[str, Tensor], protocol: Protocol, fabric: Fabric) -> float:
    """Mean Dice (fraction) of the network of a site on its validation cases."""
    config, split = site.planned.config, site.planned.split
    held_out = [case for case in site.planned.ready if case.name in split.val]
    method = own_network(site, shared, protocol).to(fabric.device)
    with fabric.autocast():
        return mean_dice(method, held_out, config.plan, config.predict)
