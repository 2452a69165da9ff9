"""``dcamt train``: from a data set and a configuration to a finished run folder."""

import json
import multiprocessing
import os
import platform
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from dcamt.config import Config, MethodConfig, Section, load_config, save_config, validated
from dcamt.data.dataset import find_classes, read_dataset, read_json
from dcamt.data.patches import Batches
from dcamt.data.plan import fingerprint, make_plan
from dcamt.data.prepare import Prepared, prepare
from dcamt.data.split import Split, choose_split, hide_labels
from dcamt.engine import checkpoint
from dcamt.engine.train import (
    Interrupted,
    catch_signals,
    check_sharing,
    choose_device,
    make_fabric,
    train,
)
from dcamt.errors import InputError, Unwritable
from dcamt.evaluation.evaluate import evaluate, write_json
from dcamt.files import alone, holds, refuse_links, remove_temporary, write_text
from dcamt.inference.predict import LOWER, predict_case
from dcamt.inference.predictor import Predictor, make_predictor
from dcamt.inference.sliding_window import branch_probabilities, window_overlap
from dcamt.losses.overlap import IGNORE
from dcamt.memory import told_of_memory
from dcamt.methods import METHODS
from dcamt.methods.method import Method
from dcamt.networks.vnet import STRIDE, VNet
from dcamt.reporting.report import write_report

_WRITTEN = ("log.csv", "tensorboard", "validation")
"""What is written in place or below; all else is moved into place, which replaces a link."""
_LOWER = (
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
        asked = config
        config, split = _read_run(out)
        refuse_changes(asked, config, out)
        _refuse_other_cases(out, config, split, dataset, splits, labeled)
    elif dataset is None:
        raise InputError("no data set is named; give its folder")
    else:
        _refuse_existing(out, resume)
        if resume and not quiet:
            print(f"{out}: nothing to resume there, a new run begins", file=sys.stderr)
        versions = _versions(config)  # before the work: it refuses a device that is not there
        config, split = plan_run(dataset, config, splits, labeled)
    with alone(out):
        if not begun:
            _refuse_existing(out, resume)  # another may have begun while this one planned
            write_text(out / "split.json", json.dumps(asdict(split), indent=1))
            write_text(out / "versions.json", json.dumps(versions, indent=1))
            save_config(config, out / "config.yaml")
        return _train_and_report(out, config, split, resume, quiet)


def _train_and_report(out: Path, config: Config, split: Split, resume: bool, quiet: bool) -> Path:
    """Train in a run folder that has its configuration and split."""
    check_sharing(config.train)
    refuse_links(out, _WRITTEN)
    remove_temporary(out)
    if resume and (out / "last.safetensors").exists():
        check_fit(config, out / "last.safetensors")
    fabric = make_fabric(config.device, config.train.precision, config.train.devices)
    work = partial(_train, config=config, split=split, out=out, resume=resume, quiet=quiet)
    if config.train.devices == 1:
        fabric.launch(work)
    else:
        _launch_processes(fabric, work, out)
    if split.val:
        _segment_validation(out, split, fabric.device)
    write_report(out)
    return out


def _launch_processes(fabric: Fabric, work: Callable[[Fabric], None], out: Path) -> None:
    """Do ``work`` in several processes, which get the signal that this one gets.

    A second signal ends them. Raises Interrupted after a signal, and InputError for that of a
    process and if one died.
    """

    def pass_on(received: list[int]) -> None:
        processes = multiprocessing.active_children()
        if len(received) > 1 or not processes:
            for process in processes:
                process.kill()
            raise Interrupted(received[-1])
        for process in processes if os.name == "posix" else ():  # Windows tells them itself
            if process.pid is not None:
                os.kill(process.pid, received[-1])

    with catch_signals(pass_on) as stop:
        try:
            fabric.launch(partial(_interruptible, work))
        except (ProcessRaisedException, ProcessExitedException) as error:
            kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
            name = kind.rpartition(".")[2]
            if name in (InputError.__name__, Unwritable.__name__):
                raise InputError(message) from None
            if name == Interrupted.__name__:
                raise Interrupted(stop[0] if stop else signal.SIGTERM) from None
            if isinstance(error, ProcessRaisedException):
                raise
            if stop:
                raise Interrupted(stop[0]) from None
            raise InputError(
                f"{out}: one of the training processes died; continue with --resume"
            ) from None
    if stop:  # it came too late to be seen, and the rest of the run is still to do
        raise Interrupted(stop[0])


def _interruptible(work: Callable[[Fabric], None], fabric: Fabric) -> None:
    """Ctrl-C before the first iteration ends a process with an error, which the others hear of."""
    try:
        work(fabric)
    except KeyboardInterrupt:
        raise Interrupted(signal.SIGINT) from None


@told_of_memory("this training does not fit", _LOWER)
def _train(
    fabric: Fabric, config: Config, split: Split, out: Path, resume: bool, quiet: bool
) -> None:
    """What each process does."""
    assert config.plan is not None and config.dataset is not None
    visible = hide_labels(read_dataset(config.dataset), split)
    ready = {case.name: case for case in prepare(visible.cases, config.plan)}
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


def _segment_validation(run: Path, split: Split, device: torch.device) -> None:
    """Segment and score the validation cases with the last weights, as ``predict`` would."""
    config, method = load_run(run)
    assert config.dataset is not None and config.plan is not None
    dataset, folder = read_dataset(config.dataset), run / "validation"
    predictor = make_predictor(method, config.plan, device)
    for name in split.val:
        with told_of_memory(f"{name}: cannot be segmented", LOWER):
            predict_case(predictor, config, dataset.case(name).images, folder / f"{name}.nii.gz")
    write_json(evaluate(folder, config.dataset), run / "validation.json")


def build_method(config: Config) -> Method:
    """The configured method with weights drawn from the run's seed; InputError if unknown."""
    assert config.plan is not None
    options = _method_options(config.method)
    network = partial(
        VNet,
        len(config.plan.channels),
        len(config.plan.classes),
        config.network.width,
        dropout=config.network.dropout,
    )
    torch.manual_seed(config.seed)
    return METHODS[config.method.name](options, network)


def resolve_method(method: MethodConfig) -> MethodConfig:
    """``method`` with every option it has; InputError if the name or an option is unknown."""
    options = _method_options(method).model_dump(mode="json")
    return MethodConfig.model_validate({"name": method.name, **options})


def _method_options(method: MethodConfig) -> Section:
    if method.name not in METHODS:
        known = ", ".join(sorted(METHODS))
        raise InputError(f"method {method.name[:50]!r} is unknown; known methods: {known}")
    return validated(METHODS[method.name].Config, method.options, f"method {method.name}")


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


def load_run(run: Path, weights: str = "last") -> tuple[Config, Method]:
    """A trained run: its configuration and its method with ``last`` or ``best`` weights."""
    if not (run / "config.yaml").is_file():
        raise InputError(f"{run}: is not a run folder (no config.yaml); give one of `dcamt train`")
    config = load_config(run / "config.yaml")
    if config.plan is None:
        raise InputError(f"{run}/config.yaml: has no plan; give a run that `dcamt train` wrote")
    check_fit(config, run / f"{weights}.safetensors")
    method = build_method(config)
    checkpoint.load(run / f"{weights}.safetensors", method)
    return config, method


def check_fit(config: Config, weights: Path) -> None:
    """InputError unless ``weights`` hold just what ``config`` describes.

    Told from shapes alone: a stranger's configuration may describe a network of any size.
    """
    assert config.plan is not None
    if any(size % STRIDE for size in config.plan.patch):
        raise InputError(f"{weights.parent}/config.yaml: plan.patch is no multiple of {STRIDE}")
    try:
        with torch.device("meta"):
            method = build_method(config)
    except (RuntimeError, ValueError, OverflowError, TypeError, MemoryError):
        raise InputError(
            f"{weights.parent}/config.yaml: describes a network that cannot be built"
        ) from None
    checkpoint.check(weights, method)


def _refuse_existing(out: Path, resume: bool) -> None:
    """InputError unless ``out`` is empty, or holds what a run killed while it began left."""
    if holds(out) - ({"split.json", "versions.json"} if resume else set()):
        raise InputError(
            f"{out}: exists already; choose another --out, or continue a run with --resume"
        )


@told_of_memory("the scans do not fit", "crop them, or set a coarser data.spacing")
def plan_run(
    dataset: Path,
    config: Config,
    splits: Path | None,
    labeled: int | Literal["all"] | None,
) -> tuple[Config, Split]:
    """The configuration with everything filled in, and the split; writes nothing but the cache.

    Raises InputError for whatever would keep the run from training.
    """
    method = resolve_method(config.method)
    found = read_dataset(dataset)
    split = choose_split(found, splits, labeled, config.seed, config.data.val_fraction)
    visible = find_classes(hide_labels(found, split))
    training = [visible.case(name) for name in (*split.labeled, *split.unlabeled)]
    _check_enough(split, config)
    plan = make_plan(visible, fingerprint(visible, training, config.data), config.data)
    _check_statistics(plan.patch, config)
    window_overlap(plan.patch, config.predict)  # refuses a stride that skips voxels
    config = config.model_copy(
        update={"dataset": dataset.resolve(), "plan": plan, "method": method}
    )
    ready = prepare(visible.cases, plan)
    _check_classes([case for case in ready if case.name in split.labeled], plan.classes)
    return config, split


def _read_run(run: Path) -> tuple[Config, Split]:
    config = load_config(run / "config.yaml")
    if config.plan is None or config.dataset is None:
        raise InputError(f"{run}/config.yaml: has no plan or no data set; start a new run")
    if not config.dataset.is_dir():
        raise InputError(
            f"{run}: its data set {config.dataset} is not there any more; put it or a link back"
        )
    try:
        values = read_json(run / "split.json")
        lists = {key: tuple(names) for key, names in values.items() if isinstance(names, list)}
        split = Split(**lists)
        known = {case.name: case for case in read_dataset(config.dataset).cases}
        if lists.keys() == values.keys() and known.keys() >= {*chain(*lists.values())}:
            for name in (*split.labeled, *split.val, *split.test):
                if known[name].label is None:
                    raise InputError(
                        f"{config.dataset}: case {name} has lost its label, which the run began "
                        "with; put it back, or start a new run"
                    )
            return config, split
    except TypeError:  # other lists, or what no list of names holds
        pass
    raise InputError(
        f"{run}/split.json: is broken or names cases that {config.dataset} does not have; start a "
        "new run"
    )


def refuse_changes(asked: Config, kept: Config, run: Path) -> None:
    """InputError if a value that ``asked`` was given differs from the one the run began with."""

    def compare(new: dict[str, Any], old: dict[str, Any], prefix: str) -> None:
        for key, value in new.items():
            if isinstance(value, dict):
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
    kept: Config,
    split: Split,
    dataset: Path | None,
    splits: Path | None,
    labeled: int | Literal["all"] | None,
) -> None:
    """InputError if a run is to go on with another data set, or with other cases of it."""
    assert kept.dataset is not None
    if dataset is not None and not (dataset.exists() and dataset.samefile(kept.dataset)):
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


def _check_enough(split: Split, config: Config) -> None:
    for have, want, key in (
        (len(split.labeled), config.train.labeled_batch, "labeled"),
        (len(split.unlabeled or split.labeled), config.train.unlabeled_batch, "unlabeled"),
    ):
        if have < want:
            raise InputError(
                f"{have} {key} case(s) for train.{key}_batch = {want}; add cases or set "
                f"train.{key}_batch={have}"
            )


def _check_statistics(patch: tuple[int, int, int], config: Config) -> None:
    """InputError if a batch is one bottleneck voxel: batch norm cannot take its variance."""
    for key in ("labeled_batch", "unlabeled_batch"):
        if max(patch) == STRIDE and getattr(config.train, key) == 1:
            raise InputError(
                f"train.{key} = 1 with data.patch = {list(patch)} gives batch norm one value; "
                f"set train.{key}=2 or a larger data.patch"
            )


def _check_classes(cases: list[Prepared], classes: tuple[str, ...]) -> None:
    """InputError if a class is in no labelled training case: nothing could learn it."""
    present: set[int] = set()
    for case in cases:
        present.update(np.unique(case.label).tolist())
    absent = [name for k, name in enumerate(classes) if k > 0 and k not in present]
    if absent:
        raise InputError(
            f"no labelled training case shows the class(es) {', '.join(absent)}; label one that "
            "does, or take the class out of dataset.json"
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
