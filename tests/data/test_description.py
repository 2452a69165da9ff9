"""dataset.json as different tools write it."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from dcamt.data.dataset import read_dataset
from dcamt.data.description import Description, read_description
from dcamt.errors import InputError
from dcamt.evaluation.evaluate import evaluate

LABELS = {"background": 0, "front": 1, "back": 2}
CHANNELS = {"0": "MRI"}


def write(folder: Path, content: Any, **how: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content), **how)
    return folder


def described(folder: Path, **entries: Any) -> Description:
    content = {"channel_names": CHANNELS, "labels": LABELS, "file_ending": ".nii.gz"} | entries
    return read_description(write(folder, content))


def test_there_may_be_none(tmp_path: Path) -> None:
    assert read_description(tmp_path) == Description()


def test_both_conventions_say_the_same(tmp_path: Path) -> None:
    decathlon = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "front", "2": "back"},
    }
    wanted = Description(channels=("MRI",), classes=("background", "front", "back"))
    assert read_description(write(tmp_path / "a", decathlon)) == wanted
    assert described(tmp_path / "b") == wanted


@pytest.mark.parametrize(
    "labels",
    [
        {"front": 1, "back": 2},
        {"back": 2, "front": 1},
        {"1": "front", "2": "back"},
        {"Background": 0, "front": 1, "back": 2},
        {"background": "0", "front": "1", "back": "2"},
        {"background": 0, "front": [1], "back": [2]},
        {"00": "background", "01": "front", "02": "back"},
    ],
)
def test_forms_of_the_same_labels(tmp_path: Path, labels: dict[str, Any]) -> None:
    """The background may be left out, as 0 can be nothing else."""
    assert described(tmp_path, labels=labels).classes == ("background", "front", "back")


def test_background_by_another_name_is_background_and_said(tmp_path: Path) -> None:
    labels = {"0": "Clear Label", "1": "front", "2": "back"}
    told = described(tmp_path, labels=labels)
    assert told.classes == ("background", "front", "back")
    (note,) = told.notes
    assert "names the value 0 'Clear Label'" in note
    assert "background" in note


@pytest.mark.parametrize(
    ("labels", "value"),
    [
        ({"background": 0, "liver": 1, "ignore": 2}, 2),
        ({"2": "ignore", "1": "liver", "0": "Background"}, 2),
        ({"background": 0, "liver": 1, "ignore": 255}, 255),
        ({"liver": 1, "Ignore": "255"}, 255),
        ({"0": "background", "1": "liver", "99": "IGNORE"}, 99),
    ],
)
def test_ignore_may_have_any_value_above_the_classes(
    tmp_path: Path, labels: dict[str, Any], value: int
) -> None:
    told = described(tmp_path, labels=labels)
    assert (told.classes, told.ignore) == (("background", "liver"), value)


@pytest.mark.parametrize(
    ("names", "channels"),
    [
        ({"0": "CT", "1": "CT"}, ("CT", "CT")),
        ({"0000": "FLAIR", "0001": "T1"}, ("FLAIR", "T1")),
        ({"1": "noNorm", "0": "MRI"}, ("MRI", "noNorm")),
        ({"T1": 0, "T2": 1}, ("T1", "T2")),
        (["T1", "T2"], ("T1", "T2")),
    ],
)
def test_channel_names_are_kept_as_written(
    tmp_path: Path, names: Any, channels: tuple[str, ...]
) -> None:
    """nnU-Net normalises by them, so several may be called alike."""
    assert described(tmp_path, channel_names=names).channels == channels


def test_extra_entries_and_odd_details_do_no_harm(tmp_path: Path) -> None:
    content = {
        "labels": LABELS,
        "numTraining": 99,
        "tensorImageSize": "4D",
        "regions_class_order": [1, 2],
        "overwrite_image_reader_writer": "SimpleITKIO",
        "dataset": "Dataset001",
        "training": 3,
        "name": None,
        "file_ending": "NII.GZ",
    }
    told = read_description(write(tmp_path, content, encoding="utf-8-sig"))
    assert told == Description(classes=("background", "front", "back"))


BAD_DESCRIPTIONS: dict[str, tuple[Any, str]] = {
    "list": ([], "must hold a JSON object"),
    "no labels": ({"modality": CHANNELS}, "'labels' is missing; write it as"),
    "labels as list": ({"labels": ["a"]}, r"'labels' is \['a'\], which is no list of names and"),
    "channels as text": (
        {"labels": LABELS, "modality": "CT"},
        "'modality' is 'CT', which is no list .* write it as .*\"NAME\"",
    ),
    "channel gap": (
        {"labels": LABELS, "modality": {"0": "A", "2": "B"}},
        "'modality' has the numbers 0, 2; count from 0",
    ),
    "channel twice": (
        {"labels": LABELS, "channel_names": {"0": "A", "00": "B"}},
        "'channel_names' gives 'A' and 'B' the same value 0",
    ),
    "label gap": (
        {"labels": {"background": 0, "a": 1, "b": 4}},
        "'labels' has no name for the value 2, but one for 4",
    ),
    "value twice": (
        {"labels": {"background": 0, "a": 1, "b": 1}},
        "'labels' gives 'a' and 'b' the same value 1",
    ),
    "name twice": (
        {"labels": {"0": "background", "1": "a", "2": "a"}},
        "'labels' has the name 'a' for 1 and for 2",
    ),
    "regions": (
        {"labels": {"background": 0, "whole": [1, 2], "core": [2]}},
        r"'labels' gives 'whole' the values \[1, 2\]: a region, and regions are not supported; "
        r"give each value one name of its own; write it as {\"background\": 0, \"NAME\": 1",
    ),
    "fraction": ({"labels": {"background": 0, "a": 1.5}}, "gives 'a' the value 1.5, no whole"),
    "negative": ({"labels": {"a": 1, "ignore": -1}}, "gives 'ignore' the value -1, no whole"),
    "truth": ({"labels": {"background": False, "a": True}}, "'background' the value False"),
    "digits without end": ({"labels": {"9" * 5000: "a"}}, "no whole number"),
    "control characters": ({"labels": {"a\x1b[2J": 1}}, "which is no plain text"),
    "empty name": ({"labels": {"0": "background", "1": " "}}, "names 1 ' ', which is no plain"),
    "number for a name": ({"labels": {"0": "background", "1": 5}}, "names 1 5, which is no plain"),
    "background elsewhere": (
        {"labels": {"liver": 0, "background": 1}},
        "'labels' gives 'background' the value 1, but it must have 0",
    ),
    "no class": ({"labels": {"background": 0}}, "names no class beside the background"),
    "only ignore": ({"labels": {"background": 0, "ignore": 1}}, "names no class beside"),
    "low ignore": (
        {"labels": {"background": 0, "ignore": 1, "a": 2}},
        "'ignore' has the value 1, but must have the highest",
    ),
    "name that climbs": ({"labels": LABELS, "name": "../../elsewhere"}, "without slashes"),
    "name that is no text": ({"labels": LABELS, "name": 3}, "'name' is 3"),
    "file ending": ({"labels": LABELS, "file_ending": ".png"}, "'file_ending' is '.png'"),
    "listed without images": (
        {"labels": LABELS, "dataset": {"a": {"label": "a.nii"}}},
        "'dataset' has no usable list of files for 'a'",
    ),
    "listed with control characters": (
        {"labels": LABELS, "dataset": {"a": {"images": ["\x1b[2J.nii"]}}},
        "'dataset' has no usable list of files for 'a'",
    ),
    "listed by a path": (
        {"labels": LABELS, "dataset": {"../a": {"images": ["a.nii"]}}},
        "'dataset' names a case '../a', with characters none may have",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_DESCRIPTIONS)
def test_every_reader_refuses_a_bad_entry_with_the_same_sentence(tmp_path: Path, name: str) -> None:
    content, message = BAD_DESCRIPTIONS[name]
    root = write(tmp_path / "data", content)
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
        volume = nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4))
        nib.save(volume, root / folder / "a.nii.gz")
    for read in (read_dataset, lambda place: evaluate(root / "labelsTr", place)):
        with pytest.raises(InputError, match=rf"dataset\.json: .*{message}"):
            read(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"cannot be read \(not valid JSON"),
        (b"[" * 100_000, r"cannot be read \(not valid JSON"),
        (b"\xff\xfe\x00", "is not plain text"),
    ],
    ids=["cut", "deep", "binary"],
)
def test_broken_json(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"dataset\.json: {message}"):
        read_description(tmp_path)


def test_a_link_to_a_missing_file_is_not_taken_for_no_file(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"dataset\.json: is a link whose target is not there"):
        read_description(tmp_path)
