"""Which classes and channels there are, where nothing names them, and which labels fit them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dcamt.config import MOST_CLASSES
from dcamt.errors import InputError

MOST_GUESSED = 16
"""Volumes of one scan that are taken for channels where nothing declares them."""


def check_label_values(values: Iterable[int], classes: int, ignore: int | None, path: Path) -> None:
    """Raise InputError for values of a label outside 0 ... classes - 1 and the ignore value."""
    unknown = sorted(value for value in values if value >= classes and value != ignore)
    if unknown:
        raise InputError(
            f"{path}: the label holds {', '.join(map(str, unknown[:10]))}, but the data set "
            f"declares 0 to {classes - 1}{'' if ignore is None else f' and {ignore} (ignore)'}; "
            "remap the label or declare the class in dataset.json"
        )


def channels_from_count(count: int, path: Path) -> tuple[str, ...]:
    """Channel names where neither dataset.json nor file names tell; the image is ``path``.

    Raises InputError for so many volumes that they are more likely a time series.
    """
    if count > MOST_GUESSED:
        raise InputError(
            f"{path}: holds {count} volumes along its fourth axis, as a time series does; keep "
            "one, or declare the channels in a dataset.json if they are channels"
        )
    return tuple(f"channel_{i}" for i in range(count)) if count > 1 else ("image",)


def no_label(root: Path) -> str:
    """What is wrong with a data set in which no case has a label."""
    folder = "labelsTr" if (root / "imagesTr").is_dir() else "labels"
    return (
        f"{root}: no case has a label file, and training needs at least one; put it into {folder} "
        "under the name of its case"
    )


def classes_from_values(values: Mapping[int, Path], root: Path) -> tuple[str, ...]:
    """Class names for the label values, each with a file that holds it, found in a data set.

    Raises InputError if they are not 0, 1, 2, ... with at least one foreground class.
    """
    found = sorted(values)
    if found == [0]:
        raise InputError(
            f"{root}: all labels are empty: they hold 0 (background) alone; check that they were "
            "saved, and that the right labels are shown"
        )
    odd = next((value for wanted, value in enumerate(found) if value != wanted), None)
    if odd is not None:
        raise InputError(
            f"{root}: the labels hold the values {found}, but must hold 0 (background), 1, 2, ... "
            f"without gaps (look for {odd} in {values[odd]}); remap them, or declare the classes "
            "in a dataset.json"
        )
    classes = ("background", *(f"class_{value}" for value in found[1:]))
    check_count(classes, root)
    return classes


def check_count(classes: Sequence[str], path: Path) -> None:
    """InputError if ``path`` names more classes than can be trained at once."""
    if len(classes) > MOST_CLASSES:
        raise InputError(
            f"{path}: has {len(classes)} classes, background included; at most {MOST_CLASSES} can "
            "be trained at once, so leave some out"
        )
