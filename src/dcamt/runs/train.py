"""``dcamt train``: from a data set and a configuration to a finished run folder."""

import platform
import sys
import time
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import torch
from lightning_fabric import Fabric

from dcamt.config import Config
from dcamt.data.patches import Batches
from dcamt.data.prepare import without_label
from dcamt.data.split import Labels
from dcamt.distillation import Distilled
from dcamt.engine.device import check_sharing, choose_device, make_fabric
from dcamt.engine.launch import launch_processes
from dcamt.engine.signals import Interrupted
from dcamt.engine.together import Lost, follows, meet, started_by_torchrun, told_of_lost
from dcamt.engine.tracking import FOLDER, check_tracker, finish_tracking
from dcamt.engine.train import train
from dcamt.engine.transfer import read_start
from dcamt.errors import CannotHold, InputError
from dcamt.escape import printable
from dcamt.evaluation.calibration import calibrate
from dcamt.evaluation.evaluate import evaluate_files
from dcamt.files import alone, refuse_links, remove_temporary, write_json
from dcamt.inference.predict import LOWER, SUMMARY, Extras, predict_case
from dcamt.inference.predictor import make_predictor
from dcamt.inference.validate import mean_dice
from dcamt.memory import told_of_memory
from dcamt.methods.method import Method
from dcamt.processes import safe_path
from dcamt.records.run_folder import has_begun, refuse_existing_run, write_beginning
from dcamt.records.summary import CALIBRATION, read_numbers
from dcamt.reporting.report import write_report
from dcamt.runs.build import build_method, check_fit, check_trains, load_run
from dcamt.runs.init import KEY, find_weights, record_of, refuse_other_start, told_of_start
from dcamt.runs.plan import Planned, plan_run
from dcamt.runs.resume import refuse_changes, refuse_other_cases, reopen, with_processes
from dcamt.runs.teacher import taught_by

WRITTEN = ("log.csv", "tensorboard", FOLDER, "validation")
"""What is written in place or below; all else is moved into place, which replaces a link."""
LOWER_TRAINING = (
    "lower train.labeled_batch and train.unlabeled_batch, data.patch or network.width, or train "
    "with a coarser data.spacing, in another --out"
)
"""What to do where a training does not fit into memory."""
_VERSIONS = ("dcamt", "torch", "monai", "lightning-fabric", "numpy", "scipy", "nibabel")


def train_run(
    dataset: Path | None,
    out: Path,
    config: Config,
    splits: Path | None = None,
    labeled: Labels = None,
    resume: bool = False,
    quiet: bool = False,
    within: float | None = None,
    init: Path | None = None,
) -> Path:
    """Plan, prepare, train, segment the validation cases and write the report; returns ``out``.

    With ``resume`` a half-finished run goes on with its own configuration, and settings that
    contradict it are refused; otherwise a folder that holds anything is. ``labeled`` keeps so many
    labels, ``"all"`` every one there is, and ``"none"`` none, to pre-train. ``within`` so many
    seconds, the largest training that this machine finishes is chosen; a run that goes on keeps its
    size. ``init`` is a folder or a file of weights to start from. Raises InputError for anything
    the user can mend.

    Of several processes that torchrun started, each calls this; the first one plans and writes.
    """
    if follows():
        _follow(out, init)
    until = None if within is None else time.monotonic() + within
    begun = resume and has_begun(out)
    weights = None if init is None else find_weights(init)
    record = None if weights is None else record_of(weights)
    versions: dict[str, str] | None = None
    if begun:
        planned = reopen(out)
        if labeled != "none":
            check_trains(planned.config.method, out)
        refuse_changes(config, planned.config, out)
        refuse_other_cases(out, planned, dataset, splits, labeled)
        refuse_other_start(out, record)
        planned = with_processes(planned, config)
    elif dataset is None:
        raise InputError("no data set is named; give its folder")
    else:
        refuse_existing_run(out, resume)
        if resume and not quiet:
            print(f"{out}: nothing to resume there, a new run begins", file=sys.stderr)
        versions = versions_of(config)  # before the work: it refuses a device that is not there
        versions |= {} if record is None else {KEY: record}
        if labeled != "none":
            check_trains(config.method)
        planned = plan_run(dataset, config, splits, labeled, until)
        for warning in () if quiet else planned.warnings:
            print(printable(f"warning: {warning}"), file=sys.stderr)
        for note in () if quiet else planned.notes:
            print(printable(note), file=sys.stderr)
    if resume and (out / "last.safetensors").exists():
        weights = None  # the checkpoint rules
    told = [] if weights is None else told_of_start(weights, planned.config, planned.split)
    for line in () if quiet else told:
        print(printable(line), file=sys.stderr)
    return carry_out(out, planned, versions, resume, quiet, weights)


def carry_out(
    out: Path,
    planned: Planned,
    versions: dict[str, str] | None,
    resume: bool,
    quiet: bool,
    weights: Path | None = None,
    teacher: Path | None = None,
) -> Path:
    """Begin what is planned, or go on with it, to the report; returns ``out``.

    ``versions`` are what a new run notes, None for one that was begun. ``weights`` is a checkpoint
    to start from, ``teacher`` the run that teaches a distilled one.
    """
    check_tracker(planned.config.train)
    check_sharing(planned.config.train)
    with alone(out), safe_path():
        if versions is not None:
            refuse_existing_run(out, resume)  # another may have begun while this one planned
            write_beginning(
                out, planned.config, planned.split, planned.dataset, versions, planned.notes
            )
        return _train_and_report(out, planned, resume, quiet, weights, teacher)


def _follow(out: Path, init: Path | None) -> NoReturn:
    """What a process does that torchrun started beside the first one, which says what there is."""
    meet()
    planned = reopen(out)
    resume = (out / "last.safetensors").exists()
    weights = None if init is None or resume else find_weights(init)
    fabric = make_fabric(planned.config.device, planned.config.train.precision, together=True)
    fabric.launch()
    try:
        _train(fabric, planned, out, resume, True, weights, None)
    except (Interrupted, Lost) as error:
        raise SystemExit(error.exit_code) from None  # the first one says why
    raise SystemExit


def _train_and_report(
    out: Path,
    planned: Planned,
    resume: bool,
    quiet: bool,
    weights: Path | None,
    teacher: Path | None,
) -> Path:
    """Train in a run folder that has its configuration and split."""
    config = planned.config
    refuse_links(out, WRITTEN)
    remove_temporary(out)
    if resume and (out / "last.safetensors").exists():
        check_fit(config, out / "last.safetensors")
    fabric = make_fabric(config.device, config.train.precision, config.train.devices, True)
    work = partial(
        _train,
        planned=planned,
        out=out,
        resume=resume,
        quiet=quiet,
        weights=weights,
        teacher=teacher,
    )
    meet()
    if config.train.devices == 1 or started_by_torchrun():
        fabric.launch(work)
    else:
        launch_processes(fabric, work, out)
    if planned.split.val:
        segment_validation(out, planned, fabric.device)
    write_report(out, planned.dataset)
    finish_tracking(out, config.train)
    return out


@told_of_memory("this training does not fit", LOWER_TRAINING)
def _train(
    fabric: Fabric,
    planned: Planned,
    out: Path,
    resume: bool,
    quiet: bool,
    weights: Path | None,
    teacher: Path | None,
) -> None:
    """What each process does."""
    config, split = planned.config, planned.split
    ready = {case.name: case for case in planned.ready}
    method = build_method(config)
    if weights is not None:
        method.load_state_dict(read_start(weights, method).weights, strict=False)
    names = split.unlabeled
    if isinstance(method, Distilled) and teacher is not None:
        method.teacher = taught_by(teacher, fabric.device)
        names = (*split.labeled, *split.unlabeled)  # it teaches on every scan
    batches = make_batches(planned, method, names)
    held_out = [ready[name] for name in split.val]

    def validate(trained: Method) -> float:
        with fabric.autocast():
            return mean_dice(trained, held_out, config.plan, config.predict)

    with told_of_lost(out):
        train(
            method,
            batches,
            config.train,
            out,
            fabric,
            validate if held_out else None,
            resume=resume,
            quiet=quiet,
        )


def make_batches(
    planned: Planned, method: Method, unlabeled: Sequence[str], instead: int = 0
) -> Batches:
    """Batches of a run's labelled cases and of ``unlabeled`` ones.

    Without a labelled case the labelled stream shows these as well, with ``instead`` as the label
    of every voxel.
    """
    config, ready = planned.config, {case.name: case for case in planned.ready}
    others = [ready[name] for name in unlabeled]
    labeled = [ready[name] for name in planned.split.labeled]
    return Batches(
        labeled or [without_label(case, instead) for case in others],
        others,
        config.plan.patch,
        config.train,
        config.seed,
        config.plan.spacing,
        method.views,
    )


def segment_validation(run: Path, planned: Planned, device: torch.device) -> None:
    """Segment and score the validation cases with the last weights, as ``predict`` would.

    What the probabilities say of each case is calibrated with its score (calibration.json). A map
    of their entropy lies beside each segmentation, for the report.
    """
    config, method = load_run(run)
    dataset, folder = planned.dataset, run / "validation"
    predictor = make_predictor(method, config.plan, device)
    extras = Extras(summary=True, entropy=True)
    predictions, labels, numbers = {}, {}, {}
    for name in planned.split.val:
        case = dataset.case(name)
        assert case.label is not None
        predictions[name], labels[name] = folder / f"{name}.nii.gz", case.label
        with told_of_memory(f"{name}: cannot be segmented", LOWER):
            try:
                predict_case(predictor, config, case.images, predictions[name], extras)
            except CannotHold:
                predictions[name] = folder / f"{name}.nrrd"
                predict_case(predictor, config, case.images, predictions[name], extras)
        numbers[name] = read_numbers(folder / SUMMARY / f"{name}.json")
    names = dict(enumerate(config.plan.classes[1:], 1))
    scores = evaluate_files(predictions, labels, names, config.plan.ignore)
    write_json(calibrate(numbers, scores, len(names)), run / CALIBRATION)
    write_json(scores, run / "validation.json")


def versions_of(config: Config) -> dict[str, str]:
    """What a run is made with, by name; InputError for a device that is not there."""
    settings = config.train
    accelerator, precision = choose_device(config.device, settings.precision, settings.devices)
    device = torch.cuda.get_device_name() if accelerator == "cuda" else "CPU"
    return {
        **{name: version(name) for name in _VERSIONS},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": f"{device}, {torch.get_num_threads()} threads, {precision}",
    }
