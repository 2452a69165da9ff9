"""DICOM Segmentation objects: what they say of themselves, and the codes of their classes."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import yaml
from pydicom.sr.codedict import codes as dictionary
from pydicom.sr.coding import Code

from dcamt import api
from dcamt.config import DataConfig
from dcamt.data.dataset import read_dataset
from dcamt.data.formats.dicom_codes import CHANGES, STRUCTURES, codes_of
from dcamt.data.formats.dicom_seg import write_segmentation
from dcamt.data.survey import survey
from dcamt.data.volume import write_volume
from dcamt.errors import InputError

SHAPE = (9, 8, 7)
IMAGE = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
AFFINE = np.diag([-0.9, -1.1, 2.5, 1])
CLASSES = ("background", "left atrium", "Liver_Tumour", "class_3", "kidney_right")
LABEL = (np.arange(IMAGE.size) % 5).astype(np.uint8).reshape(SHAPE)
GIVEN = {
    "category": ("91720002", "SCT", "Body Substance"),
    "type": ("87612001", "SCT", "Blood"),
}


def segments(path: Path) -> dict[str, tuple[str, str]]:
    """Code values of category and type by label."""
    return {
        item.SegmentLabel: (
            item.SegmentedPropertyCategoryCodeSequence[0].CodeValue,
            item.SegmentedPropertyTypeCodeSequence[0].CodeValue,
        )
        for item in pydicom.dcmread(path).SegmentSequence
    }


@pytest.fixture
def written(tmp_path, write_series) -> Path:
    folder = write_series(tmp_path / "scan", IMAGE, AFFINE, SeriesNumber=7)
    write_segmentation(tmp_path / "a.dcm", LABEL, CLASSES, {}, folder)
    return tmp_path / "a.dcm"


def test_it_has_a_description_colours_and_a_number_of_its_own(written) -> None:
    seg = pydicom.dcmread(written)
    assert seg.SeriesNumber == 1007
    assert seg.SeriesDescription == "Segmentation by dcamt"
    colours = {tuple(item.RecommendedDisplayCIELabValue) for item in seg.SegmentSequence}
    assert len(colours) == 4
    assert [item.SegmentNumber for item in seg.SegmentSequence] == [1, 2, 3, 4]


@pytest.mark.parametrize("number", [None, 0, 1, 1000, 1001, 2**31 - 1, -4])
def test_its_series_number_is_never_the_sources(tmp_path, write_series, number) -> None:
    folder = write_series(tmp_path / "scan", IMAGE, AFFINE, SeriesNumber=number)
    write_segmentation(tmp_path / "a.dcm", LABEL, CLASSES, {}, folder)
    found = pydicom.dcmread(tmp_path / "a.dcm").SeriesNumber
    assert found != number
    assert 1 <= found < 2**31


def test_classes_bear_the_codes_of_their_names(written) -> None:
    assert segments(written) == {
        "left atrium": ("123037004", "82471001"),
        "Liver_Tumour": ("49755003", "108369006"),
        "class_3": ("123037004", "123037004"),
        "kidney_right": ("123037004", "64033007"),
    }


def test_names_too_long_for_a_label_are_cut(tmp_path, write_series) -> None:
    folder = write_series(tmp_path / "scan", IMAGE, AFFINE)
    write_segmentation(tmp_path / "a.dcm", LABEL % 3, ("background", "x" * 99, "a\\b"), {}, folder)
    assert list(segments(tmp_path / "a.dcm")) == ["x" * 64, "a/b"]


def test_a_validator_finds_no_error(written) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is absent: install dicom3tools")
    done = subprocess.run(
        ["dciodvfy", str(written)], capture_output=True, text=True, errors="replace", check=False
    )
    assert "Error" not in done.stdout + done.stderr
    assert done.returncode == 0


def test_known_codes_are_those_of_the_dictionary() -> None:
    meanings: dict[str, set[str]] = {}
    for name in dir(dictionary.SCT):
        code = getattr(dictionary.SCT, name)
        if isinstance(code, Code):
            meanings.setdefault(code.value, set()).update((name.lower(), code.meaning.lower()))
    for name, value in (STRUCTURES | CHANGES).items():
        meaning = codes_of(name).type[2].lower()
        assert value in meanings, name
        assert {meaning, meaning.replace(" ", "")} & meanings[value], name


@pytest.mark.parametrize("name", ["", "liver remnant", "gall bladder", "tumour bed", "non-tumour"])
def test_what_is_not_known_for_sure_is_a_structure(name) -> None:
    assert codes_of(name).type == ("123037004", "SCT", "Anatomical Structure")


def data_set(root: Path, **more) -> Path:
    for case in ("a", "b", "c"):
        write_volume(root / "images" / f"{case}.nii.gz", IMAGE, AFFINE)
        write_volume(root / "labels" / f"{case}.nii.gz", (IMAGE > 450).astype(np.uint8), AFFINE)
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "blood": 1}, **more}
    (root / "dataset.json").write_text(json.dumps(described))
    return root


def test_codes_of_dataset_json_reach_the_segmentation(tmp_path, tiny_run, write_series) -> None:
    data = read_dataset(data_set(tmp_path / "data", codes={"blood": GIVEN}))
    plan = survey(data, ["a", "b", "c"], DataConfig()).plan
    assert plan.codes["blood"].type == GIVEN["type"]

    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["plan"]["codes"] = {
        "atrium": plan.model_dump(mode="json")["codes"]["blood"],
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    folder = write_series(tmp_path / "scan", np.tile(IMAGE, (3, 3, 3)), AFFINE)
    api.predict(run, folder, tmp_path / "out", dicom_seg=True, quiet=True)
    assert segments(tmp_path / "out" / "dicom-seg" / "scan.dcm") == {
        "atrium": ("91720002", "87612001")
    }


@pytest.mark.parametrize(
    "codes",
    [
        "blood",
        ["blood"],
        {"blood": "87612001"},
        {"blood": {"type": GIVEN["type"]}},
        {"blood": GIVEN | {"type": ("87612001", "SCT")}},
        {"blood": GIVEN | {"type": ("87612001", "SCT", "")}},
        {"blood": GIVEN | {"type": ("8" * 17, "SCT", "Blood")}},
        {"blood": GIVEN | {"type": ("87612001", "SCT", "Blo\\od")}},
        {"blood": GIVEN | {"type": ("87612001", "SCT", "Blo\nod")}},
        {"blood": GIVEN | {"type": (87612001, "SCT", "Blood")}},
        {"blood": GIVEN | {"more": GIVEN["type"]}},
    ],
)
def test_malformed_codes_are_refused(tmp_path, codes) -> None:
    with pytest.raises(InputError, match=r"dataset\.json: 'codes' is malformed; write it as"):
        read_dataset(data_set(tmp_path, codes=codes))


def test_codes_of_a_class_that_is_none_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="'codes' names 'bone', which is no class; take one of"):
        read_dataset(data_set(tmp_path, codes={"bone": GIVEN}))
