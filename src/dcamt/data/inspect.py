"""`dcamt inspect`: what a data set holds, and everything that is wrong with it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dcamt.config import DataConfig
from dcamt.data.dataset import Dataset, scan_dataset
from dcamt.data.look import Intensity, Look
from dcamt.data.split import choose_split, hide_labels
from dcamt.data.survey import survey
from dcamt.escape import printable

SHOWN_CASES = 20
LONG_NAME = 20  # characters; a table of 80 has no more for them
USES = ("labelled", "unlabelled", "validation")


@dataclass(frozen=True)
class CaseSummary:
    """One case; what its files do not tell (unreadable, or a hidden label) is None or empty.

    use: one of USES. size: voxels. spacing: mm. intensities: one per channel.
    label_voxels: number of voxels by label value.
    """

    name: str
    use: str
    size: tuple[int, int, int] | None
    spacing: tuple[float, float, float] | None
    intensities: tuple[Intensity, ...]
    label_voxels: dict[int, int] | None


@dataclass(frozen=True)
class Inspection:
    """What a data set holds. Errors are refused by a training; warnings deserve a look."""

    dataset: Dataset
    cases: tuple[CaseSummary, ...]
    errors: list[str]
    warnings: list[str]

    @property
    def problems(self) -> list[str]:
        """Errors, then warnings."""
        return self.errors + self.warnings

    def to_dict(self) -> dict[str, Any]:
        """The inspection as JSON takes it."""
        return {
            "name": self.dataset.name,
            "channels": list(self.dataset.channels),
            "classes": list(self.dataset.classes),
            "ignore": self.dataset.ignore,
            "cases": [asdict(case) for case in self.cases],
            "errors": self.errors,
            "warnings": self.warnings,
        }


def inspect(root: Path, splits: Path | None = None) -> Inspection:
    """Open every file of a data set once and collect all problems.

    With a splits file, neither the labels of its unlabelled cases nor its test cases are opened.
    Raises InputError only for a folder that is no data set and for an unusable splits file.
    """
    dataset, errors = scan_dataset(root)
    validation: tuple[str, ...] = ()
    if splits is not None:
        split = choose_split(dataset, splits, labeled=None, seed=0, val_fraction=0)
        dataset, validation = hide_labels(dataset, split), split.val
    training = [case.name for case in dataset.cases if case.name not in validation]
    found = survey(dataset, training, DataConfig(), intensities=True)
    cases = []
    for case, look in zip(dataset.cases, found.looks, strict=True):
        use = "unlabelled" if case.label is None else "labelled"
        cases.append(_summary(look, "validation" if case.name in validation else use))
    return Inspection(found.dataset, tuple(cases), errors + found.errors, found.warnings)


def _summary(look: Look, use: str) -> CaseSummary:
    size, spacing = (look.grid.size, look.grid.spacing) if look.grid else (None, None)
    return CaseSummary(look.name, use, size, spacing, look.intensities, look.label_voxels)


def render(inspection: Inspection, all_cases: bool = False) -> RenderableType:
    """Tables for the terminal; without `all_cases` only the first cases have a row of their own."""
    dataset, cases = inspection.dataset, inspection.cases
    counts = ", ".join(f"{sum(case.use == use for case in cases)} {use}" for use in USES)
    return Group(
        _name(f"{dataset.name}: {len(cases)} cases ({counts}), channels {_list(dataset.channels)}"),
        _grid_table(cases),
        _intensity_table(dataset.channels, cases),
        _class_table(dataset, cases),
        _case_table(cases, len(cases) if all_cases else SHOWN_CASES),
        _problem_list(inspection),
    )


def _grid_table(cases: Sequence[CaseSummary]) -> Table:
    table = _table("Sizes and spacings", "axis", "quantity", "min", "median", "max")
    sizes = [case.size for case in cases if case.size is not None]
    spacings = [case.spacing for case in cases if case.spacing is not None]
    for quantity, rows in (("size (voxels)", sizes), ("spacing (mm)", spacings)):
        for axis, column in zip("XYZ", np.array(rows, dtype=float).reshape(-1, 3).T, strict=True):
            if column.size:
                numbers = (column.min(), np.median(column), column.max())
                table.add_row(axis, quantity, *map(_number, numbers))
    return table


def _intensity_table(channels: Sequence[str], cases: Sequence[CaseSummary]) -> Table:
    """Extremes over all cases, medians over the cases of the rest."""
    heads = ("minimum", "1st percentile", "mean", "99th percentile", "maximum")
    table = _table("Intensities (median over cases; extremes of all)", "channel", *heads)
    for index, channel in enumerate(channels):
        found = [case.intensities[index] for case in cases if len(case.intensities) > index]
        if found:
            table.add_row(
                _name(channel),
                _number(min(i.minimum for i in found)),
                _number(np.median([i.percentile_1 for i in found])),
                _number(np.median([i.mean for i in found])),
                _number(np.median([i.percentile_99 for i in found])),
                _number(max(i.maximum for i in found)),
            )
    return table


def _class_table(dataset: Dataset, cases: Sequence[CaseSummary]) -> Table:
    table = _table("Classes", "value", "name", "share of voxels", "cases")
    known = [case.label_voxels for case in cases if case.label_voxels is not None]
    total = sum(sum(voxels.values()) for voxels in known)
    names = dict(enumerate(dataset.classes))
    if dataset.ignore is not None:
        names[dataset.ignore] = "(ignored)"
    for value in sorted({*names, *(value for voxels in known for value in voxels)}):
        share = sum(voxels.get(value, 0) for voxels in known) / max(total, 1)
        shown = sum(value in voxels for voxels in known)
        name = _name(names.get(value, "not declared"))
        table.add_row(str(value), name, f"{share:.3%}", f"{shown} of {len(known)}")
    return table


def _case_table(cases: Sequence[CaseSummary], rows: int) -> RenderableType:
    """A line a case; with long names a name and a line, as no table holds them side by side."""
    shown = cases[:rows]
    left = f"not shown: {len(cases) - rows} of {len(cases)} cases" if len(cases) > rows else ""
    if max((len(case.name) for case in shown), default=0) <= LONG_NAME:
        table = _table("Cases", "case", "use", "size", "spacing (mm)", "intensity", "label values")
        for case in shown:
            table.add_row(_name(case.name), *_case_cells(case))
        table.caption = left or None
        return table
    lines = [_name("Cases", "italic")]
    for case in shown:
        use, size, spacing, spans, values = _case_cells(case)
        parts = [use, f"{size} voxels of {spacing} mm", spans, values and f"labels {values}"]
        lines += [_name(case.name), _name("  " + ", ".join(filter(None, parts)))]
    return Text("\n").join([*lines, _name(left, "italic")] if left else lines)


def _case_cells(case: CaseSummary) -> tuple[str, str, str, str, str]:
    """Use, size, spacing, intensities and label values."""
    spans = [f"{_number(i.minimum)} to {_number(i.maximum)}" for i in case.intensities]
    return (
        case.use,
        " x ".join(map(str, case.size or ("?",))),
        " x ".join(map(_number, case.spacing)) if case.spacing else "?",
        "; ".join(spans),
        _list(case.label_voxels) if case.label_voxels else "",
    )


def _problem_list(inspection: Inspection) -> Text:
    if not inspection.problems:
        return Text("No problems found.", style="green")
    return Text("\n").join(
        [_name(f"error: {error}", "red") for error in inspection.errors]
        + [_name(f"warning: {warning}", "yellow") for warning in inspection.warnings]
    )


def _table(title: str, *heads: str) -> Table:
    table = Table(title=title, title_justify="left")
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def _name(text: str, style: str = "") -> Text:
    """Text with names in it: as it is, whatever a terminal or rich would make of it."""
    return Text(printable(text), style)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _list(values: Any) -> str:
    return ", ".join(map(str, values))
