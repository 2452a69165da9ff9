"""``dcamt train``: from a data set and a configuration to a finished run folder."""

import json
import platform
import sys
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric

from dcamt.config import Config, MethodConfig, load_config, save_config
from dcamt.data.dataset import Dataset, read_dataset
from dcamt.data.patches import Batches
from dcamt.data.prepare import Prepared, prepare
from dcamt.data.split import Split, choose_split, hide_labels
from dcamt.data.survey import survey
from dcamt.engine.launch import launch_processes
from dcamt.engine.train import check_sharing, choose_device, make_fabric, train
from dcamt.errors import CannotHold, InputError, first_of
from dcamt.escape import printable
from dcamt.evaluation.evaluate import evaluate_files, write_json
from dcamt.files import (
    alone,
    holds,
    read_json,
    refuse_links,
    remove_temporary,
    same_folder,
    write_text,
)
from dcamt.inference.predict import LOWER, predict_case
from dcamt.inference.predictor import Predictor, make_predictor
from dcamt.inference.sliding_window import branch_probabilities, window_overlap
from dcamt.memory import told_of_memory
from dcamt.methods.method import Method
from dcamt.processes import safe_path
from dcamt.reporting.report import write_report
from dcamt.runs.build import (
    build_method,
    check_fit,
    check_networks,
    load_run,
    network_stride,
    resolve_method,
    resolve_network,
)
from dcamt.types import IGNORE

_WRITTEN = ("log.csv", "tensorboard", "validation")
"""What is written in place or below; all else is moved into place, which replaces a link."""
_LOWER = (
    "lower train.labeled_batch and train.unlabeled_batch, data.patch or network.width, or train "
    "with a coarser data.spacing, in another --out"
)
"""What to do where a training does not fit into memory."""
_VERSIONS = ("dcamt", "torch", "monai", "lightning-fabric", "numpy", "scipy", "nibabel")


@dataclass(frozen=True)
class Planned:
    """A run before its first iteration.

    dataset: without what the split hides. ready: its cases, prepared. warnings: what a user should
    know.
    """

    config: Config
    split: Split
    dataset: Dataset
    ready: tuple[Prepared, ...]
    warnings: tuple[str, ...] = ()


def train_run(
    dataset: Path | None,
    out: Path,
    config: Config,
    splits: Path | None = None,
    labeled: int | Literal["all"] | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Plan, prepare, train, segment the validation cases and write the report; returns ``out``.

    With ``resume`` a half-finished run goes on with its own configuration, and settings that
    contradict it are refused; otherwise a folder that holds anything is. ``labeled`` keeps so many
    labels, ``"all"`` every one there is. Raises InputError for anything the user can mend.
    """
    begun = resume and (out / "config.yaml").exists()
    if begun:
        planned = _read_run(out)
        refuse_changes(config, planned.config, out)
        _refuse_other_cases(out, planned, dataset, splits, labeled)
    elif dataset is None:
        raise InputError("no data set is named; give its folder")
    else:
        _refuse_existing(out, resume)
        if resume and not quiet:
            print(f"{out}: nothing to resume there, a new run begins", file=sys.stderr)
        versions = _versions(config)  # before the work: it refuses a device that is not there
        planned = plan_run(dataset, config, splits, labeled)
        for warning in () if quiet else planned.warnings:
            print(printable(f"warning: {warning}"), file=sys.stderr)
    with alone(out), safe_path():
        if not begun:
            _refuse_existing(out, resume)  # another may have begun while this one planned
            data = {"name": planned.dataset.name, "licence": planned.dataset.licence}
            write_text(out / "versions.json", json.dumps(versions, indent=1))
            write_text(out / "data.json", json.dumps(data, indent=1))
            write_text(out / "split.json", json.dumps(asdict(planned.split), indent=1))
            save_config(planned.config, out / "config.yaml")
        return _train_and_report(out, planned, resume, quiet)


def _train_and_report(out: Path, planned: Planned, resume: bool, quiet: bool) -> Path:
    """Train in a run folder that has its configuration and split."""
    config = planned.config
    check_sharing(config.train)
    refuse_links(out, _WRITTEN)
    remove_temporary(out)
    if resume and (out / "last.safetensors").exists():
        check_fit(config, out / "last.safetensors")
    fabric = make_fabric(config.device, config.train.precision, config.train.devices)
    work = partial(_train, planned=planned, out=out, resume=resume, quiet=quiet)
    if config.train.devices == 1:
        fabric.launch(work)
    else:
        launch_processes(fabric, work, out)
    if planned.split.val:
        _segment_validation(out, planned, fabric.device)
    write_report(out, planned.dataset)
    return out


@told_of_memory("this training does not fit", _LOWER)
def _train(fabric: Fabric, planned: Planned, out: Path, resume: bool, quiet: bool) -> None:
    """What each process does."""
    config, split = planned.config, planned.split
    assert config.plan is not None
    ready = {case.name: case for case in planned.ready}
    batches = Batches(
        [ready[name] for name in split.labeled],
        [ready[name] for name in split.unlabeled],
        config.plan.patch,
        config.train,
        config.seed,
        config.plan.spacing,
    )
    held_out = [ready[name] for name in split.val]

    def validate(trained: Method) -> float:
        with fabric.autocast():
            return mean_dice(trained, held_out, config)

    train(
        build_method(config),
        batches,
        config.train,
        out,
        fabric,
        validate if held_out else None,
        resume=resume,
        quiet=quiet,
    )


def _segment_validation(run: Path, planned: Planned, device: torch.device) -> None:
    """Segment and score the validation cases with the last weights, as ``predict`` would."""
    config, method = load_run(run)
    assert config.plan is not None
    dataset, folder = planned.dataset, run / "validation"
    predictor = make_predictor(method, config.plan, device)
    predictions, labels = {}, {}
    for name in planned.split.val:
        case = dataset.case(name)
        assert case.label is not None
        predictions[name], labels[name] = folder / f"{name}.nii.gz", case.label
        with told_of_memory(f"{name}: cannot be segmented", LOWER):
            try:
                predict_case(predictor, config, case.images, predictions[name])
            except CannotHold:
                predictions[name] = folder / f"{name}.nrrd"
                predict_case(predictor, config, case.images, predictions[name])
    names = dict(enumerate(config.plan.classes[1:], 1))
    scores = evaluate_files(predictions, labels, names, config.plan.ignore)
    write_json(scores, run / "validation.json")


def mean_dice(method: Method, cases: list[Prepared], config: Config) -> float:
    """Mean over cases and classes of Dice (fraction) on the prepared grid."""
    assert config.plan is not None
    # Not folded: the weights have moved since the last validation, and move on after this one.
    predictor = Predictor(method.eval().branches, next(method.parameters()).device)
    scores = []
    for case in cases:
        image = torch.from_numpy(np.array(case.image))
        classes = len(config.plan.classes)
        found = branch_probabilities(
            predictor, image, config.plan.patch, classes, config.predict, mean=True
        )
        guess, label = found[0].argmax(0).numpy(), case.label
        for k in range(1, classes):
            a, b = (guess == k) & (label != IGNORE), label == k
            if a.any() or b.any():
                scores.append(2 * float((a & b).sum()) / float(a.sum() + b.sum()))
    return float(np.mean(scores)) if scores else 0.0


def _refuse_existing(out: Path, resume: bool) -> None:
    """InputError unless ``out`` is empty, or holds what a run killed while it began left."""
    held, first = holds(out), {"versions.json", "data.json", "split.json"}
    if held and not (resume and "versions.json" in held and held <= first):
        raise InputError(
            f"{out}: exists already; choose another --out, or continue a run with --resume"
        )


@told_of_memory("the scans do not fit", "crop them, or set a coarser data.spacing")
def plan_run(
    dataset: Path,
    config: Config,
    splits: Path | None,
    labeled: int | Literal["all"] | None,
) -> Planned:
    """A run with everything filled in; writes nothing but the cache.

    Raises InputError for whatever would keep the run from training.
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
    stride = partial(network_stride, config)
    seen = survey(visible, training, config.data, plan=config.plan, stride=stride, keep=True)
    if seen.plan is None:
        raise first_of(seen.errors)
    window_overlap(seen.plan.patch, config.predict)  # refuses a stride that skips voxels
    resolved = {"plan": seen.plan, "method": method, "network": network}
    config = config.model_copy(update={"dataset": dataset.resolve(), **resolved})
    check_networks(config)
    ready = prepare(visible.cases, seen.plan, seen.kept)
    return Planned(config, split, seen.dataset, tuple(ready), tuple(seen.warnings))


def _read_run(run: Path) -> Planned:
    """A run that was begun; InputError if its data set has not all that it needs any more."""
    config = load_config(run / "config.yaml")
    if config.plan is None or config.dataset is None:
        raise InputError(f"{run}/config.yaml: has no plan or no data set; start a new run")
    if not config.dataset.is_dir():
        raise InputError(
            f"{run}: its data set {config.dataset} is not there any more; put it or a link back"
        )
    dataset = read_dataset(config.dataset)
    labels = {case.name: case.label for case in dataset.cases}
    values = read_json(run / "split.json")
    lists = {key: tuple(names) for key, names in values.items() if isinstance(names, list)}
    try:
        split = Split(**lists)
        whole = lists.keys() == values.keys() and labels.keys() >= {*chain(*lists.values())}
    except TypeError:  # other lists, or what no list of names holds
        whole = False
    if not whole:
        raise InputError(
            f"{run}/split.json: is broken or names cases that {config.dataset} does not have; "
            "start a new run"
        )
    for name in (*split.labeled, *split.val, *split.test):
        if labels[name] is None:
            raise InputError(
                f"{config.dataset}: case {name} has lost its label, which the run began with; put "
                "it back, or start a new run"
            )
    visible = hide_labels(dataset, split)
    return Planned(config, split, visible, tuple(prepare(visible.cases, config.plan)))


def refuse_changes(asked: Config, kept: Config, run: Path) -> None:
    """InputError if a value that ``asked`` was given differs from the one the run began with."""

    def compare(new: dict[str, Any], old: dict[str, Any], prefix: str) -> None:
        for key, value in new.items():
            if isinstance(value, dict) and isinstance(old.get(key), dict):
                compare(value, old[key], f"{prefix}{key}.")
            elif value != old.get(key):
                raise InputError(
                    f"{run}: was begun with {prefix}{key} = {old.get(key)}, not {value}; leave the "
                    "option out to resume, or start a new run in another --out"
                )

    values = asked.model_dump(mode="json", exclude_unset=True)
    method = values.get("method", {})
    if method.get("name", kept.method.name) == kept.method.name:
        # As the method reads them: YAML takes 1e-05 for text, and the run has a number.
        given = MethodConfig.model_validate({**method, "name": kept.method.name})
        resolved = resolve_method(given).model_dump(mode="json")
        values["method"] = {key: resolved[key] for key in method}
    compare(values, kept.model_dump(mode="json"), "")


def _refuse_other_cases(
    run: Path,
    planned: Planned,
    dataset: Path | None,
    splits: Path | None,
    labeled: int | Literal["all"] | None,
) -> None:
    """InputError if a run is to go on with another data set, or with other cases of it."""
    kept, split = planned.config, planned.split
    assert kept.dataset is not None
    if dataset is not None and not same_folder(dataset, kept.dataset):
        raise InputError(
            f"{run}: was begun with the data set {kept.dataset}, not {dataset}; give that one, or "
            "start a new run in another --out"
        )
    if splits is not None:
        found = read_dataset(kept.dataset)
        asked = choose_split(found, splits, labeled, kept.seed, kept.data.val_fraction)
        same = all(set(names) == set(getattr(split, use)) for use, names in asdict(asked).items())
    elif labeled == "all":
        found = read_dataset(kept.dataset)
        same = all(found.case(name).label is None for name in split.unlabeled)
    else:  # cases may have been added since they were drawn
        same = labeled is None or labeled == len(split.labeled)
    if not same:
        raise InputError(
            f"{run}: was begun with other cases; leave out --splits and --labeled to resume, or "
            "start a new run in another --out"
        )


def _versions(config: Config) -> dict[str, str]:
    settings = config.train
    accelerator, precision = choose_device(config.device, settings.precision, settings.devices)
    device = torch.cuda.get_device_name() if accelerator == "cuda" else "CPU"
    return {
        **{name: version(name) for name in _VERSIONS},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": f"{device}, {torch.get_num_threads()} threads, {precision}",
    }
