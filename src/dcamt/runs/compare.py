"""``dcamt compare`` and ``dcamt ablate``: many methods, one protocol, the paper's tables.

Every combination of method, number of labels and seed is trained by ``dcamt train`` in a process
and a folder of its own; what those folders hold decides what is still to be done. Cases, patches,
iterations and inference are the same for all, and the last weights are scored.
"""

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from matplotlib.figure import Figure
from rich.console import Console

from dcamt.config import Config, MethodConfig, load_config
from dcamt.data.dataset import Dataset, read_dataset
from dcamt.data.formats import ending_of
from dcamt.data.split import Split, choose_split
from dcamt.data.volume import aligned, read_image, read_label
from dcamt.engine.train import choose_device
from dcamt.errors import InputError
from dcamt.evaluation.evaluate import write_json
from dcamt.evaluation.metrics import METRICS
from dcamt.evaluation.statistics import against_first, case_means, gap_closed, over_seeds
from dcamt.experiment import plan_run, refuse_changes
from dcamt.files import (
    alone,
    atomic,
    holds,
    read_json,
    refuse_links,
    remove_temporary,
    same_folder,
    write_text,
)
from dcamt.records.finished_run import read_scores, segmentation_in
from dcamt.reporting.charts import plot_efficiency, plot_metrics
from dcamt.reporting.planes import plot_contours
from dcamt.reporting.tables import csv_text, latex, markdown
from dcamt.reporting.terminal import plain_console
from dcamt.runs.build import resolve_method
from dcamt.runs.jobs import Job, places, run_jobs

BASELINE = "vnet"
"""With few labels the start, with all labels the end of the gap that a method may close."""

Count = int | Literal["all"] | None

_ABLATION = {
    "Base": "base",
    "Loss": "loss",
    "CrossAttention": "cross-attention",
    "Mutual": "mutual",
    "All": "all",
}


@dataclass(frozen=True)
class Row:
    """A line of the tables: a method with its options under a name."""

    name: str
    method: MethodConfig


@dataclass(frozen=True)
class Design:
    """What is compared: every row with every number of labels and the seeds 0, 1, ...

    Of ``counts``, None is what the split labels, and "all" trains the V-Net alone, as the ceiling.
    """

    rows: Sequence[Row]
    counts: Sequence[Count] = (None,)
    seeds: int = 3
    splits: Path | None = None


@dataclass(frozen=True)
class _Cases:
    """One number of labels and the cases that go with it. ``name`` is "8", or "all"."""

    name: str
    split: Split
    file: Path

    @property
    def scored(self) -> Literal["test", "validation"]:
        return "test" if self.split.test else "validation"


@dataclass(frozen=True)
class _Run:
    """One training. ``config`` is what `dcamt train` is to be told, plan left out."""

    row: Row
    cases: _Cases
    seed: int
    folder: Path
    config: Config

    @property
    def scores(self) -> Path:
        return self.folder / f"{self.cases.scored}.json"

    @property
    def done(self) -> bool:
        # The report is the last thing that training writes; the test cases come after it.
        return self.scores.exists() and (self.folder / "report.html").exists()


def parse_rows(methods: str) -> list[Row]:
    """Rows from ``NAME[:KEY=VALUE...],...``; a row is named as it is written.

    Raises InputError for an unknown method or option, or a row that is there twice.
    """
    rows = []
    for item in re.split(r",(?![^\[]*\])", methods):  # commas within [...] are of a value
        name, *options = item.strip().split(":")
        if not name or not all(re.fullmatch(r"\w+=.+", option) for option in options):
            raise InputError(
                f"--methods {item.strip()!r}: write NAME or NAME:KEY=VALUE, e.g. dca-mt:paste=0"
            )
        changes = [f"method.{option}" for option in options]
        method = load_config(None, [f"method.name={name}", *changes]).method
        resolve_method(method)
        rows.append(Row(item.strip(), method))
    _refuse_twins([row.name for row in rows])
    return rows


def ablation_rows() -> list[Row]:
    """DCA-MT without and with each of its parts, as the paper's Tables 1 and 2 have them."""
    return [
        Row(name, MethodConfig.model_validate({"name": "dca-mt", "components": components}))
        for name, components in _ABLATION.items()
    ]


def compare(
    dataset: Path,
    out: Path,
    design: Design,
    config: Config,
    *,
    jobs: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train, segment and score what ``design`` asks for and write tables and figures to ``out``.

    Runs that are finished are skipped, others continued. ``config.seed`` decides the split if no
    splits file does. Options of ``config.method`` go to the rows of that method. ``jobs`` runs are
    trained at once; None for one a core on a CPU and one a GPU otherwise.

    Returns what ``out``/results.json holds. Raises InputError for what the user can mend, before
    anything is trained where that can be told, and Interrupted after saving on a signal.
    """
    console = plain_console(stderr=True, quiet=quiet)
    if design.seeds < 1:
        raise InputError(f"--seeds {design.seeds}: ask for at least 1")
    train = config.train
    accelerator, _ = choose_device(config.device, train.precision, train.devices)
    environments = places(accelerator, jobs, train.devices)
    found = read_dataset(dataset)
    cases = [_choose_cases(found, out, design.splits, n, config) for n in design.counts]
    _refuse_twins([c.name for c in cases])
    runs = _list_runs(found, out, design, cases, config)
    _refuse_foreign(out)
    for run in runs:
        _refuse_other(run)
    for count, c in zip(design.counts, cases, strict=True):
        begun = [(r.folder / "config.yaml").exists() for r in runs if r.cases is c]
        if not all(begun):
            # Refuses what training would, and prepares the volumes before many want them at once.
            plan_run(dataset, config, design.splits, count)
    with alone(out) as lock:
        refuse_links(out, ("runs", "logs", "splits", "test-scans"))
        for run in runs:
            name = run.folder.name
            refuse_links(out, (f"runs/{name}", f"runs/{name}/test", f"logs/{name}.log"))
        remove_temporary(out)
        _write_inputs(out, found, cases, config)
        todo = [run for run in runs if not run.done]
        console.print(
            f"{len(runs)} runs, {len(runs) - len(todo)} of them finished, {len(environments)} at "
            f"once, in {out / 'runs'}"
        )
        by_name = {run.folder.name: run for run in todo}
        progress = _Progress(console, len(todo), by_name)
        command = [_job(run, out) for run in todo]
        failed = run_jobs(command, environments, progress, keep_open=(lock,))
        if failed:
            name, line = next(iter(failed.items()))
            raise InputError(
                f"{len(failed)} of {len(runs)} runs failed, first {out / 'runs' / name}: {line} "
                f"(log: {out / 'logs' / name}.log); the same command goes on from here"
            )
        results = _collect(found, design.rows, cases, runs)
        _write(results, found, runs, out)
    console.print(f"table: {out / 'table.md'}")
    return results


# ---------------------------------------------------------------------------------- what to run


def _choose_cases(
    dataset: Dataset, out: Path, splits: Path | None, count: Count, config: Config
) -> _Cases:
    split = choose_split(dataset, splits, count, config.seed, config.data.val_fraction)
    if not split.val and not split.test:
        raise InputError(
            f"{splits or dataset.root}: there is no validation and no test case to score the "
            "methods on; name some in a splits file"
        )
    name = "all" if count == "all" else str(len(split.labeled))
    return _Cases(name, split, out / "splits" / f"{name}-labels.json")


def _list_runs(
    dataset: Dataset,
    out: Path,
    design: Design,
    cases: Sequence[_Cases],
    config: Config,
) -> list[_Run]:
    """Every run, seed by seed, so that a table of few seeds is there first."""
    rows, shared = design.rows, config.method.options
    if shared and config.method.name not in [row.method.name for row in rows]:
        raise InputError(
            f"the configuration sets options of {config.method.name}, which is not compared; "
            "leave them out, or write options as NAME:KEY=VALUE in --methods"
        )
    if all(c.name == "all" for c in cases):
        raise InputError("--labeled all trains the ceiling alone; add a number, e.g. 8,all")
    unplanned = {"plan"} if config.plan is None else None
    ceiling = next((row for row in rows if row.name == BASELINE), parse_rows(BASELINE)[0])
    runs = []
    for seed in range(design.seeds):
        for c in cases:
            for row in [ceiling] if c.name == "all" else rows:
                options = shared if row.method.name == config.method.name else {}
                values = {"name": row.method.name, **options, **row.method.options}
                method = resolve_method(MethodConfig.model_validate(values))
                told = {"dataset": dataset.root.resolve(), "seed": seed, "method": method}
                # Dumped, so that every value counts as set when a run is held against it.
                whole = config.model_copy(update=told).model_dump(mode="json", exclude=unplanned)
                folder = out / "runs" / f"{_file_part(row.name)}-{c.name}-labels-seed{seed}"
                runs.append(_Run(row, c, seed, folder, Config.model_validate(whole)))
    _refuse_twins([run.folder.name for run in runs])
    return runs


def _file_part(name: str) -> str:
    return re.sub(r"[^\w.=+\[\],-]", "_", name.replace(":", "+"))


def _refuse_twins(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name}: is asked for more than once; name it once")


def _refuse_foreign(out: Path) -> None:
    """InputError if ``out`` holds something, but no comparison; it begins with the splits."""
    held = holds(out)
    if held - {"splits"} and not any(out.glob("splits/*-labels.json")):
        raise InputError(f"{out}: exists already and is no comparison; choose another --out")


def _refuse_other(run: _Run) -> None:
    """InputError if the folder of ``run`` was begun with other settings or cases."""
    if not (run.folder / "config.yaml").exists():
        return
    begun, now = load_config(run.folder / "config.yaml"), run.config.dataset
    assert now is not None
    if begun.dataset is None or not same_folder(begun.dataset, now):
        raise InputError(
            f"{run.folder}: was begun with the data set {begun.dataset}, not {now}; put it or a "
            "link to it back there, or start a new comparison in another --out"
        )
    refuse_changes(run.config.model_copy(update={"dataset": begun.dataset}), begun, run.folder)
    kept = read_json(run.folder / "split.json")
    if kept != json.loads(_dump(run.cases.split)):
        raise InputError(
            f"{run.folder}: was begun with other cases; give the same --splits, or another --out"
        )


def _write_inputs(out: Path, dataset: Dataset, cases: Sequence[_Cases], config: Config) -> None:
    """What the runs are started with: the shared configuration, the splits, the test scans."""
    values = config.model_dump(mode="json", exclude={"dataset", "plan", "method", "seed"})
    for c in cases:  # first: by these a folder is known as a comparison
        write_text(c.file, _dump(c.split))
    write_text(out / "config.yaml", yaml.safe_dump(values, sort_keys=False))
    if config.plan is not None:
        write_text(out / "plan.yaml", yaml.safe_dump(config.plan.model_dump(mode="json")))
    for name in cases[0].split.test:
        images = dataset.case(name).images
        by_channel = len(images) == len(dataset.channels)
        for number, image in enumerate(images):
            # By the case's name, which the file need not bear. A folder of slices has no ending.
            own = f"{name}_{number:04d}" if by_channel else name
            link = out / "test-scans" / f"{own}{ending_of(image.name) or ''}"
            link.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                link.symlink_to(image.absolute())


def _dump(split: Split) -> str:
    return json.dumps(asdict(split), indent=1) + "\n"


# -------------------------------------------------------------------------------------- running


def _job(run: _Run, out: Path) -> Job:
    """The commands that make a run: the ones a user would type."""
    dcamt = (sys.executable, "-m", "dcamt")
    assert run.config.dataset is not None
    dataset, folder = str(run.config.dataset), str(run.folder)
    chosen = run.config.method.options
    changes = [f"method.{key}={json.dumps(value)}" for key, value in chosen.items()]
    train = (
        *dcamt, "train", dataset, "--out", folder, "--resume",
        "--config", str(out / "config.yaml"), "--splits", str(run.cases.file),
        "--method", run.config.method.name, "--seed", str(run.seed),
        *(part for change in changes for part in ("--set", change)),
        *(("--plan", str(out / "plan.yaml")) if run.config.plan is not None else ()),
    )  # fmt: skip
    commands = [train]
    if run.cases.scored == "test":
        scans, segmented = out / "test-scans", str(run.folder / "test")
        # NIfTI holds the place of whatever was NIfTI, but not that of every other scan.
        nifti = all(scan.name.lower().endswith((".nii", ".nii.gz")) for scan in scans.iterdir())
        options = ("--resume", "--device", run.config.device, "--format")
        commands += [
            (
                *dcamt,
                "predict",
                folder,
                str(scans),
                "--out",
                segmented,
                *options,
                "nii.gz" if nifti else "nrrd",
            ),
            (*dcamt, "evaluate", segmented, dataset, "--out", str(run.scores), "--quiet"),
        ]
    return Job(run.folder.name, tuple(commands), out / "logs" / f"{run.folder.name}.log")


class _Progress:
    """Prints a line for every run that is finished, with what is left."""

    def __init__(self, console: Console, total: int, runs: Mapping[str, _Run]):
        self.console, self.total, self.runs = console, total, runs
        self.begin, self.done = time.monotonic(), 0

    def __call__(self, job: Job) -> None:
        self.done += 1
        minutes = (time.monotonic() - self.begin) / 60
        left = minutes / self.done * (self.total - self.done)
        dice = read_scores(self.runs[job.name].scores, METRICS)["mean"]["dice"]
        shown = "none" if dice is None else f"{100 * dice:.2f} %"
        self.console.print(
            f"{self.done}/{self.total}  {job.name}  Dice {shown}  {minutes:.1f} min, about "
            f"{left:.1f} min left"
        )


# ------------------------------------------------------------------------------------ collecting


def _collect(
    dataset: Dataset, rows: Sequence[Row], cases: Sequence[_Cases], runs: Sequence[_Run]
) -> dict[str, Any]:
    """Everything that the tables and figures show; see `dcamt.reporting.tables`."""
    lines: list[dict[str, Any]] = []
    unit = ""
    for c in sorted(cases, key=lambda c: (c.name == "all", len(c.split.labeled))):
        names = dict.fromkeys(run.row.name for run in runs if run.cases is c)
        of_row = {n: [r for r in runs if r.cases is c and r.row.name == n] for n in names}
        scores = {
            name: [read_scores(run.scores, METRICS) for run in of_row[name]] for name in names
        }
        tests = against_first(list(scores.values()))
        for (name, found), p in zip(of_row.items(), tests, strict=True):
            unit = scores[name][0]["unit"]
            lines.append(
                {
                    "name": name,
                    "method": found[0].config.method.model_dump(mode="json"),
                    "labels": c.name,
                    "labeled": len(c.split.labeled),
                    "ceiling": c.name == "all",
                    "seeds": [run.seed for run in found],
                    **over_seeds(scores[name]),
                    "p": p,
                    "gap_closed": None,
                    "runs": [
                        {"seed": run.seed, "folder": f"runs/{run.folder.name}", **score}
                        for run, score in zip(found, scores[name], strict=True)
                    ],
                }
            )
    _add_gap(lines)
    scored = cases[0].scored
    return {
        "dataset": dataset.name,
        "cases": scored,
        "case_count": len(cases[0].split.test if scored == "test" else cases[0].split.val),
        "weights": "last",
        "unit": unit,
        "first": rows[0].name,
        "rows": lines,
    }


def _add_gap(lines: Sequence[dict[str, Any]]) -> None:
    """Fill in ``gap_closed`` where the baseline was trained with few and with all labels."""
    full = next((line["mean"]["dice"] for line in lines if line["ceiling"]), None)
    for line in lines:
        same = (r for r in lines if r["labels"] == line["labels"] and r["name"] == BASELINE)
        few = next((r["mean"]["dice"] for r in same), None)
        value = line["mean"]["dice"]
        if not line["ceiling"] and full is not None and few is not None and value is not None:
            line["gap_closed"] = gap_closed(value, few, full)


def _write(results: dict[str, Any], dataset: Dataset, runs: Sequence[_Run], out: Path) -> None:
    write_json(results, out / "results.json")
    write_text(out / "table.md", markdown(results))
    write_text(out / "table.csv", csv_text(results))
    write_text(out / "table.tex", latex(results))
    rows = results["rows"]
    names = dict.fromkeys(row["labels"] for row in rows if not row["ceiling"])
    for labels in names:
        shown = [row for row in rows if row["labels"] == labels or row["ceiling"]]
        _save(plot_metrics(shown, results["unit"]), out / f"metrics-{labels}-labels.png")
        few = [row for row in shown if not row["ceiling"]]
        _save(_contours(dataset, runs, few), out / f"contours-{labels}-labels.png")
    if len(names) > 1:
        _save(plot_efficiency(rows), out / "labels.png")


def _contours(dataset: Dataset, runs: Sequence[_Run], rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The median case by Dice over all rows, as the first seed of each row segmented it."""
    means = case_means([run for row in rows for run in row["runs"]], "dice")
    ranked = sorted(means, key=lambda name: (means[name], name))
    case = dataset.case(ranked[len(ranked) // 2] if ranked else runs[0].cases.split.val[0])
    assert case.label is not None
    image = read_image(case.images)
    reference = aligned(image, read_label(case.label), case.images[0], case.label)
    predictions, values = {}, set()
    for row in rows:
        first = row["runs"][0]
        folder = next(run for run in runs if first["folder"] == f"runs/{run.folder.name}")
        dice = case_means([first], "dice").get(case.name)
        title = row["name"] if dice is None else f"{row['name']}: {100 * dice:.1f}"
        path = segmentation_in(folder.folder / folder.cases.scored, case.name)
        found = aligned(image, read_label(path), case.images[0], path, "segmentation")
        predictions[title] = found.array
        values |= {int(value["class"]) for value in first["cases"]}
    return plot_contours(image.array[0], reference.array, predictions, image.affine, sorted(values))


def _save(figure: Figure, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=150, metadata={"Software": None})
