"""What happens at each site of a federation in its rounds: it trains, and scores the network.

RUN/sites/SITE is the site's own run folder. What lies there stays at the site: names of cases, the
state of its optimisers, its log, the segmentations of its validation cases.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from dcamt.engine import checkpoint
from dcamt.engine.device import check_sharing, make_fabric
from dcamt.engine.log import TrainingLog
from dcamt.engine.precision import use_float32_where_needed
from dcamt.engine.signals import Interrupted
from dcamt.engine.trainer import Done, Trainer
from dcamt.errors import InputError
from dcamt.federation import Protocol, SiteUpdate, stays
from dcamt.inference.predict import SUMMARY
from dcamt.inference.validate import mean_dice
from dcamt.methods.method import Method
from dcamt.privacy import clipped
from dcamt.records.finished_run import read_log
from dcamt.records.run_folder import RunConfig
from dcamt.records.scores import CaseScore, read_scores
from dcamt.records.summary import CaseNumbers, read_numbers
from dcamt.runs.build import build_method
from dcamt.runs.half import rounded
from dcamt.runs.plan import Planned
from dcamt.runs.train import make_batches, segment_validation
from dcamt.types import IGNORE


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
class Outcome:
    """What a site tells at the end of its validation cases: by number, from 1, not by name.

    scores: one a case and class, with the number in place of the case. numbers: by that number.
    """

    scores: list[CaseScore]
    numbers: dict[str, CaseNumbers]


def fabric_of(config: RunConfig) -> Fabric:
    """What a site computes on; InputError where its settings do not go together there."""
    check_sharing(config.train)
    fabric = make_fabric(config.device, config.train.precision)
    fabric.launch()
    return fabric


def train_round(
    site: Site,
    shared: Mapping[str, Tensor],
    since: int,
    protocol: Protocol,
    fabric: Fabric,
    stop: Sequence[int],
) -> SiteUpdate:
    """Train from the weights ``shared`` for the iterations of a round; ``since`` are done.

    The state of the optimisers is the site's own, from its last round. A site that has done its
    part of the round already, before it was stopped, sends that. Raises InputError if it cannot be
    used, Interrupted on a signal, of which ``stop`` tells.
    """
    config, until = site.planned.config, since + protocol.iterations
    method = build_method(config)
    own = stays(method, protocol)
    batches = make_batches(site.planned, method, site.planned.split.unlabeled, instead=IGNORE)
    trainer = Trainer(method, batches, config.train, fabric)
    if site.last.exists():
        trainer.load(site.last)
    if trainer.iteration != until:
        _take(method, shared, own if since else set())
        trainer.iteration = since
        use_float32_where_needed(method, lambda: batches[since], fabric)
        if protocol.proximal:
            _hold_back(trainer, protocol.proximal, own)
        _train(trainer, site.folder, until, stop)
        trainer.save(site.last, None)
    weights = {
        name: value.detach().to("cpu", copy=True)
        for name, value in method.state_dict().items()
        if until == protocol.total or name not in own
    }
    if protocol.clip:
        return SiteUpdate(clipped(weights, shared, protocol.clip), 1, {})
    losses = _losses(site.folder / "log.csv", since, until)
    return SiteUpdate(rounded(weights) if protocol.half else weights, site.cases, losses)


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


def _hold_back(trainer: Trainer, mu: float, own: Set[str]) -> None:
    """Add FedProx's ``mu / 2 ||w - w_shared||^2`` to the loss of every optimiser.

    ``own`` names the weights that stay at the site, which are not held back.

    Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, equation 2. Its
    gradient is added before each step; the weights are now those that all sites share.
    """
    start = {
        parameter: parameter.detach().clone()
        for name, parameter in trainer.method.named_parameters()
        if name not in own
    }

    def pull(optimizer: Optimizer, *given: object) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in start and parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - start[parameter], alpha=mu)

    for optimizer in trainer.optimizers.values():
        optimizer.register_step_pre_hook(pull)


def _take(method: Method, shared: Mapping[str, Tensor], own: Set[str]) -> None:
    weights = {name: value for name, value in shared.items() if name not in own}
    method.load_state_dict(weights, strict=False)


def _losses(log: Path, since: int, until: int) -> dict[str, list[float]]:
    """Each term of the loss in the iterations after ``since``, from the log of a site."""
    columns = read_log(log)
    rows = (since < columns["iteration"]) & (columns["iteration"] <= until)
    if not rows.any():
        raise InputError(f"{log}: lacks the rows of this round; start a new run in another --out")
    others = {"iteration", "seconds", "learning_rate", "val_dice"}
    return {name: columns[name][rows].tolist() for name in columns if name not in others}


def own_network(site: Site, shared: Mapping[str, Tensor], protocol: Protocol) -> Method:
    """The network of a site: the shared weights, and those that stay there."""
    method = build_method(site.planned.config)
    own = stays(method, protocol)
    if own and site.last.exists():
        checkpoint.load(site.last, method)
    _take(method, shared, own)
    return method


def score(site: Site, shared: Mapping[str, Tensor], protocol: Protocol, fabric: Fabric) -> float:
    """Mean Dice (fraction) of the network of a site on its validation cases."""
    config, split = site.planned.config, site.planned.split
    held_out = [case for case in site.planned.ready if case.name in split.val]
    method = own_network(site, shared, protocol).to(fabric.device)
    with fabric.autocast():
        return mean_dice(method, held_out, config.plan, config.predict)


def finish(
    site: Site, shared: Mapping[str, Tensor], protocol: Protocol, device: torch.device
) -> Outcome:
    """Give a site its network; segment and score its validation cases with it."""
    method, planned = own_network(site, shared, protocol), site.planned
    checkpoint.save(site.last, method, {}, {"iteration": protocol.total, "best": None})
    if not planned.split.val:
        return Outcome([], {})
    segment_validation(site.folder, planned, device)
    number = {case.name: str(n) for n, case in enumerate(planned.dataset.cases, 1)}
    rows = read_scores(site.folder / "validation.json")["cases"]
    folder = site.folder / "validation" / SUMMARY
    return Outcome(
        [{**row, "case": number[row["case"]]} for row in rows],
        {number[name]: read_numbers(folder / f"{name}.json") for name in planned.split.val},
    )
