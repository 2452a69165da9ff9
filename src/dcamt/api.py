"""The commands as functions, for notebooks and scripts; ``dcamt.train`` and so on."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from dcamt.comparison import Design, ablation_rows, parse_rows
from dcamt.comparison import compare as _compare
from dcamt.complexity import method_cost as cost
from dcamt.config import Config, PredictConfig, load_recipe, validated
from dcamt.data.benchmarks import prepare_benchmark
from dcamt.data.dataset import Case
from dcamt.data.folder import remarks_on
from dcamt.data.formats.dicom_seg import check_sources
from dcamt.data.inspect import Inspection
from dcamt.data.inspect import inspect as _inspect
from dcamt.data.scans import find_scans
from dcamt.engine.train import make_fabric
from dcamt.errors import InputError, Unwritable
from dcamt.escape import printable
from dcamt.evaluation.evaluate import evaluate as _evaluate
from dcamt.evaluation.evaluate import write_json
from dcamt.evaluation.metrics import METRICS
from dcamt.experiment import load_run, train_run
from dcamt.exporting import export_run
from dcamt.files import refuse_links, remove_abandoned
from dcamt.inference.predict import DICOM_SEG, LOWER, Extras, map_name, predict_case
from dcamt.inference.predictor import Backend, make_predictor
from dcamt.inference.sliding_window import window_overlap
from dcamt.memory import told_of_memory
from dcamt.reporting.card import model_card
from dcamt.reporting.report import write_report
from dcamt.reporting.terminal import plain_console

__all__ = [
    "ablate",
    "card",
    "compare",
    "cost",
    "evaluate",
    "export",
    "inspect",
    "predict",
    "prepare",
    "report",
    "train",
]

PathLike = str | Path
Count = int | Literal["all"]
_DATA_FOLDERS = ("images", "imagesTr", "imagesUn", "labels", "labelsTr")
OUTPUT_FORMATS = ("nii.gz", "nrrd", "mha", "h5")


def train(
    dataset: PathLike,
    out: PathLike,
    *,
    method: str | None = None,
    splits: PathLike | None = None,
    labeled: int | Literal["all"] | None = None,
    iterations: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    config: PathLike | None = None,
    set: Iterable[str] = (),
    plan: PathLike | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Train ``method`` on the data set in ``dataset`` and return the run folder ``out``.

    ``labeled`` keeps that many labels and hides the rest (``"all"`` shows every label);
    ``config`` is a YAML recipe and ``set`` holds ``key=value`` overrides, as on the command line.
    ``plan`` is a file with a plan (a run's config.yaml) to use in place of a new one.
    Raises InputError for whatever the user can mend; what exists is never overwritten.
    """
    named = {
        "method.name": method,
        "train.iterations": iterations,
        "seed": seed,
        "device": device,
    }
    resolved = _resolve(config, named, set, plan)
    return train_run(
        Path(dataset), Path(out), resolved, _path(splits), labeled, resume=resume, quiet=quiet
    )


def predict(
    run: PathLike,
    input: PathLike,
    out: PathLike,
    *,
    weights: Literal["last", "best"] | str = "last",
    probabilities: bool = False,
    uncertainty: bool = False,
    largest_component: bool = False,
    dicom_seg: bool = False,
    series: int | None = None,
    format: str = "nii.gz",
    overlap: float | None = None,
    stride: Sequence[int] | None = None,
    weighting: Literal["gaussian", "constant"] | str | None = None,
    device: str = "auto",
    backend: Backend = "torch",
    resume: bool = False,
    quiet: bool = False,
) -> list[Path]:
    """Segment a scan, a folder of scans or a data set; returns the files ``out``/CASE.nii.gz.

    Scans may have any of the formats in docs/data.md. Outputs are uint8 with the size, affine and
    spacing of the scan, in the ``format`` nii.gz, nrrd, mha or h5. ``dicom_seg`` adds a DICOM
    Segmentation to each scan that is a folder of DICOM slices; ``series`` (from 1) chooses where
    such a folder holds several. ``overlap`` (fraction),
    ``stride`` (voxels along each axis, in its place) and ``weighting`` of the windows are the run's
    unless given. Raises InputError if an output exists already; with ``resume`` such cases are
    skipped. A scan that cannot be read does not keep the others from being segmented: the
    InputError comes at the end.
    """
    config, method = load_run(Path(run), weights)
    plan = config.plan
    assert plan is not None
    given = {"overlap": overlap, "stride": stride, "weighting": weighting}
    given = {key: value for key, value in given.items() if value is not None}
    if "overlap" in given:
        given.setdefault("stride", None)  # the run's stride would win otherwise
    values = config.predict.model_dump() | given
    settings = validated(PredictConfig, values, "predict")
    window_overlap(plan.patch, settings)  # refuses a stride that skips voxels
    config = config.model_copy(update={"predict": settings})
    if format not in OUTPUT_FORMATS:
        raise InputError(f"format {format!r} is unknown; choose {', '.join(OUTPUT_FORMATS)}")
    extras = Extras(probabilities, uncertainty, largest_component, dicom_seg)
    unread: list[Path] = []
    scans = find_scans(Path(input), len(plan.channels), unread)
    if series is not None and not any(scan.images[0].is_dir() for scan in scans):
        raise InputError(f"{input}: is no folder of DICOM slices; leave out --series")
    outputs = {scan.name: Path(out) / f"{scan.name}.{format}" for scan in scans}
    _check_outputs(Path(input), Path(out), scans, extras, plan.classes)
    existing = [path for path in outputs.values() if path.exists()]
    if dicom_seg and not resume:
        more = (Path(out) / DICOM_SEG / f"{name}.dcm" for name in outputs)
        existing += [path for path in more if path.exists()]
    if existing and not resume:
        raise InputError(
            f"{existing[0]}: exists already ({len(existing)} in all); choose another --out, or "
            "skip finished cases with --resume"
        )
    fabric = make_fabric(device, "32-true")
    predictor = make_predictor(method, plan, fabric.device, backend)
    for folder in (Path(out), *(Path(out) / name for name in extras.folders())):
        remove_abandoned(folder)
    work = partial(predict_case, predictor, config, extras=extras, series=series)
    todo = [scan for scan in scans if not outputs[scan.name].exists()]
    console = plain_console(stderr=True, quiet=quiet)
    for note in remarks_on(unread, skip=Path(out).resolve()):
        console.print(printable(note))
    _segment(todo, outputs, work, console)
    return list(outputs.values())


def _check_outputs(
    input: Path,
    out: Path,
    scans: Sequence[Case],
    extras: Extras,
    classes: Sequence[str],
) -> None:
    """InputError if segmentations would lie among scans or labels, or maps under one name."""
    images = {image.absolute().parent.resolve() for scan in scans for image in scan.images}
    of_data_set = {folder.parent / name for folder in images for name in _DATA_FOLDERS}
    of_data_set |= {input.resolve() / name for name in _DATA_FOLDERS}
    place = out.resolve()
    if place in images or any(place.is_relative_to(folder) for folder in of_data_set):
        raise InputError(
            f"{out}: is the folder of the scans or of their labels; choose another --out"
        )
    if extras.dicom_seg:
        check_sources(scan.images[0] for scan in scans)
    if extras.probabilities:
        maps = [map_name(scan.name, structure) for scan in scans for structure in classes]
        ((name, times),) = Counter(maps).most_common(1)
        if times > 1:
            raise InputError(
                f"two probability maps would be named {name}; rename a case, or leave out "
                "--probabilities"
            )
    refuse_links(out, extras.folders())


def _segment(
    scans: Sequence[Case],
    outputs: dict[str, Path],
    work: Callable[[Sequence[Path], Path], None],
    console: Console,
) -> None:
    """Segment every scan that can be read; then InputError if some could not."""
    begin = time.monotonic()
    failed: dict[str, str] = {}
    for done, scan in enumerate(scans, 1):
        try:
            with told_of_memory(f"{scan.images[0]}: cannot be segmented", LOWER):
                work(scan.images, outputs[scan.name])
        except Unwritable:
            raise
        except InputError as error:  # the others may be sound
            failed[scan.name] = str(error)
            console.print(f"{done}/{len(scans)}  {error}")
            continue
        seconds = (time.monotonic() - begin) / done
        console.print(
            f"{done}/{len(scans)}  {scan.name}  {seconds:.1f} s a case  "
            f"{seconds * (len(scans) - done) / 60:.1f} min left"
        )
    if failed:
        first, *others = failed
        more = f" (nor have the scans {', '.join(others)} a segmentation)" if others else ""
        raise InputError(failed[first] + more)


def prepare(preset: str, source: PathLike, out: PathLike, *, quiet: bool = False) -> Path:
    """Make the benchmark data set ``preset`` (la, pancreas-nih) in ``out`` and return it.

    ``source`` is the data set as it is distributed. Crops follow the labels of all cases, as the
    literature has it: for comparison with published figures only. See docs/data.md.
    """
    return prepare_benchmark(preset, Path(source), Path(out), quiet=quiet)


def evaluate(
    predictions: PathLike,
    labels: PathLike,
    out: PathLike | None = None,
    *,
    unit: str = "mm",
    metrics: str | Iterable[str] = METRICS,
    tolerance: float = 1.0,
) -> dict[str, Any]:
    """Compare ``predictions`` (a folder of segmentations) with ``labels``; see docs/metrics.md.

    ``metrics`` are keys of that page, as a list or as ``"dice,nsd"``; ``tolerance`` is that of
    ``nsd``, in ``unit``.

    Returns the result and, if ``out`` is given, writes it there as JSON.
    """
    if out is not None and Path(out).exists() and not _is_json(Path(out)):
        raise InputError(f"{out}: exists already and holds no scores; choose another --out")
    asked = metrics.split(",") if isinstance(metrics, str) else metrics
    names = [name.strip() for name in asked]
    result = _evaluate(Path(predictions), Path(labels), unit, names, tolerance)
    if out is not None:
        write_json(result, Path(out))
    return result


def _is_json(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(1) == b"{"


def inspect(dataset: PathLike, splits: PathLike | None = None) -> Inspection:
    """Open every file of a data set once and collect all problems.

    With a splits file, neither the labels of its unlabelled cases nor its test cases are opened.
    Raises InputError only for a folder that is no data set and for an unusable splits file.
    """
    return _inspect(Path(dataset), _path(splits))


def report(run: PathLike) -> Path:
    """Write RUN/report.html anew and return its path; InputError if ``run`` is no run folder."""
    return write_report(Path(run))


def card(runs: PathLike | Iterable[PathLike], weights: str = "last") -> str:
    """The model card, in Markdown, of a run or of several that differ in their seed alone.

    ``weights`` are the ones handed on with it, ``last`` or ``best``. Raises InputError for a
    folder that is no finished run, and for runs of different settings or splits.
    """
    return model_card([Path(run) for run in _several(runs)], weights)


def export(
    run: PathLike, out: PathLike, *, weights: str = "last", megabytes: float = 16
) -> list[Path]:
    """Write what ``predict`` needs of a run to ``out``; returns the weight files.

    Weights are in half precision, in files of at most ``megabytes``; no path, case name or split
    is carried over. Raises InputError if ``out`` holds anything.
    """
    return export_run(Path(run), Path(out), weights, megabytes)


def compare(
    dataset: PathLike,
    out: PathLike,
    methods: str | Iterable[str],
    *,
    labeled: Count | Iterable[Count] | None = None,
    seeds: int = 3,
    splits: PathLike | None = None,
    iterations: int | None = None,
    device: str | None = None,
    config: PathLike | None = None,
    set: Iterable[str] = (),
    plan: PathLike | None = None,
    jobs: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train every method with every number of labels and seed and write the tables into ``out``.

    ``methods`` are names, with options as in ``"dca-mt:paste=0"``; the first one is what the
    others are tested against. ``labeled`` is one number or several, and ``"all"`` adds the V-Net
    with all labels. What is finished in ``out`` is skipped. See docs/comparing.md.
    Returns what ``out``/results.json holds; raises InputError for whatever the user can mend.
    """
    rows = parse_rows(methods if isinstance(methods, str) else ",".join(methods))
    resolved = _resolve(config, {"train.iterations": iterations, "device": device}, set, plan)
    design = Design(rows, _counts(labeled), seeds, _path(splits))
    return _compare(Path(dataset), Path(out), design, resolved, jobs=jobs, quiet=quiet)


def ablate(
    dataset: PathLike,
    out: PathLike,
    *,
    labeled: Count | Iterable[Count] | None = None,
    seeds: int = 3,
    splits: PathLike | None = None,
    iterations: int | None = None,
    device: str | None = None,
    config: PathLike | None = None,
    set: Iterable[str] = (),
    plan: PathLike | None = None,
    jobs: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """`compare` over DCA-MT without and with each of its parts; the rows of its ablation."""
    resolved = _resolve(config, {"train.iterations": iterations, "device": device}, set, plan)
    design = Design(ablation_rows(), _counts(labeled), seeds, _path(splits))
    return _compare(Path(dataset), Path(out), design, resolved, jobs=jobs, quiet=quiet)


def _counts(labeled: Count | Iterable[Count] | None) -> list[Count | None]:
    if labeled is None or isinstance(labeled, int | str):
        return [labeled]
    return list(labeled)


def _several(paths: PathLike | Iterable[PathLike]) -> list[PathLike]:
    return [paths] if isinstance(paths, str | Path) else list(paths)


def _resolve(
    config: PathLike | None, named: dict[str, Any], set: Iterable[str], plan: PathLike | None
) -> Config:
    """The configuration of a recipe, named options, ``key=value`` overrides and perhaps a plan."""
    overrides = [f"{key}={value}" for key, value in named.items() if value is not None]
    return load_recipe(_path(config), [*overrides, *set], _path(plan))


def _path(value: PathLike | None) -> Path | None:
    return None if value is None else Path(value)
