"""The command line. Each command is a thin door to the function of the same name in dcamt.api."""

import dcamt.start  # noqa: F401  # isort: skip  (before all others)

import json
import sys
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dcamt.errors import InputError
from dcamt.memory import check_address_space, is_out_of_memory, lack_of_memory
from dcamt.nameless import name_the_nameless

_PYTORCH = 0.9e9
"""Bytes of address space into which PyTorch can be loaded."""

app = typer.Typer(
    help="Semi-supervised segmentation of 3D medical volumes: a few labels, many scans.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Weights(StrEnum):
    """Which checkpoint of a run to use."""

    last = "last"
    best = "best"


class Weighting(StrEnum):
    """How overlapping windows are averaged."""

    gaussian = "gaussian"
    constant = "constant"


class Backend(StrEnum):
    """What computes the networks."""

    torch = "torch"
    openvino = "openvino"


class OutputFormat(StrEnum):
    """Ending of the segmentations."""

    nifti = "nii.gz"
    nrrd = "nrrd"
    mha = "mha"
    h5 = "h5"


class Preset(StrEnum):
    """Benchmark data sets."""

    la = "la"
    pancreas_nih = "pancreas-nih"


class Unit(StrEnum):
    """Unit of the distances."""

    mm = "mm"
    voxels = "voxels"


DatasetFolder = Annotated[Path, typer.Argument(help="Data set folder.")]
RunFolder = Annotated[Path, typer.Argument(help="Run folder of `dcamt train`.")]
Methods = Annotated[
    str, typer.Option(help="NAME[:KEY=VALUE...],... The first is what the others are tested with.")
]
Counts = Annotated[
    str | None, typer.Option(help="Numbers of labels, e.g. 8 or 4,8,16,all (all: V-Net only).")
]
Splits = Annotated[
    Path | None, typer.Option(help="JSON of labeled, unlabeled, val, test; or nnU-Net's FILE:FOLD.")
]
Iterations = Annotated[int | None, typer.Option(help="Training iterations.")]
DeviceOption = Annotated[Device | None, typer.Option(help="Default auto.")]
Recipe = Annotated[Path | None, typer.Option(help="YAML recipe.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="key=value, e.g. network.width=8. Repeatable.")
]
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", help="Take the plan of this file, e.g. RUN/config.yaml."),
]
Seeds = Annotated[int, typer.Option(help="Number of seeds: 0, 1, ...")]
Jobs = Annotated[int | None, typer.Option(help="Runs at once; default one a core, or a GPU.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only errors.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("demo"),
) -> None:
    """Train DCA-MT and a V-Net on drawn phantoms, segment, evaluate and compare: minutes."""
    from dcamt.demo import run_demo

    run_demo(out)


@app.command()
def doctor() -> None:
    """Tell versions, processor, memory, GPU and cache, and check that the arithmetic is right."""
    from dcamt.doctor import examine

    verdicts = []
    for found in examine():
        typer.echo(f"{found.verdict:5}  {found.name}: {found.text}")
        verdicts.append(found.verdict)
    if "wrong" in verdicts:
        typer.echo("Something is wrong here; mend the lines that begin with 'wrong'.")
        raise typer.Exit(1)
    typer.echo("Nothing is wrong here.")


@app.command()
def inspect(
    dataset: DatasetFolder,
    splits: Annotated[Path | None, typer.Option(help="Splits file: hide labels.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    every: Annotated[bool, typer.Option("--all", help="List every case.")] = False,
) -> None:
    """Print cases, sizes, spacings, intensities, classes, labels and every problem found."""
    from rich.console import Console

    from dcamt.data.inspect import inspect as look
    from dcamt.data.inspect import render

    found = look(dataset, splits)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
    else:
        Console().print(render(found, every))
    if found.errors:
        raise typer.Exit(2)


@app.command()
def train(
    dataset: DatasetFolder,
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    method: Annotated[str | None, typer.Option(help="Training method; default dca-mt.")] = None,
    splits: Splits = None,
    labeled: Annotated[
        str | None, typer.Option(help="Use N labels, hide the rest; or all.")
    ] = None,
    iterations: Iterations = None,
    seed: Annotated[int | None, typer.Option(help="Random seed; default 42.")] = None,
    device: DeviceOption = None,
    config: Recipe = None,
    set_: Sets = None,
    plan: PlanFile = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train a method and leave a run folder with weights, log, validation and report."""
    from dcamt import api

    run = api.train(
        dataset, out, method=method, splits=splits, labeled=_count(labeled), iterations=iterations,
        seed=seed, device=None if device is None else device.value, config=config,
        set=set_ or (), plan=plan, resume=resume, quiet=quiet,
    )  # fmt: skip
    if not quiet:
        typer.echo(f"run: {run}  report: {run / 'report.html'}")


@app.command()
def predict(
    run: RunFolder,
    input: Annotated[
        Path, typer.Argument(help="A scan (file or DICOM folder), a folder of scans or a data set.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for the segmentations; for one scan also a file.")
    ],
    weights: Annotated[Weights, typer.Option(help="Last, or best on validation.")] = Weights.last,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also a map per class.")
    ] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Also entropy and disagreement.")
    ] = False,
    largest_component: Annotated[
        bool, typer.Option("--largest-component", help="Keep one piece per class.")
    ] = False,
    dicom_seg: Annotated[
        bool, typer.Option("--dicom-seg", help="Also a DICOM Segmentation (scans in DICOM).")
    ] = False,
    series: Annotated[
        int | None, typer.Option(help="Which one, from 1, if a DICOM folder holds several.")
    ] = None,
    format: Annotated[
        OutputFormat | None, typer.Option(help="Of segmentations and maps; default nii.gz.")
    ] = None,
    overlap: Annotated[float | None, typer.Option(help="Window overlap, 0 to below 1.")] = None,
    stride: Annotated[
        tuple[int, int, int] | None, typer.Option(help="Window stride in voxels, not overlap.")
    ] = None,
    weighting: Annotated[Weighting | None, typer.Option(help="Default gaussian.")] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.auto,
    backend: Annotated[Backend, typer.Option(help="openvino: faster on a CPU.")] = Backend.torch,
    resume: Annotated[bool, typer.Option("--resume", help="Skip cases already done.")] = False,
    quiet: Quiet = False,
) -> None:
    """Segment scans; outputs have the scans' own size, affine and spacing."""
    from dcamt import api

    api.predict(
        run, input, out, weights=weights.value, probabilities=probabilities,
        uncertainty=uncertainty, largest_component=largest_component, dicom_seg=dicom_seg,
        series=series, format=None if format is None else format.value, overlap=overlap,
        stride=stride, weighting=None if weighting is None else weighting.value,
        device=device.value, backend=backend.value, resume=resume, quiet=quiet,
    )  # fmt: skip


@app.command()
def prepare(
    preset: Annotated[Preset, typer.Argument(help="Which benchmark.")],
    source: Annotated[Path, typer.Argument(help="The data set as it is distributed.")],
    out: Annotated[Path, typer.Argument(help="Folder of the data set to make.")],
    quiet: Quiet = False,
) -> None:
    """Make a published benchmark: cropped by the labels of all cases, never for your own data."""
    from dcamt import api

    api.prepare(preset.value, source, out, quiet=quiet)


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of segmentations.")],
    labels: Annotated[Path, typer.Argument(help="Folder of labels, or a data set.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    unit: Annotated[Unit, typer.Option(help="Unit of the distances.")] = Unit.mm,
    metrics: Annotated[
        str, typer.Option(help="NAME,...; also assd, hd, hd95_max and nsd (surface Dice).")
    ] = "dice,jaccard,hd95,asd",
    tolerance: Annotated[
        float, typer.Option(help="Distance up to which nsd takes surfaces for one.")
    ] = 1.0,
    quiet: Quiet = False,
) -> None:
    """Dice, Jaccard, 95HD and ASD, or others, per case and class, as JSON and a table."""
    from rich.console import Console

    from dcamt import api
    from dcamt.reporting.terminal import score_tables

    result = api.evaluate(
        predictions, labels, out, unit=unit.value, metrics=metrics, tolerance=tolerance
    )
    if not quiet:
        console = Console()
        console.print(*score_tables(result, console.width))


@app.command()
def report(run: RunFolder) -> None:
    """Write RUN/report.html anew: curves, tables, pictures, configuration."""
    from dcamt.reporting.report import write_report

    typer.echo(write_report(run))


@app.command()
def card(
    runs: Annotated[list[Path], typer.Argument(help="Run folder; several: the seeds of one.")],
) -> None:
    """Print a model card in Markdown: data, protocol, figures, limits, licence."""
    from dcamt.reporting.card import model_card

    typer.echo(model_card(runs), nl=False)


@app.command()
def export(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="Folder to write; `predict` takes it like a run.")],
    weights: Annotated[Weights, typer.Option(help="Last, or best on validation.")] = Weights.last,
    megabytes: Annotated[float, typer.Option(help="Largest file.")] = 16,
) -> None:
    """Write half-precision weights in small files, configuration and model card, to hand on."""
    from dcamt import api

    for path in api.export(run, out, weights=weights.value, megabytes=megabytes):
        typer.echo(path)


@app.command()
def compare(
    dataset: DatasetFolder,
    out: Annotated[Path, typer.Option(help="Folder of the comparison; continued if it exists.")],
    methods: Methods,
    labeled: Counts = None,
    seeds: Seeds = 3,
    splits: Splits = None,
    iterations: Iterations = None,
    device: DeviceOption = None,
    config: Recipe = None,
    set_: Sets = None,
    plan: PlanFile = None,
    jobs: Jobs = None,
    quiet: Quiet = False,
) -> None:
    """Train, segment and score many methods alike; tables and figures, resumable."""
    from dcamt import api

    results = api.compare(
        dataset, out, methods, labeled=_count_list(labeled), seeds=seeds, splits=splits,
        iterations=iterations, device=None if device is None else device.value, config=config,
        set=set_ or (), plan=plan, jobs=jobs, quiet=quiet,
    )  # fmt: skip
    _show_comparison(results, out)


@app.command()
def ablate(
    dataset: DatasetFolder,
    out: Annotated[Path, typer.Option(help="Folder of the ablation; continued if it exists.")],
    labeled: Counts = None,
    seeds: Seeds = 3,
    splits: Splits = None,
    iterations: Iterations = None,
    device: DeviceOption = None,
    config: Recipe = None,
    set_: Sets = None,
    plan: PlanFile = None,
    jobs: Jobs = None,
    quiet: Quiet = False,
) -> None:
    """Compare DCA-MT without and with each of its parts."""
    from dcamt import api

    results = api.ablate(
        dataset, out, labeled=_count_list(labeled), seeds=seeds, splits=splits,
        iterations=iterations, device=None if device is None else device.value, config=config,
        set=set_ or (), plan=plan, jobs=jobs, quiet=quiet,
    )  # fmt: skip
    _show_comparison(results, out)


@app.command()
def cost(
    method: Annotated[str, typer.Option(help="Training method.")] = "dca-mt",
    methods: Annotated[
        str | None, typer.Option(help="Measure these against V-Net: NAME,NAME,... or all.")
    ] = None,
    patch: Annotated[tuple[int, int, int], typer.Option(help="Voxels.")] = (112, 112, 80),
    channels: Annotated[int, typer.Option(help="Image channels.")] = 1,
    classes: Annotated[int, typer.Option(help="Classes with background.")] = 2,
    width: Annotated[
        int | None, typer.Option(help="Width of the network; default its own.")
    ] = None,
    set_: Sets = None,
    iterations: Annotated[
        int | None, typer.Option(help="Measured, with --methods; default 20 (GPU) or 3 (CPU).")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.auto,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Parameters and multiply-accumulates; with --methods also time and memory, beside V-Net."""
    if methods is not None:
        from dcamt.timing import cost_table, measure

        sizes = (patch, channels, classes, width)
        costs = measure(methods, *sizes, device.value, iterations, set_ or ())
        typer.echo(json.dumps(costs, indent=1) if as_json else cost_table(costs), nl=as_json)
        return
    from dcamt.complexity import method_cost

    found = method_cost(method, patch, channels, classes, width, set_ or ())
    if as_json:
        typer.echo(json.dumps(found))
    else:
        typer.echo(f"{method}: {found['parameters']:,} parameters, {found['macs'] / 1e9:.2f} GMACs")


def _show_comparison(results: dict[str, Any], out: Path) -> None:
    """Tables that fit into the terminal, and Markdown to whatever else reads."""
    from rich.console import Console

    from dcamt.reporting.terminal import comparison_table

    if sys.stdout.isatty():
        console = Console()
        console.print(comparison_table(results, console.width))
    else:
        typer.echo((out / "table.md").read_text(encoding="utf-8"), nl=False)


def _count(labeled: str | None) -> int | Literal["all"] | None:
    if labeled is None:
        return None
    if labeled == "all":
        return "all"
    if not labeled.isdecimal():
        raise InputError(f"--labeled {labeled}: give a number of cases, or all")
    return int(labeled)


def _count_list(labeled: str | None) -> list[int | Literal["all"]] | None:
    counts = [_count(part.strip()) for part in labeled.split(",")] if labeled is not None else []
    return [count for count in counts if count is not None] or None


def _version(shown: bool) -> None:
    if shown:
        from dcamt import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Semi-supervised segmentation of 3D medical volumes: a few labels, many scans."""
    check_address_space(_PYTORCH, "PyTorch")


def main() -> Any:
    """Run the command line; errors that a user can mend are one sentence and exit code 2."""
    name_the_nameless()
    _print_anything()
    try:
        app()
    except InputError as error:
        _fail(str(error), 2)
    except UnicodeEncodeError as error:
        _fail(f"a name cannot be written in {error.encoding}; set PYTHONUTF8=1", 2)
    except OSError as error:
        if is_out_of_memory(error):
            _fail(_no_memory(error), 2)
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}; check the path and the space on the disk", 2)
    except Exception as error:
        if is_out_of_memory(error):
            _fail(_no_memory(error), 2)
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        _fail(str(error), code)


def _print_anything() -> None:
    """Characters that the terminal or the file behind it does not have become question marks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def _no_memory(error: Exception) -> str:
    return f"{lack_of_memory(error)}; end other programs, raise the limit, or give less at a time"


def _fail(message: str, code: int) -> None:
    print(f"dcamt: {message}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
