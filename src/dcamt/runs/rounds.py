"""A federation as the one sees it that leads it: a plan for all, rounds, the mean of the weights.

It knows the sites by what they tell (``dcamt.federation``), be they folders of this machine
(``dcamt.runs.federate``) or hospitals (``dcamt.runs.flower_server``).
"""

import secrets
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol as Interface

import torch
from torch import Tensor

from dcamt.config import Config, save_config
from dcamt.data.dataset import Dataset
from dcamt.data.split import Split
from dcamt.engine import checkpoint
from dcamt.engine.log import TrainingLog
from dcamt.engine.tracking import check_tracker, finish_tracking
from dcamt.engine.trainer import Done, learning_rate
from dcamt.errors import InputError
from dcamt.escape import printable
from dcamt.evaluation.calibration import calibrate
from dcamt.evaluation.evaluate import scores_of
from dcamt.federation import (
    Protocol,
    Ready,
    SiteSummary,
    SiteUpdate,
    average,
    mean_losses,
    refusal,
    stays,
)
from dcamt.files import (
    alone,
    atomic,
    read_json,
    read_text,
    refuse_links,
    remove_temporary,
    write_json,
)
from dcamt.memory import told_of_memory
from dcamt.methods.method import Method
from dcamt.privacy import noisy
from dcamt.processes import safe_path
from dcamt.records.run_folder import (
    CONFIG,
    FEDERATION,
    LEFT_OUT,
    RunConfig,
    has_begun,
    read_config,
    refuse_existing_run,
    write_first,
)
from dcamt.records.scores import CaseScore
from dcamt.records.summary import CALIBRATION, CaseNumbers
from dcamt.reporting.report import write_report
from dcamt.runs.build import build_method, check_trains
from dcamt.runs.federated_checks import check_protocol, check_travels, told_of_own_parts
from dcamt.runs.half import rounded
from dcamt.runs.joining import share_mirroring, share_plan
from dcamt.runs.resume import refuse_changes
from dcamt.runs.sites import Outcome
from dcamt.runs.train import LOWER_TRAINING, WRITTEN, versions_of

_SECRET = "noise.secret"
"""In the run folder, until training ends: what the noise is drawn from. It is never sent."""


class Sites(Interface):
    """The sites, each known by its name, in one order.

    ``look``, ``prepare``, ``begin`` and ``reopen`` raise InputError if one of the sites cannot do
    it. In ``train``, ``score`` and ``finish`` a site may be missing.
    """

    def look(self, config: Config) -> dict[str, SiteSummary]:
        """What each site tells of its scans."""
        ...

    def prepare(self, shared: RunConfig) -> dict[str, Ready]:
        """Let each site prepare its scans by the plan of all."""
        ...

    def begin(self, shared: RunConfig) -> None:
        """Let each site make its run folder."""
        ...

    def reopen(self, shared: RunConfig) -> dict[str, Ready]:
        """Let each site open the run folder that it made, to go on."""
        ...

    def train(
        self, shared: Mapping[str, Tensor], since: int
    ) -> Iterator[tuple[str, SiteUpdate | InputError]]:
        """What each site sends after a round that begins when ``since`` iterations are done."""
        ...

    def score(self, shared: Mapping[str, Tensor]) -> dict[str, float]:
        """Mean Dice (fraction) of each site that has validation cases."""
        ...

    def finish(self, shared: Mapping[str, Tensor]) -> dict[str, Outcome]:
        """Give each site its network; what it tells of its validation cases."""
        ...


def lead(
    sites: Sites,
    out: Path,
    config: Config,
    protocol: Protocol,
    resume: bool = False,
    quiet: bool = False,
) -> None:
    """Agree on a plan, train in rounds, gather the scores, write the run folder ``out``.

    With ``resume`` a half-finished run goes on with its own configuration. Raises InputError for
    anything the user can mend.
    """
    check_protocol(config, protocol)
    train = config.train.model_copy(update={"iterations": protocol.total})
    config = config.model_copy(update={"train": train})
    versions: dict[str, str] | None = None
    if resume and has_begun(out):
        shared = read_config(out)
        ready = sites.reopen(shared)
        _refuse_other_protocol(out, _record(ready, protocol))
        refuse_changes(config, shared, out)
    else:
        refuse_existing_run(out, resume)
        if resume and not quiet:
            print(f"{out}: nothing to resume there, a new run begins", file=sys.stderr)
        versions = versions_of(config)  # before the work: it refuses a device that is not there
        check_trains(config.method)
        shared = share_plan(config, sites.look(config))
        ready = sites.prepare(shared)
        shared = share_mirroring(shared, ready)
    check_tracker(shared.train)
    check_travels(shared, protocol)
    if not quiet and (warning := told_of_own_parts(ready, protocol)):
        print(printable(f"warning: {warning}"), file=sys.stderr)
    if protocol.noise and not quiet:
        print(
            f"privacy of each site in the weights: {protocol.privacy}; docs/federated.md says what "
            "that does not cover",
            file=sys.stderr,
        )
    with alone(out), safe_path():
        if versions is not None:
            refuse_existing_run(out, resume)  # another may have begun while this one planned
            versions |= {FEDERATION: _record(ready, protocol)}
            write_first(out, _split(ready), _dataset(ready), versions)
            sites.begin(shared)
            save_config(shared, out / CONFIG)
        refuse_links(out, (*WRITTEN, "sites"))
        remove_temporary(out)
        cases = {name: len(one.val) for name, one in ready.items()}
        weights = _train(sites, shared, cases, out, protocol, quiet)
        _finish(sites.finish(weights), shared, out)


def _record(ready: Mapping[str, Ready], protocol: Protocol) -> str:
    counts = [
        f"{name} ({len(one.labeled)} labelled, {len(one.unlabeled)} unlabelled)"
        for name, one in ready.items()
    ]
    return f"{protocol}; {', '.join(counts)}"


def _refuse_other_protocol(out: Path, record: str) -> None:
    kept = read_json(out / "versions.json").get(FEDERATION)
    if kept != record:
        raise InputError(
            f"{out}: was begun as {kept}, not as {record}; give the same options, or start a new "
            "run in another --out"
        )


def _split(ready: Mapping[str, Ready]) -> Split:
    """The cases of all sites, each by the name of its site and its number."""
    labeled, unlabeled, val = (
        [f"{name} {number}" for name, one in ready.items() for number in getattr(one, part)]
        for part in ("labeled", "unlabeled", "val")
    )
    return Split(tuple(labeled), tuple(unlabeled), tuple(val))


def _dataset(ready: Mapping[str, Ready]) -> Dataset:
    """What the run notes of its data: that they are of several sites."""
    licences = dict.fromkeys(one.licence for one in ready.values() if one.licence)
    name = f"scans of {len(ready)} site(s)"
    return Dataset(Path(), name, (), (), None, (), licence="; ".join(licences))


@told_of_memory("this training does not fit", LOWER_TRAINING)
def _train(
    sites: Sites,
    config: RunConfig,
    cases: Mapping[str, int],
    out: Path,
    protocol: Protocol,
    quiet: bool,
) -> dict[str, Tensor]:
    """All rounds that are left; returns the shared weights. ``cases``: for validation, by site."""
    method, last, done, best = build_method(config), out / "last.safetensors", 0, None
    left_out: Counter[str] = Counter()  # rounds without a site, by its name
    if last.exists():
        state = checkpoint.load(last, method, {})
        done, best = state["iteration"], state["best"]
        left_out.update(state.get("left_out", {}))
    elif protocol.half:
        method.load_state_dict(rounded(method.state_dict()))
    shared, own = _weights(method), stays(method, protocol)
    log = TrainingLog(out, protocol.total, done, quiet, tracker=config.train.tracker)
    with log:
        for since in range(done, protocol.total, protocol.iterations):
            until = since + protocol.iterations
            complete = until == protocol.total
            part = {name: value for name, value in shared.items() if name not in own}
            sent = shared if since == 0 or complete else part
            wanted = shared if complete else part
            updates, missing = _round(sites.train(sent, since), wanted, since, protocol, log)
            left_out.update(missing)
            method.load_state_dict(shared | _mean(updates, since, protocol, out))
            shared = _weights(method)
            _note_losses(log, updates, config, since, protocol.iterations)
            every = config.train.validate_every
            if complete or (every and until // every > since // every):
                dice = _mean_dice(sites.score({name: shared[name] for name in part}), cases)
                if dice is not None:
                    log.validation(dice)
                    if len(wanted) == len(shared) and (best is None or dice > best):
                        best = dice
                        state = {"iteration": until, "best": best}
                        checkpoint.save(out / "best.safetensors", method, {}, state)
            log.flush()  # first, so that a kill in between costs no row
            state = {"iteration": until, "best": best, "left_out": left_out}
            checkpoint.save(last, method, {}, state)
    (out / _SECRET).unlink(missing_ok=True)
    if left_out:
        told = [f"{name} in {n} of {protocol.rounds} rounds" for name, n in left_out.items()]
        versions = out / "versions.json"
        write_json({**read_json(versions), LEFT_OUT: "; ".join(told)}, versions)
    return shared


def _weights(method: Method) -> dict[str, Tensor]:
    """A copy of the weights. Of one weight that has two names both values are the same."""
    return {name: value.clone() for name, value in method.state_dict().items()}


def _mean(
    updates: Sequence[SiteUpdate], since: int, protocol: Protocol, out: Path
) -> dict[str, Tensor]:
    """The mean of the sites' weights, with noise or rounded if the protocol says so."""
    mean = average(updates)
    if protocol.noise:
        sites = sum(update.cases for update in updates)  # each counts as one
        deviation = protocol.noise * protocol.clip / sites
        mean = noisy(mean, deviation, _secret(out), since // protocol.iterations + 1)
    return rounded(mean) if protocol.half else mean


def _secret(out: Path) -> bytes:
    """What the noise of this run is drawn from, made in its first round."""
    path = out / _SECRET
    if not path.exists():
        with atomic(path) as temporary:
            temporary.touch(0o600)
            temporary.write_text(secrets.token_hex(32))
    return read_text(path).encode()


def _round(
    sent: Iterator[tuple[str, SiteUpdate | InputError]],
    wanted: Mapping[str, Tensor],
    since: int,
    protocol: Protocol,
    log: TrainingLog,
) -> tuple[list[SiteUpdate], list[str]]:
    """The updates of one round, and the sites left out, as their update cannot be used.

    Raises InputError if none can be used.
    """
    number, updates, missing, why = since // protocol.iterations + 1, [], [], None
    for name, update in sent:
        why = str(update) if isinstance(update, InputError) else refusal(update, wanted)
        if why is None and isinstance(update, SiteUpdate):
            updates.append(update)
        else:
            missing.append(name)
        told = "is done" if why is None else f"is left out: {why}"
        line = f"round {number} of {protocol.rounds}: {name} {told}"
        if log.bar.console.quiet and why is not None:
            print(printable(line), file=sys.stderr)  # nobody may miss it
        log.bar.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
    if not updates:
        raise InputError(
            f"no site could be used in round {number} (the last: {why}); the round before is kept: "
            "lower train.learning_rate or check the scans, and use --resume"
        )
    return updates, missing


def _note_losses(
    log: TrainingLog, updates: Sequence[SiteUpdate], config: RunConfig, since: int, iterations: int
) -> None:
    """Add the mean over the sites of each term to the log, iteration by iteration.

    Sites that tell no losses leave a row for each iteration without any.
    """
    means = mean_losses([(update.losses, update.cases) for update in updates])
    rows = zip(*means.values(), strict=True) if means else [()] * iterations
    for step, values in enumerate(rows):
        terms = {name: torch.tensor(value) for name, value in zip(means, values, strict=True)}
        rate = learning_rate(config.train, since + step)
        log.add(Done(since + step + 1, rate, terms, ()))


def _mean_dice(found: Mapping[str, float], cases: Mapping[str, int]) -> float | None:
    """Mean Dice (fraction) over the validation cases of the sites; None if there are none."""
    total = sum(cases[name] for name in found)
    return sum(dice * cases[name] / total for name, dice in found.items()) if total else None


def _finish(outcomes: Mapping[str, Outcome], config: RunConfig, out: Path) -> None:
    """Put the scores of the sites together, and write the report."""
    rows: list[CaseScore] = []
    numbers: dict[str, CaseNumbers] = {}
    for name, outcome in outcomes.items():
        rows += [{**row, "case": f"{name} {row['case']}"} for row in outcome.scores]
        numbers |= {f"{name} {number}": found for number, found in outcome.numbers.items()}
    if rows:
        scores = scores_of(rows, {"unit": "mm"})
        classes = len(config.plan.classes) - 1
        write_json(calibrate(numbers, scores, classes), out / CALIBRATION)
        write_json(scores, out / "validation.json")
    write_report(out)
    finish_tracking(out, config.train)
