"""``dcamt federate``: several sites train one network, and no scan leaves its site.

The sites are worked for one after another in this process. ``dcamt.federation`` says what goes
from one to the others, ``dcamt.runs.sites`` what happens at each.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from dcamt.config import Config
from dcamt.data.dataset import Dataset
from dcamt.data.outputs import refuse_within_dataset
from dcamt.data.split import Split
from dcamt.engine import checkpoint
from dcamt.engine.device import check_sharing, make_fabric
from dcamt.engine.log import TrainingLog
from dcamt.engine.precision import told_of_float32
from dcamt.engine.signals import catch_signals
from dcamt.engine.together import started_by_torchrun
from dcamt.engine.tracking import check_tracker
from dcamt.engine.trainer import Done, learning_rate
from dcamt.errors import InputError
from dcamt.escape import printable
from dcamt.evaluation.calibration import calibrate
from dcamt.evaluation.evaluate import scores_of
from dcamt.federation import Protocol, Update, average, batch_norm, refusal
from dcamt.files import alone, read_json, refuse_links, remove_temporary, same_folder, write_json
from dcamt.inference.predict import SUMMARY
from dcamt.memory import told_of_memory
from dcamt.methods.method import Method
from dcamt.processes import safe_path
from dcamt.records.run_folder import (
    RunConfig,
    has_begun,
    read_config,
    refuse_existing_run,
    write_beginning,
)
from dcamt.records.scores import CaseScore, read_scores
from dcamt.records.summary import CALIBRATION, CaseNumbers, read_numbers
from dcamt.reporting.report import write_report
from dcamt.runs.build import build_method, check_trains
from dcamt.runs.resume import refuse_changes, reopen
from dcamt.runs.sites import Site, begin, own_network, plan_sites, score, train_round
from dcamt.runs.train import LOWER_TRAINING, WRITTEN, segment_validation, versions_of

KEY = "federation"
"""In versions.json: the protocol, and what each site has."""


def federate_run(
    folders: Sequence[Path],
    out: Path,
    config: Config,
    protocol: Protocol,
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Agree on a plan, train in rounds, score the validation cases, write the report.

    Returns ``out``. With ``resume`` a half-finished run goes on with its own configuration. Raises
    InputError for anything the user can mend.
    """
    if started_by_torchrun():
        raise InputError("federate trains in one process; start it without torchrun")
    named = _names(folders)
    config = _configured(config, protocol)
    for folder in folders:
        refuse_within_dataset(out, folder)
    begun = resume and has_begun(out)
    if begun:
        shared = read_config(out)
        _refuse_other_sites(out, named)
        sites = [Site(n, _folder(out, n), reopen(_folder(out, n))) for n in named]
        _refuse_other_protocol(out, _record(sites, protocol))
        refuse_changes(config, shared, out)
    else:
        refuse_existing_run(out, resume)
        if resume and not quiet:
            print(f"{out}: nothing to resume there, a new run begins", file=sys.stderr)
        versions = versions_of(config)  # before the work: it refuses a device that is not there
        check_trains(config.method)
        shared, planned, summaries = plan_sites(named, config)
        sites = [Site(n, _folder(out, n), planned[n]) for n in named]
    check_tracker(shared.train)
    _check_strategy(shared, protocol)
    with alone(out), safe_path():
        if not begun:
            refuse_existing_run(out, resume)  # another may have begun while this one planned
            for site in sites:
                _tell_warnings(site, quiet)
                begin(site, versions, summaries[site.name])
            versions |= {KEY: _record(sites, protocol)}
            write_beginning(out, shared, _split(sites), _dataset(sites), versions)
        check_sharing(shared.train)
        refuse_links(out, (*WRITTEN, "sites"))
        remove_temporary(out)
        fabric = make_fabric(shared.device, shared.train.precision)
        fabric.launch()
        weights = _train(fabric, shared, sites, out, protocol, quiet)
        _finish(fabric, shared, sites, out, protocol, weights)
    return out


def _names(folders: Sequence[Path]) -> dict[str, Path]:
    """The folders by their own names."""
    named: dict[str, Path] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in named:
            raise InputError(
                f"{folder}: its name is that of {named[name]} as well; rename one of the folders"
            )
        named[name] = folder
    return named


def _configured(config: Config, protocol: Protocol) -> Config:
    """``config`` with the iterations of ``protocol``; InputError for what does not go together."""
    if protocol.rounds < 1 or protocol.iterations < 1:
        raise InputError("--rounds and --iterations: give whole numbers of at least 1")
    if protocol.proximal < 0:
        raise InputError(f"--proximal {protocol.proximal:g}: give a number of at least 0")
    if "iterations" in config.train.model_fields_set:
        raise InputError("train.iterations: --rounds and --iterations say how many; leave it out")
    if config.train.devices > 1:
        raise InputError("train.devices: a federation trains in one process; leave it out")
    train = config.train.model_copy(update={"iterations": protocol.total})
    return config.model_copy(update={"train": train})


def _check_strategy(config: RunConfig, protocol: Protocol) -> None:
    with torch.device("meta"):
        own = batch_norm(build_method(config))
    if protocol.strategy == "fedbn" and not own:
        raise InputError(
            f"--strategy fedbn: backbone {config.network.name} has no batch norm; choose fedavg or "
            "fedprox"
        )


def _folder(out: Path, name: str) -> Path:
    return out / "sites" / name


def _record(sites: Sequence[Site], protocol: Protocol) -> str:
    counts = [
        f"{site.name} ({len(split.labeled)} labelled, {len(split.unlabeled)} unlabelled)"
        for site in sites
        for split in [site.planned.split]
    ]
    return f"{protocol}; {', '.join(counts)}"


def _refuse_other_sites(out: Path, named: Mapping[str, Path]) -> None:
    """InputError unless ``named`` are the data sets that a run was begun with."""
    folder = out / "sites"
    kept = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    other = named.keys() ^ kept
    for name in named.keys() & kept:
        dataset = read_config(folder / name).dataset
        if dataset is None or not same_folder(dataset, named[name]):
            other.add(name)
    if other:
        raise InputError(
            f"{out}: was begun with other sites (see {sorted(other)[0]}); give those that lie in "
            f"{folder} by name, or start a new run in another --out"
        )


def _refuse_other_protocol(out: Path, record: str) -> None:
    kept = read_json(out / "versions.json").get(KEY)
    if kept != record:
        raise InputError(
            f"{out}: was begun as {kept}, not as {record}; give the same options, or start a new "
            "run in another --out"
        )


def _tell_warnings(site: Site, quiet: bool) -> None:
    for warning in () if quiet else site.planned.warnings:
        print(printable(f"warning: {site.name}: {warning}"), file=sys.stderr)


def _numbers(site: Site) -> dict[str, str]:
    """What cases of a site are called elsewhere: by numbers."""
    cases = site.planned.dataset.cases
    return {case.name: f"{site.name} {number}" for number, case in enumerate(cases, 1)}


def _split(sites: Sequence[Site]) -> Split:
    labeled, unlabeled, val = (
        [_numbers(site)[name] for site in sites for name in getattr(site.planned.split, part)]
        for part in ("labeled", "unlabeled", "val")
    )
    return Split(tuple(labeled), tuple(unlabeled), tuple(val))


def _dataset(sites: Sequence[Site]) -> Dataset:
    """What the run notes of its data: that they are of several sites."""
    licences = dict.fromkeys(s.planned.dataset.licence for s in sites if s.planned.dataset.licence)
    name = f"scans of {len(sites)} site(s)"
    return Dataset(Path(), name, (), (), None, (), licence="; ".join(licences))


@told_of_memory("this training does not fit", LOWER_TRAINING)
def _train(
    fabric: Fabric,
    config: RunConfig,
    sites: Sequence[Site],
    out: Path,
    protocol: Protocol,
    quiet: bool,
) -> dict[str, Tensor]:
    """All rounds that are left; returns the shared weights."""
    method, last, done, best = build_method(config), out / "last.safetensors", 0, None
    if last.exists():
        state = checkpoint.load(last, method)
        done, best = state["iteration"], state["best"]
    shared = {name: value.clone() for name, value in method.state_dict().items()}
    note = told_of_float32(config.train.precision, fabric)
    if note and not quiet:
        print(note, file=sys.stderr)
    stays = batch_norm(method) if protocol.strategy == "fedbn" else set()
    log = TrainingLog(out, protocol.total, done, quiet, tracker=config.train.tracker)
    with log, catch_signals() as stop:
        for since in range(done, protocol.total, protocol.iterations):
            until = since + protocol.iterations
            complete = until == protocol.total
            wanted = {n: v for n, v in shared.items() if complete or n not in stays}
            updates = _round(sites, shared, wanted, since, protocol, fabric, stop, log)
            shared |= average(updates)
            method.load_state_dict(shared)
            _note_losses(log, updates, config, since)
            every = config.train.validate_every
            if complete or (every and until // every > since // every):
                dice = _score(sites, shared, protocol, fabric)
                if dice is not None:
                    log.validation(dice)
                    if len(wanted) == len(shared) and (best is None or dice > best):
                        best = dice
                        state = {"iteration": until, "best": best}
                        checkpoint.save(out / "best.safetensors", method, {}, state)
            checkpoint.save(last, method, {}, {"iteration": until, "best": best})
            log.flush()
    return shared


def _round(
    sites: Sequence[Site],
    shared: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    since: int,
    protocol: Protocol,
    fabric: Fabric,
    stop: Sequence[int],
    log: TrainingLog,
) -> list[Update]:
    """What the sites send after one round; one that cannot be used is told and left out.

    Raises InputError if none can be used.
    """
    number, updates = since // protocol.iterations + 1, []
    for site in sites:
        try:
            update = train_round(site, shared, since, protocol, fabric, stop)
            why = refusal(update, wanted)
        except InputError as error:
            why = str(error)
        if why is None:
            updates.append(update)
        told = "is done" if why is None else f"is left out: {why}"
        line = f"round {number} of {protocol.rounds}: {site.name} {told}"
        log.bar.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
    if not updates:
        raise InputError(
            f"no site could be used in round {number} (the last: {why}); the round before is kept: "
            "lower train.learning_rate or check the scans, and use --resume"
        )
    return updates


def _note_losses(
    log: TrainingLog, updates: Sequence[Update], config: RunConfig, since: int
) -> None:
    """Add the mean over the sites of each term to the log, iteration by iteration."""
    names = [n for n in updates[0].losses if all(n in update.losses for update in updates)]
    total = sum(update.cases for update in updates)
    count = min(len(values) for update in updates for values in update.losses.values())
    for step in range(count):
        terms = {
            name: torch.tensor(sum(u.losses[name][step] * u.cases / total for u in updates))
            for name in names
        }
        rate = learning_rate(config.train, since + step)
        log.add(Done(since + step + 1, rate, terms, ()))


def _score(
    sites: Sequence[Site], shared: Mapping[str, Tensor], protocol: Protocol, fabric: Fabric
) -> float | None:
    """Mean Dice (fraction) over the validation cases of all sites; None if there are none."""
    counts = {site.name: len(site.planned.split.val) for site in sites}
    total = sum(counts.values())
    if not total:
        return None
    scored = (site for site in sites if counts[site.name])
    return sum(score(s, shared, protocol, fabric) * counts[s.name] / total for s in scored)


def _finish(
    fabric: Fabric,
    config: RunConfig,
    sites: Sequence[Site],
    out: Path,
    protocol: Protocol,
    shared: Mapping[str, Tensor],
) -> None:
    """Give every site its network, gather the scores of their validation, write the report."""
    rows: list[CaseScore] = []
    numbers: dict[str, CaseNumbers] = {}
    for site in sites:
        method: Method = own_network(site, shared, protocol)
        checkpoint.save(site.last, method, {}, {"iteration": protocol.total, "best": None})
        if not site.planned.split.val:
            continue
        segment_validation(site.folder, site.planned, fabric.device)
        elsewhere = _numbers(site)
        for row in read_scores(site.folder / "validation.json")["cases"]:
            rows.append({**row, "case": elsewhere[row["case"]]})
        for name in site.planned.split.val:
            found = read_numbers(site.folder / "validation" / SUMMARY / f"{name}.json")
            numbers[elsewhere[name]] = found
    if rows:
        scores = scores_of(rows, {"unit": "mm"})
        classes = len(config.plan.classes) - 1
        write_json(calibrate(numbers, scores, classes), out / CALIBRATION)
        write_json(scores, out / "validation.json")
    write_report(out)
