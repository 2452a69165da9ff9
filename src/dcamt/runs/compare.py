"""``dcamt compare`` and ``dcamt ablate``: many methods, one protocol, the paper's tables.

Every combination of method, number of labels and seed is trained by ``dcamt train`` in a process
and a folder of its own; what those folders hold decides what is still to be done. Cases, patches,
iterations and inference are the same for all, and the last weights are scored.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import yaml
from rich.console import Console

from dcamt.config import Config, Patch, load_config
from dcamt.data.dataset import Dataset, read_dataset
from dcamt.data.formats import ending_of
from dcamt.data.outputs import refuse_within_dataset
from dcamt.data.split import Split
from dcamt.engine.device import choose_device
from dcamt.errors import InputError
from dcamt.escape import printable
from dcamt.evaluation.metrics import METRICS
from dcamt.files import (
    alone,
    holds,
    read_json,
    refuse_existing,
    refuse_links,
    remove_temporary,
    same_folder,
    write_text,
)
from dcamt.records.results import Results
from dcamt.records.run_folder import CONFIG, has_begun, read_config
from dcamt.records.scores import read_scores
from dcamt.reporting.console import plain_console
from dcamt.runs.collect import collect, write_results
from dcamt.runs.design import Cases, Design, PlannedRun, choose_cases, list_runs, refuse_twins
from dcamt.runs.init import find_weights, record_of, refuse_other_start, told_of_start
from dcamt.runs.jobs import Job, places, run_jobs
from dcamt.runs.plan import plan_run
from dcamt.runs.resume import refuse_changes
from dcamt.wording import percent


def compare(
    dataset: Path,
    out: Path,
    design: Design,
    config: Config,
    *,
    jobs: int | None = None,
    quiet: bool = False,
    init: Path | None = None,
) -> Results:
    """Train, segment and score what ``design`` asks for and write tables and figures to ``out``.

    Runs that are finished are skipped, others continued. ``config.seed`` decides the split if no
    splits file does. Options of ``config.method`` go to the rows of that method. ``jobs`` runs are
    trained at once; None for one a core on a CPU and one a GPU otherwise. Every run starts from the
    weights ``init``, where that is given.

    Returns what ``out``/results.json holds. Raises InputError for what the user can mend, before
    anything is trained where that can be told, and Interrupted after saving on a signal.
    """
    refuse_within_dataset(out, dataset)
    console = plain_console(stderr=True, quiet=quiet)
    if design.seeds < 1:
        raise InputError(f"--seeds {design.seeds}: ask for at least 1")
    train = config.train
    accelerator, _ = choose_device(config.device, train.precision, train.devices)
    environments = places(accelerator, jobs, train.devices)
    found = read_dataset(dataset)
    config = _with_patch_of(out, config)
    cases = [choose_cases(found, out, design.splits, n, config) for n in design.counts]
    refuse_twins([c.name for c in cases])
    runs = list_runs(found, out, design, cases, config)
    _refuse_foreign(out)
    weights = None if init is None else find_weights(init)
    record = None if weights is None else record_of(weights)
    for run in runs:
        _refuse_other(run, record)
    _refuse_mixture(out, runs, record)
    told: dict[str, None] = {}
    methods = [*{run.row.name: run.config.method for run in runs}.values()]
    for count, c in zip(design.counts, cases, strict=True):
        missing = [run for run in runs if run.cases is c and not has_begun(run.folder)]
        if missing:
            # Refuses what training would, and prepares the volumes before many want them at once.
            first = config.model_copy(update={"method": missing[0].config.method})
            planned = plan_run(dataset, first, design.splits, count, beside=methods)
            config = _with_patch(config, planned.config.plan.patch)
            if weights is not None:
                told |= dict.fromkeys(told_of_start(weights, planned.config, planned.split)[1:])
    for warning in told:
        console.print(printable(warning))
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
        command = [_job(run, out, init) for run in todo]
        failed = run_jobs(command, environments, progress, keep_open=(lock,))
        if failed:
            name, line = next(iter(failed.items()))
            raise InputError(
                f"{len(failed)} of {len(runs)} runs failed, first {out / 'runs' / name}: {line} "
                f"(log: {out / 'logs' / name}.log); the same command goes on from here"
            )
        results = collect(found, design.rows, cases, runs)
        write_results(results, found, runs, out)
    console.print(f"table: {out / 'table.md'}")
    return results


# ------------------------------------------------------------------------------ before the runs


def _refuse_foreign(out: Path) -> None:
    """InputError if ``out`` holds something, but no comparison; it begins with the splits."""
    ours = holds(out) <= {"splits"} or any(out.glob("splits/*-labels.json"))
    refuse_existing(out, ours, kind="comparison")


def _with_patch_of(out: Path, config: Config) -> Config:
    """``config`` with the patch of the runs that ``out`` holds; InputError if theirs differ."""
    begun = [folder for folder in sorted(out.glob("runs/*")) if has_begun(folder)]
    patches = {read_config(folder).plan.patch: folder for folder in begun}
    if len(patches) > 1:
        (one, first), (other, second), *_ = patches.items()
        raise InputError(
            f"{first}: has patches of {list(one)} voxels, but {second.name} of {list(other)}, so "
            "they cannot be compared; start a new comparison in another --out"
        )
    return _with_patch(config, next(iter(patches))) if patches else config


def _with_patch(config: Config, patch: Patch) -> Config:
    """``config`` with ``patch``, unless it sets one."""
    if config.plan is not None or config.data.patch is not None:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"patch": patch})})


def _refuse_other(run: PlannedRun, record: str | None) -> None:
    """InputError if the folder of ``run`` was begun with other settings, cases or weights."""
    if not has_begun(run.folder):
        return
    _refuse_begun(run.folder, load_config(run.folder / CONFIG), run.dataset, run.config, record)
    kept = read_json(run.folder / "split.json")
    if kept != json.loads(_dump(run.cases.split)):
        raise InputError(
            f"{run.folder}: was begun with other cases; give the same --splits, or another --out"
        )


def _refuse_mixture(out: Path, runs: Sequence[PlannedRun], record: str | None) -> None:
    """InputError if other runs of ``out`` cannot stand beside ``runs`` in one comparison.

    They must have the same data set, settings, first weights, and validation and test cases.
    """
    split = json.loads(_dump(runs[0].cases.split))
    for folder in sorted({*out.glob("runs/*")} - {run.folder for run in runs}):
        if not has_begun(folder):
            continue
        begun = load_config(folder / CONFIG)
        own = {"method": begun.method, "seed": begun.seed}
        config = runs[0].config.model_copy(update=own)
        _refuse_begun(folder, begun, runs[0].dataset, config, record)
        kept = read_json(folder / "split.json")
        for part, named in (("val", "validation"), ("test", "test")):
            if kept.get(part) != split[part]:
                raise InputError(
                    f"{folder}: was begun with other {named} cases; give the same --splits, or "
                    "another --out"
                )


def _refuse_begun(
    folder: Path, begun: Config, dataset: Path, config: Config, record: str | None
) -> None:
    """InputError if a run was ``begun`` with another data set, other settings or first weights."""
    if begun.dataset is None or not same_folder(begun.dataset, dataset):
        raise InputError(
            f"{folder}: was begun with the data set {begun.dataset}, not {dataset}; put it "
            "or a link to it back there, or start a new comparison in another --out"
        )
    refuse_changes(config.model_copy(update={"dataset": begun.dataset}), begun, folder)
    refuse_other_start(folder, record, strict=True)


def _write_inputs(out: Path, dataset: Dataset, cases: Sequence[Cases], config: Config) -> None:
    """What the runs are started with: the shared configuration, the splits, the test scans."""
    values = config.model_dump(mode="json", exclude={"dataset", "plan", "method", "seed"})
    for c in cases:  # first: by these a folder is known as a comparison
        write_text(c.file, _dump(c.split))
    write_text(out / "config.yaml", yaml.safe_dump(values, sort_keys=False))
    if config.plan is not None:
        write_text(out / "plan.yaml", yaml.safe_dump(config.plan.model_dump(mode="json")))
    test = cases[0].split.test
    # `predict` takes the ending _0000 for a channel if all names have it.
    numbered = not dataset.channels and all(name.endswith("_0000") for name in test)
    links: dict[Path, Path] = {}
    for name in test:
        images = dataset.case(name).images
        by_channel = numbered or len(images) == len(dataset.channels)
        for number, image in enumerate(images):
            # By the case's name, which the file need not bear. A folder of slices has no ending.
            own = f"{name}_{number:04d}" if by_channel else name
            links[out / "test-scans" / f"{own}{ending_of(image.name) or ''}"] = image.absolute()
    for old in out.glob("test-scans/*"):  # of a comparison that never began
        if old.is_symlink() and old.readlink() != links.get(old):
            old.unlink()
    for link, image in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            link.symlink_to(image)


def _dump(split: Split) -> str:
    return json.dumps(asdict(split), indent=1) + "\n"


# -------------------------------------------------------------------------------------- running


def _job(run: PlannedRun, out: Path, init: Path | None) -> Job:
    """The commands that make a run: the ones a user would type."""
    dcamt = (sys.executable, "-m", "dcamt")
    dataset, folder = str(run.dataset), str(run.folder)
    chosen = run.config.method.options
    changes = [f"method.{key}={json.dumps(value)}" for key, value in chosen.items()]
    train = (
        *dcamt, "train", dataset, "--out", folder, "--resume",
        "--config", str(out / "config.yaml"), "--splits", str(run.cases.file),
        "--method", run.config.method.name, "--seed", str(run.seed),
        *(part for change in changes for part in ("--set", change)),
        *(("--plan", str(out / "plan.yaml")) if run.config.plan is not None else ()),
        *(("--init", str(init)) if init is not None else ()),
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

    def __init__(self, console: Console, total: int, runs: Mapping[str, PlannedRun]):
        self.console, self.total, self.runs = console, total, runs
        self.begin, self.done = time.monotonic(), 0

    def __call__(self, job: Job) -> None:
        self.done += 1
        minutes = (time.monotonic() - self.begin) / 60
        left = minutes / self.done * (self.total - self.done)
        dice = read_scores(self.runs[job.name].scores, METRICS)["mean"]["dice"]
        shown = "none" if dice is None else percent(dice)
        self.console.print(
            f"{self.done}/{self.total}  {job.name}  Dice {shown}  {minutes:.1f} min, about "
            f"{left:.1f} min left"
        )
