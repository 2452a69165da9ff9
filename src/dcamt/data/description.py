"""The one reader of dataset.json, as nnU-Net and the Medical Segmentation Decathlon write it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from dcamt.config import ClassCodes
from dcamt.data.folder import case_name, is_plain_name
from dcamt.data.formats import FORMATS, file_stem
from dcamt.data.formats.dicom_codes import read_codes
from dcamt.errors import InputError
from dcamt.escape import printable
from dcamt.files import check_fetched, read_json

FILE = "dataset.json"
BACKGROUND = "background"
IGNORE = "ignore"
LONGEST_NUMBER = 9  # digits
FORMS = {
    "labels": '{"background": 0, "NAME": 1, ...}',
    "channel_names": '{"0": "NAME", ...}',
    "modality": '{"0": "NAME", ...}',
    "dataset": '{"CASE": {"images": ["FILE", ...], "label": "FILE"}, ...}',
}
"""How an entry is written; ends messages about it."""


@dataclass(frozen=True)
class Description:
    """What a dataset.json says; empty where there is none.

    name: None if it is not given. channels: as written, () if they are not named.
    classes: by label value, the first is background. ignore: value of voxels nobody annotated.
    listed: nnU-Net's `dataset`, case -> its images and perhaps its label, relative to the file.
    training: the Decathlon's list, case -> whether a label is listed.
    codes: what classes are, for DICOM. licence: as stated, on one line.
    notes: what a user should know of it.
    """

    name: str | None = None
    channels: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    ignore: int | None = None
    listed: Mapping[str, tuple[tuple[str, ...], str | None]] | None = None
    training: Mapping[str, bool] | None = None
    codes: Mapping[str, ClassCodes] = field(default_factory=dict)
    licence: str = ""
    notes: tuple[str, ...] = ()


def read_description(folder: Path) -> Description:
    """What the dataset.json in ``folder`` says, or nothing if there is none.

    Raises InputError for an entry that cannot be used, and for a link to what is not there.
    """
    path = folder / FILE
    check_fetched(path)
    if not path.exists():
        return Description()
    content = read_json(path)
    name = content.get("name") or None
    if name is not None and not (isinstance(name, str) and is_plain_name(name)):
        raise InputError(f"{path}: 'name' is {name!r}, but must be plain text without slashes")
    ending = content.get("file_ending")
    if ending is not None and not _is_read(ending):
        raise InputError(
            f"{path}: 'file_ending' is {ending!r}; convert the images to one of "
            f"{', '.join(FORMATS)}"
        )
    classes, ignore, notes = _read_labels(path, content.get("labels"))
    return Description(
        name=name,
        channels=_read_channels(path, content),
        classes=classes,
        ignore=ignore,
        listed=_read_listed(path, content.get("dataset")),
        training=_read_training(content.get("training")),
        codes=read_codes(path, content.get("codes", {}), classes),
        licence=_read_licence(content),
        notes=notes,
    )


def _is_read(ending: Any) -> bool:
    return isinstance(ending, str) and f".{ending.lower().removeprefix('.')}" in FORMATS


def _read_channels(path: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    """Names by number, as written: they decide how intensities are normalised, and may repeat."""
    key = next((key for key in ("channel_names", "modality") if content.get(key) is not None), None)
    if key is None:
        return ()
    entries = content[key]
    if isinstance(entries, list):
        entries = {str(number): name for number, name in enumerate(entries)}
    names = _by_number(path, key, entries)
    if sorted(names) != list(range(len(names))):
        raise _wrong(path, key, f"has the numbers {_list(sorted(names))}; count from 0")
    return tuple(names[number] for number in range(len(names)))


def _read_labels(path: Path, entries: Any) -> tuple[tuple[str, ...], int | None, tuple[str, ...]]:
    """Class names by value, the ignore value, and notes.

    The background may be left out: 0 is the background, whatever it is called.
    """
    key = "labels"
    names = _by_number(path, key, entries)
    values: dict[str, int] = {}
    for value, name in names.items():
        if name in values:
            raise _wrong(path, key, f"has the name {name!r} for {values[name]} and for {value}")
        values[name] = value
    ignore = next((value for name, value in values.items() if name.lower() == IGNORE), None)
    if ignore is not None:
        del names[ignore]
        if any(value > ignore for value in names) or ignore == 0:
            raise InputError(
                f"{path}: {IGNORE!r} has the value {ignore}, but must have the highest of all "
                "labels; renumber the labels"
            )
    called = names.pop(0, BACKGROUND)
    if not names:
        raise _wrong(path, key, "names no class beside the background")
    for value, name in names.items():
        if name.lower() == BACKGROUND:
            raise _wrong(path, key, f"gives {name!r} the value {value}, but it must have 0")
    gap = next(value for value in count(1) if value not in names)
    if gap <= len(names):
        raise _wrong(
            path,
            key,
            f"has no name for the value {gap}, but one for {max(names)}; values must be numbered "
            "without gaps, so remap the label files too",
        )
    notes: tuple[str, ...] = ()
    if called.lower() != BACKGROUND:
        notes = (
            f"{FILE} names the value 0 {called!r}; 0 is taken as the background, which is no class "
            "to learn",
        )
    return (BACKGROUND, *(names[value] for value in sorted(names))), ignore, notes


def _by_number(path: Path, key: str, entries: Any) -> dict[int, str]:
    """{number: name} from {"0": name}, {name: 0}, {name: "0"} or {name: [0]}."""
    if entries is None:
        raise _wrong(path, key, "is missing")
    if not isinstance(entries, dict) or not entries:
        raise _wrong(path, key, f"is {_short(entries)}, which is no list of names and numbers")
    numbers_first = all(map(_is_number, entries)) and any(
        isinstance(name, str) for name in entries.values()
    )
    names: dict[int, str] = {}
    for left, right in entries.items():
        name, number = (right, left) if numbers_first else (left, right)
        if isinstance(number, list) and len(number) == 1:
            number = number[0]
        if isinstance(number, list):
            raise _wrong(
                path,
                key,
                f"gives {name!r} the values {_short(number)}: a region, and regions are not "
                "supported; give each value one name of its own",
            )
        if not _is_number(number):
            raise _wrong(
                path, key, f"gives {name!r} the value {_short(number)}, no whole number from 0"
            )
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise _wrong(path, key, f"names {number} {_short(name)}, which is no plain text")
        if int(number) in names:
            also = names[int(number)]
            raise _wrong(path, key, f"gives {also!r} and {name!r} the same value {int(number)}")
        names[int(number)] = name
    return names


def _is_number(value: Any) -> bool:
    """Whether a value is a whole number from 0, perhaps written as text."""
    if isinstance(value, str):
        return value.isdecimal() and len(value) <= LONGEST_NUMBER
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _read_listed(path: Path, entries: Any) -> dict[str, tuple[tuple[str, ...], str | None]] | None:
    """nnU-Net's list of cases; other tools write a text of that name, which says nothing here."""
    if not isinstance(entries, dict) or not entries:
        return None
    listed = {}
    for case, entry in entries.items():
        images = entry.get("images") if isinstance(entry, dict) else None
        label = entry.get("label") if isinstance(entry, dict) else None
        files = [*(images if isinstance(images, list) else []), *([] if label is None else [label])]
        if not isinstance(images, list) or not images or not _are_paths(files):
            raise _wrong(path, "dataset", f"has no usable list of files for {case!r}")
        if not is_plain_name(case):
            raise _wrong(path, "dataset", f"names a case {case!r}, with characters none may have")
        listed[case_name(case)] = (tuple(images), label)
    return listed


def _are_paths(files: list[Any]) -> bool:
    return all(isinstance(file, str) and file.isprintable() and file for file in files)


def _read_training(entries: Any) -> dict[str, bool] | None:
    """Cases of the Decathlon's list, by the file names of their (first) images."""
    if not isinstance(entries, list):
        return None
    listed = {}
    for entry in entries:
        image = entry.get("image") if isinstance(entry, dict) else None
        image = image[0] if isinstance(image, list) and image else image
        if isinstance(image, str):
            name = image.replace("\\", "/").rsplit("/", 1)[-1]
            listed[case_name(file_stem(name) or name)] = bool(entry.get("label"))
    return listed


def _read_licence(content: Mapping[str, Any]) -> str:
    stated = next((content[key] for key in ("licence", "license") if content.get(key)), "")
    text = stated if isinstance(stated, str) else json.dumps(stated, ensure_ascii=False)
    return printable(" ".join(text.split()))


def _wrong(path: Path, key: str, what: str) -> InputError:
    return InputError(f"{path}: {key!r} {what}; write it as {FORMS[key]}")


def _list(values: Any) -> str:
    return ", ".join(map(str, values))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
