"""The commands as functions, for notebooks and scripts; ``dcamt.train`` and so on."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from dcamt.complexity import method_cost as cost
from dcamt.config import Config, load_recipe
from dcamt.data.benchmarks import prepare_benchmark
from dcamt.data.inspect import Inspection
from dcamt.data.inspect import inspect as _inspect
from dcamt.data.outputs import refuse_within_dataset
from dcamt.errors import InputError
from dcamt.evaluation.evaluate import evaluate as _evaluate
from dcamt.evaluation.metrics import METRICS
from dcamt.experiment import train_run
from dcamt.exporting import export_run
from dcamt.files import read_json, write_json
from dcamt.inference.predict import Extras
from dcamt.inference.predictor import Backend
from dcamt.records.results import Results
from dcamt.records.scores import Scores
from dcamt.reporting.card import model_card
from dcamt.reporting.report import write_report
from dcamt.runs.compare import compare as _compare
from dcamt.runs.design import Design, ablation_rows, parse_rows
from dcamt.segmenting import segment_scans

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
    refuse_within_dataset(Path(out), Path(dataset))
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
    format: str | None = None,
    overlap: float | None = None,
    stride: Sequence[int] | None = None,
    weighting: Literal["gaussian", "constant"] | str | None = None,
    device: str = "auto",
    backend: Backend = "torch",
    resume: bool = False,
    quiet: bool = False,
) -> list[Path]:
    """Segment a scan, a folder of scans or a data set; returns the files ``out``/CASE.nii.gz.

    For one scan ``out`` may be the file to write, such as seg.nrrd. Scans may have any of the
    formats in docs/data.md. Outputs are uint8 with the size, affine and spacing of the scan, in
    the ``format`` nii.gz (unless given), nrrd, mha or h5. ``dicom_seg`` adds a DICOM Segmentation
    to each scan that is a folder of DICOM slices; ``series`` (from 1) chooses where such a folder
    holds several. ``overlap`` (fraction), ``stride`` (voxels along each axis, in its place) and
    ``weighting`` of the windows are the run's unless given. A folder ``out`` keeps a record of
    what made its segmentations, predict.json. Raises InputError if an output exists already, or
    others of another origin; with ``resume`` finished cases are skipped. A scan that cannot be
    read does not keep the others from being segmented: the InputError comes at the end.
    """
    return segment_scans(
        Path(run),
        Path(input),
        Path(out),
        Extras(probabilities, uncertainty, largest_component, dicom_seg),
        {"overlap": overlap, "stride": stride, "weighting": weighting},
        weights=weights,
        series=series,
        format=format,
        device=device,
        backend=backend,
        resume=resume,
        quiet=quiet,
    )


def prepare(preset: str, source: PathLike, out: PathLike, *, quiet: bool = False) -> Path:
    """Make the benchmark data set ``preset`` (la, pancreas-nih) in ``out`` and return it.

    ``source`` is the data set as it is distributed. Crops follow the labels of all cases, as the
    literature has it: for comparison with published figures only. See docs/data.md.
    """
    refuse_within_dataset(Path(out), Path(source))
    return prepare_benchmark(preset, Path(source), Path(out), quiet=quiet)


def evaluate(
    predictions: PathLike,
    labels: PathLike,
    out: PathLike | None = None,
    *,
    unit: str = "mm",
    metrics: str | Iterable[str] = METRICS,
    tolerance: float = 1.0,
) -> Scores:
    """Compare ``predictions`` (a folder of segmentations) with ``labels``; see docs/metrics.md.

    ``metrics`` are keys of that page, as a list or as ``"dice,nsd"``; ``tolerance`` is that of
    ``nsd``, in ``unit``.

    Returns the result and, if ``out`` is given, writes it there as JSON.
    """
    asked = metrics.split(",") if isinstance(metrics, str) else metrics
    names = [name.strip() for name in asked]
    if out is not None:
        refuse_within_dataset(Path(out), Path(labels))
        if Path(out).exists() and not _is_scores(Path(out)):
            raise InputError(f"{out}: exists already and holds no scores; choose another --out")
    result = _evaluate(Path(predictions), Path(labels), unit, names, tolerance)
    if out is not None:
        write_json(result, Path(out))
    return result


def _is_scores(path: Path) -> bool:
    try:
        return read_json(path).keys() >= {"cases", "mean", "per_class", "unit"}
    except InputError:
        return False


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
    is carried over. Raises InputError if ``out`` holds anything but a part of this export.
    """
    refuse_within_dataset(Path(out))
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
) -> Results:
    """Train every method with every number of labels and seed and write the tables into ``out``.

    ``methods`` are names, with options as in ``"dca-mt:paste=0"``; the first one is what the
    others are tested against. ``labeled`` is one number or several, and ``"all"`` adds the V-Net
    with all labels. What is finished in ``out`` is skipped. See docs/comparing.md.
    Returns what ``out``/results.json holds; raises InputError for whatever the user can mend.
    """
    rows = parse_rows(methods if isinstance(methods, str) else ",".join(methods))
    resolved = _resolve(config, {"train.iterations": iterations, "device": device}, set, plan)
    design = Design(rows, _counts(labeled), seeds, _path(splits))
    refuse_within_dataset(Path(out), Path(dataset))
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
) -> Results:
    """`compare` over DCA-MT without and with each of its parts; the rows of its ablation."""
    resolved = _resolve(config, {"train.iterations": iterations, "device": device}, set, plan)
    design = Design(ablation_rows(), _counts(labeled), seeds, _path(splits))
    refuse_within_dataset(Path(out), Path(dataset))
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
