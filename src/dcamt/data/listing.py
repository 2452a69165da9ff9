"""The files that a dataset.json lists by itself."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from dcamt.data.description import FILE
from dcamt.data.folder import CHANNEL_NUMBER, scan_file, why_not


def listed_files(
    root: Path,
    listed: Mapping[str, tuple[tuple[str, ...], str | None]],
    channels: Sequence[str],
    problems: list[str],
) -> dict[str, tuple[tuple[Path, ...], Path | None]]:
    """Images and label of each case of nnU-Net's list; a case is left out if one is of no use.

    A case has one file a channel or one of all channels. What is wrong is added to ``problems``.
    """
    found = {}
    for case, (image_names, label_name) in listed.items():
        images = [_listed_file(root, name, problems) for name in image_names]
        label = None if label_name is None else _listed_file(root, label_name, problems)
        if len(images) not in (1, len(channels)):
            problems.append(
                f"{root / FILE}: case {case} lists {len(images)} images, but the data set has "
                f"{len(channels)} channels ({', '.join(channels)}); correct the list"
            )
        elif None not in images and (label is not None or label_name is None):
            found[case] = (tuple(image for image in images if image), label)
    return found


def _listed_file(root: Path, name: str, problems: list[str]) -> Path | None:
    """The file that dataset.json names; None if it is of no use, which is added to ``problems``.

    It must lie in the data set's folder: a stranger's list reads no other files of the user.
    """
    folder = os.path.normpath(root.absolute())
    whole = Path(os.path.normpath(folder / Path(name)))  # takes ".." out, follows no link
    if not whole.is_relative_to(folder):
        problems.append(
            f"{root / FILE}: lists {name!r}, which lies outside the data set's folder; move or "
            "link it into the folder"
        )
        return None
    path = root / whole.relative_to(folder)
    if not path.exists() and not path.is_symlink():
        problems.append(f"{path}: is listed in {FILE}, but is not there; correct the list")
    elif scan_file(path) is None:
        problems.append(f"{path}: {why_not(path)}")
    else:
        return path
    return None


def notes_on_training(
    training: Mapping[str, bool] | None, images: Mapping[str, object], labels: Mapping[str, object]
) -> list[str]:
    """What the Decathlon's list in dataset.json names and the folders lack."""
    lost = []
    for listed, has_label in (training or {}).items():
        number = CHANNEL_NUMBER.fullmatch(listed)
        case = number["case"] if number and listed not in images else listed
        if case not in images:
            lost.append(f"the image of {case!r}")
        elif has_label and case not in labels:
            lost.append(f"the label of {case!r}")
    more = f" and {len(lost) - 3} more" if lost[3:] else ""
    return [f"{FILE} lists files that are not there: {', '.join(lost[:3])}{more}"] if lost else []
