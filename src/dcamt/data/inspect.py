"""Look over a data set before training: what it holds, and everything that is wrong with it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dcamt.data.dataset import Case, Dataset, check_label_values, classes_from_values, scan_dataset
from dcamt.data.split import choose_split, hide_labels
from dcamt.data.volume import Volume, check_channels, check_same_grid, read_image, read_label
from dcamt.errors import InputError
from dcamt.escape import printable

ANISOTROPY_LIMIT = 3.0
SPACING_LIMITS = (0.01, 50.0)  # mm
SHOWN_CASES = 20
LONG_NAME = 20  # characters; a table of 80 has no more for them
USES = ("labelled", "unlabelled", "validation")
GEOMETRY_LOST = (
    "spacing 1 x 1 x 1 mm and origin 0, as in files whose geometry was lost; compare the spacing "
    "with the source's, or distances in mm will be wrong"
)

Notes = dict[str, list[str]]  # remark -> names of the cases it applies to


@dataclass(frozen=True)
class Intensity:
    """Intensities of one channel of one case, in the file's own unit."""

    minimum: float
    percentile_1: float
    mean: float
    percentile_99: float
    maximum: float


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
    notes: Notes = {}
    cases = []
    for case in dataset.cases:
        use = "unlabelled" if case.label is None else "labelled"
        use = "validation" if case.name in validation else use
        cases.append(_summarise(dataset, case, use, errors, notes))
    lost = notes.get(GEOMETRY_LOST, [])
    if any(case.spacing == (1, 1, 1) and case.name not in lost for case in cases):
        notes.pop(GEOMETRY_LOST, None)  # 1 mm with a real origin: the spacing is genuine
    if all(case.label is None for case in dataset.cases):
        errors.append(f"{root}: no case has a label file; training needs at least one")
    elif not dataset.classes:
        with _collecting(errors):
            values = {value for case in cases for value in case.label_voxels or ()}
            dataset = replace(dataset, classes=classes_from_values(values, root))
    warnings = [
        f"{_names(names)} ({len(names)} of {len(cases)} cases): {remark}"
        for remark, names in notes.items()
    ]
    warnings += [
        f"{root}: no labelled case shows class {value} ({name}), so it cannot be learnt; label "
        "one that does"
        for value, name in enumerate(dataset.classes)
        if not any(_shows(case, value) for case in cases if case.use == "labelled")
    ]
    return Inspection(dataset, tuple(cases), errors, warnings)


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


def _summarise(
    dataset: Dataset, case: Case, use: str, errors: list[str], notes: Notes
) -> CaseSummary:
    image: Volume | None = None
    label: Volume | None = None
    with _collecting(errors):
        image = read_image(case.images)
        check_channels(image, dataset.channels, case.images[0])
    if case.label is not None:
        with _collecting(errors):
            label = read_label(case.label)
            if dataset.classes:
                check_label_values(label, len(dataset.classes), dataset.ignore, case.label)
        with _collecting(errors):
            if image is not None and label is not None:
                check_same_grid(image, label, case.images[0], case.label)
    for remark in _remarks(image, label):
        notes.setdefault(remark, []).append(case.name)
    found = None
    if label is not None:
        values, voxels = np.unique(label.array, return_counts=True)
        found = dict(zip(values.tolist(), voxels.tolist(), strict=True))
    return CaseSummary(
        case.name,
        use,
        size=image.shape if image else None,
        spacing=image.spacing if image else None,
        intensities=tuple(map(_intensity, image.array)) if image else (),
        label_voxels=found,
    )


def _remarks(image: Volume | None, label: Volume | None) -> Iterator[str]:
    """What is odd about a case that can be read."""
    if image is not None:
        if max(image.spacing) > ANISOTROPY_LIMIT * min(image.spacing):
            yield (
                f"voxels are more than {ANISOTROPY_LIMIT:g} times longer along one axis than along "
                "another; check that the network's spacing and patch suit that"
            )
        if min(image.spacing) < SPACING_LIMITS[0] or max(image.spacing) > SPACING_LIMITS[1]:
            low, high = SPACING_LIMITS
            yield f"the voxel spacing lies outside {low:g} to {high:g} mm; check the stored unit"
        if np.array_equal(np.abs(image.affine), np.eye(4)):
            yield GEOMETRY_LOST
        if any(channel.min() == channel.max() for channel in image.array):
            yield "all intensities of a channel are equal; export the image again"
    if label is not None and not label.array.any():
        yield "the label holds background only; check that it was saved"


def _intensity(channel: np.ndarray[Any, np.dtype[Any]]) -> Intensity:
    low, high = np.percentile(channel, (1, 99)).tolist()
    mean = float(channel.mean(dtype=np.float64))
    return Intensity(float(channel.min()), low, mean, high, float(channel.max()))


def _shows(case: CaseSummary, value: int) -> bool:
    return case.label_voxels is not None and value in case.label_voxels


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


def _names(names: Sequence[str]) -> str:
    return _list(names[:3]) + (", ..." if names[3:] else "")


@contextmanager
def _collecting(errors: list[str]) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        errors.append(str(error))
