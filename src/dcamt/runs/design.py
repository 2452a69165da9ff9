"""What a comparison consists of: its rows, its numbers of labels with their cases, its runs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dcamt.config import Config, MethodConfig, load_config
from dcamt.data.dataset import Dataset
from dcamt.data.split import Split, choose_split
from dcamt.errors import InputError
from dcamt.runs.build import check_trains, resolve_method

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
class Cases:
    """One number of labels and the cases that go with it. ``name`` is "8", or "all"."""

    name: str
    split: Split
    file: Path

    @property
    def scored(self) -> Literal["test", "validation"]:
        """Which of them the tables are about."""
        return "test" if self.split.test else "validation"

    @property
    def judged(self) -> tuple[str, ...]:
        """The names of those."""
        return self.split.test or self.split.val


@dataclass(frozen=True)
class PlannedRun:
    """One training: of a row, on cases of ``dataset``, into ``folder``.

    ``config`` is what `dcamt train` is to be told; the plan is left out unless one is given.
    """

    row: Row
    cases: Cases
    seed: int
    folder: Path
    dataset: Path
    config: Config

    @property
    def scores(self) -> Path:
        """The file of its scores."""
        return self.folder / f"{self.cases.scored}.json"

    @property
    def done(self) -> bool:
        """Whether nothing of it is left to do."""
        # The report is the last thing that training writes; the test cases come after it.
        return self.scores.exists() and (self.folder / "report.html").exists()


def parse_rows(methods: str) -> list[Row]:
    """Rows from ``NAME[:KEY=VALUE...],...``; a row is named as it is written.

    Raises InputError for an unknown method or option, or a row that is there twice.
    """
    rows = []
    for item in re.split(r",(?![^\[]*\])", methods):  # commas within [...] are of a value
        name, *options = item.strip().split(":")
        if not name or not all(re.fullmatch(r"[\w.]+=.+", option) for option in options):
            raise InputError(
                f"--methods {item.strip()!r}: write NAME or NAME:KEY=VALUE, e.g. dca-mt:paste=0"
            )
        changes = [f"method.{option}" for option in options]
        method = load_config(None, [f"method.name={name}", *changes]).method
        resolve_method(method)
        check_trains(method)
        rows.append(Row(item.strip(), method))
    refuse_twins([row.name for row in rows])
    return rows


def ablation_rows() -> list[Row]:
    """DCA-MT without and with each of its parts, as the paper's Tables 1 and 2 have them."""
    return [
        Row(name, MethodConfig.model_validate({"name": "dca-mt", "components": components}))
        for name, components in _ABLATION.items()
    ]


def choose_cases(
    dataset: Dataset, out: Path, splits: Path | None, count: Count, config: Config
) -> Cases:
    """The cases that go with ``count`` labels; InputError if none is there to score on."""
    split = choose_split(dataset, splits, count, config.seed, config.data.val_fraction)
    if not split.val and not split.test:
        raise InputError(
            f"{splits or dataset.root}: there is no validation and no test case to score the "
            "methods on; name some in a splits file"
        )
    name = "all" if count == "all" else str(len(split.labeled))
    return Cases(name, split, out / "splits" / f"{name}-labels.json")


def list_runs(
    dataset: Dataset,
    out: Path,
    design: Design,
    cases: Sequence[Cases],
    config: Config,
) -> list[PlannedRun]:
    """Every run, seed by seed, so that a table of few seeds is there first.

    Raises InputError for options of a method that is not compared, for the ceiling alone, and for
    two runs of one name.
    """
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
    place = dataset.root.resolve()
    runs = []
    for seed in range(design.seeds):
        for c in cases:
            for row in [ceiling] if c.name == "all" else rows:
                options = shared if row.method.name == config.method.name else {}
                values = {"name": row.method.name, **options, **row.method.options}
                method = resolve_method(MethodConfig.model_validate(values))
                told = {"dataset": place, "seed": seed, "method": method}
                # Dumped, so that every value counts as set when a run is held against it.
                whole = config.model_copy(update=told).model_dump(mode="json", exclude=unplanned)
                folder = out / "runs" / f"{_file_part(row.name)}-{c.name}-labels-seed{seed}"
                own = Config.model_validate(whole)
                runs.append(PlannedRun(row, c, seed, folder, place, own))
    refuse_twins([run.folder.name for run in runs])
    return runs


def _file_part(name: str) -> str:
    return re.sub(r"[^\w.=+\[\],-]", "_", name.replace(":", "+"))


def refuse_twins(names: Sequence[str]) -> None:
    """InputError if a name is there twice."""
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name}: is asked for more than once; name it once")
