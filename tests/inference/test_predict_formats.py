"""Prediction of scans in every format, DICOM Segmentation, and what must not reach an output."""

import gzip
import json
import shutil
from pathlib import Path

import h5py
import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy.spatial.transform import Rotation

from dcamt import api
from dcamt.data.formats.dicom_seg import PATIENT_AND_STUDY, write_segmentation
from dcamt.data.volume import read_image, read_label, write_volume
from dcamt.errors import InputError

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (24, 20, 17)


def oblique() -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (10, -25, 5), degrees=True).as_matrix()
    affine[:3, :3] *= (1, 1.25, 1.5)
    affine[:3, 3] = (-80.25, 33.5, 12)
    return LPS @ affine


AFFINE = oblique()


def scan(seed: int = 0) -> np.ndarray:
    """Noise around a bright ball, so that a trained network finds something."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    ball = np.linalg.norm((grid - (9, 11, 8)) * (1, 1.25, 1.5), axis=-1) < 7
    values = np.random.default_rng(seed).normal(300, 60, SHAPE) + 300 * ball
    return np.rint(values).astype(np.int16)


def test_one_scan_in_every_format_gives_one_segmentation(
    cli, tiny_run, tmp_path, write_series
) -> None:
    scans = tmp_path / "scans"
    for ending in ("nii.gz", "nii", "nrrd", "mha"):
        write_volume(scans / f"{ending.replace('.', '_')}.{ending}", scan(), AFFINE)
    write_volume(scans / "h5.h5", scan().astype(np.float32), AFFINE)
    write_volume(scans / "paper" / "mri_norm2.h5", scan().astype(np.float32), AFFINE)
    write_series(scans / "series", scan(), AFFINE)
    for ending in ("nhdr", "mhd"):
        sitk.WriteImage(sitk.ReadImage(str(scans / "mha.mha")), str(scans / f"{ending}.{ending}"))
    code, _, err = cli("predict", tiny_run, scans, "--out", tmp_path / "out", "--quiet")
    assert (code, err) == (0, "")
    files = (tmp_path / "out").glob("*.nii.gz")
    found = {p.name.removesuffix(".nii.gz"): nib.load(p) for p in files}
    assert sorted(found) == sorted(
        ["nii_gz", "nii", "nrrd", "nhdr", "mha", "mhd", "h5", "paper", "series"]
    )
    first = np.asarray(found["nii_gz"].dataobj)
    assert 0 < first.sum() < first.size  # something to compare
    for image in found.values():
        np.testing.assert_array_equal(np.asarray(image.dataobj), first)
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha", "h5"])
def test_segmentations_and_maps_in_every_format(cli, tiny_run, tmp_path, ending) -> None:
    write_volume(tmp_path / "a.nrrd", scan(), AFFINE)
    out = tmp_path / "out"
    code, _, err = cli("predict", tiny_run, tmp_path / "a.nrrd", "--out", out, "--format", ending,
                       "--probabilities", "--uncertainty", "--quiet")  # fmt: skip
    assert (code, err) == (0, "")
    maps = [read_image([p]) for p in (out / "probabilities").iterdir()]
    maps += [read_image([p]) for p in (out / "uncertainty").iterdir()]
    label = read_label(out / f"a.{ending}")
    assert len(maps) == 4
    for volume in (label, *maps):
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
        assert volume.shape == SHAPE
    organ = read_image([out / "probabilities" / f"a_atrium.{ending}"]).array[0]
    np.testing.assert_array_equal(label.array, organ > 0.5)

    truth = (organ > 0.4).astype(np.uint8)
    write_volume(tmp_path / "labels" / "a.mha", truth, AFFINE)
    code, _, err = cli("evaluate", out, tmp_path / "labels", "--out", tmp_path / "scores.json")
    assert (code, err) == (0, "")
    (row,) = json.loads((tmp_path / "scores.json").read_text())["cases"]
    both = 2 * (label.array & truth).sum() / (label.array.sum() + truth.sum())
    assert row["dice"] == pytest.approx(both)


def segment(tiny_run, folder: Path, out: Path, **options) -> tuple[Path, Path]:
    (output,) = api.predict(tiny_run, folder, out, dicom_seg=True, quiet=True, **options)
    return output, out / "dicom-seg" / f"{folder.name}.dcm"


def assert_lies_on(seg_file: Path, output: Path, series: Path) -> None:
    """Voxel by voxel: the frames of the segmentation by their own positions, against NIfTI."""
    seg = hd.seg.segread(seg_file)
    wanted = nib.load(output)
    found = np.zeros(wanted.shape, np.uint8)
    to_index = np.linalg.inv(LPS @ wanted.affine)
    known = {pydicom.dcmread(p).SOPInstanceUID: p for p in series.iterdir()}
    shared = seg.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    down, across = (float(mm) for mm in shared.PixelMeasuresSequence[0].PixelSpacing)
    pixels = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for frame, group in zip(pixels, seg.PerFrameFunctionalGroupsSequence, strict=True):
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        rows, columns = np.nonzero(frame)
        world = place + np.outer(columns * across, cosines[:3]) + np.outer(rows * down, cosines[3:])
        index = world @ to_index[:3, :3].T + to_index[:3, 3]
        np.testing.assert_allclose(index, np.rint(index), atol=1e-2)
        # With one segment in all it is named once for all frames.
        named = group if "SegmentIdentificationSequence" in group else shared
        number = named.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[tuple(np.rint(index).astype(int).T)] = number
        # Each frame names the slice it lies on.
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        slice_place = pydicom.dcmread(known[source]).ImagePositionPatient
        np.testing.assert_allclose(place, np.array(slice_place, float), atol=1e-3)
    np.testing.assert_array_equal(found, np.asarray(wanted.dataobj))


def test_dicom_segmentation_lies_on_its_slices(tiny_run, tmp_path, write_series) -> None:
    folder = write_series(tmp_path / "scan", scan(), AFFINE)
    output, seg_file = segment(tiny_run, folder, tmp_path / "out")
    assert_lies_on(seg_file, output, folder)
    seg, source = hd.seg.segread(seg_file), pydicom.dcmread(next(folder.iterdir()))
    assert seg.Modality == "SEG"
    assert list(seg.segment_numbers) == [1]
    assert seg.get_segment_description(1).segment_label == "atrium"
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName"):
        assert seg[name].value == source[name].value
    (referenced,) = seg.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    assert seg.SOPClassUID.name == "Segmentation Storage"
    itk = sitk.ReadImage(str(seg_file))  # another reader opens it
    assert itk.GetSize()[:2] == SHAPE[:2]


def test_dicom_segmentation_of_a_real_oblique_series(real_data, tiny_run, tmp_path) -> None:
    source = real_data / "dicom" / "hippocampus_crop"
    if not source.is_dir():
        pytest.skip("dicom/hippocampus_crop is absent from the real volumes")
    folder = tmp_path / "crop"
    shutil.copytree(source, folder)
    output, seg_file = segment(tiny_run, folder, tmp_path / "out")
    assert_lies_on(seg_file, output, folder)


def test_an_empty_segmentation_is_still_an_object(
    tiny_run, tmp_path, write_series, monkeypatch
) -> None:
    folder = write_series(tmp_path / "scan", scan(), AFFINE)
    monkeypatch.setattr("dcamt.inference.predict.keep_largest", np.zeros_like)
    output, seg_file = segment(tiny_run, folder, tmp_path / "out", largest_component=True)
    assert not nib.load(output).get_fdata().any()
    assert_lies_on(seg_file, output, folder)


def elements(dataset: pydicom.Dataset):
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from elements(item)
        else:
            yield element


def test_dicom_segmentation_takes_only_what_is_required(
    tiny_run, tmp_path, write_series, private
) -> None:
    folder = write_series(tmp_path / "scan", scan(), AFFINE)
    _, seg_file = segment(tiny_run, folder, tmp_path / "out")
    kept = {
        element.keyword
        for element in elements(pydicom.dcmread(seg_file))
        if str(element.value) and str(element.value) in private.values()
    }
    assert kept <= set(PATIENT_AND_STUDY)
    content = seg_file.read_bytes()
    for name, value in private.items():
        if name not in PATIENT_AND_STUDY:
            assert value.encode() not in content, name
    assert b"privatefreetext" not in content


@pytest.mark.parametrize(
    ("charset", "name"),
    [("ISO_IR 144", "Щукин^Яна"), ("ISO_IR 100", "Müller^Änne"), ("ISO_IR 192", "MUSTERMANN")],
)
def test_names_in_any_letters_are_kept_and_not_spoken_of(
    tmp_path, write_series, recwarn, capfd, charset, name
) -> None:
    folder = write_series(
        tmp_path / "scan", scan(), AFFINE, SpecificCharacterSet=charset, PatientName=name
    )
    write_segmentation(
        tmp_path / "a.dcm", (scan() > 480).astype(np.uint8), ("background", "Vorhöfe"), {}, folder
    )
    seg = pydicom.dcmread(tmp_path / "a.dcm")
    assert seg.PatientName == name
    assert seg.SegmentSequence[0].SegmentLabel == "Vorhöfe"
    assert not [warning for warning in recwarn if "highdicom" in warning.filename]
    assert capfd.readouterr() == ("", "")


def test_dicom_segmentation_needs_dicom(cli, tiny_run, tmp_path, write_series) -> None:
    write_volume(tmp_path / "a.nrrd", scan(), AFFINE)
    result = cli("predict", tiny_run, tmp_path / "a.nrrd", "--out", tmp_path / "out", "--dicom-seg")
    assert result[0] == 2
    assert "a.nrrd: is no folder of DICOM slices" in result[2]
    result = cli("predict", tiny_run, tmp_path / "a.nrrd", "--out", tmp_path / "out", "--series", 1)
    assert result[0] == 2
    assert "leave out --series" in result[2]
    assert not (tmp_path / "out").exists()

    folder = write_series(tmp_path / "scan", scan(), AFFINE)
    for path in folder.iterdir():
        head = pydicom.dcmread(path)
        del head.FrameOfReferenceUID
        head.save_as(path)
    code, _, err = cli("predict", tiny_run, folder, "--out", tmp_path / "out", "--dicom-seg", "-q")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "frame of reference" in err


def test_what_exists_is_not_written_over(cli, tiny_run, tmp_path, write_series) -> None:
    folder = write_series(tmp_path / "scan", scan(), AFFINE)
    (tmp_path / "out" / "dicom-seg").mkdir(parents=True)
    mine = tmp_path / "out" / "dicom-seg" / "scan.dcm"
    mine.write_bytes(b"mine")
    code, _, err = cli("predict", tiny_run, folder, "--out", tmp_path / "out", "--dicom-seg", "-q")
    assert (code, "exists already" in err) == (2, True)
    assert mine.read_bytes() == b"mine"


def test_links_in_the_output_folder_are_refused(cli, tiny_run, tmp_path) -> None:
    write_volume(tmp_path / "a.nrrd", scan(), AFFINE)
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "probabilities").symlink_to(tmp_path / "elsewhere")
    code, _, err = cli("predict", tiny_run, tmp_path / "a.nrrd", "--out", tmp_path / "out",
                       "--probabilities", "-q")  # fmt: skip
    assert (code, "is a link" in err) == (2, True)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_several_series_in_one_folder(cli, tiny_run, tmp_path, write_series, private) -> None:
    folder = write_series(tmp_path / "scans", scan(), AFFINE, SeriesNumber=4)
    write_series(folder, scan(1)[:, :, :16], AFFINE, SeriesNumber=9, Modality="CT")
    args = ("predict", tiny_run, folder, "--out", tmp_path / "out", "--dicom-seg", "--quiet")
    code, out, err = cli(*args)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "1) MR, 17 slices of 24 x 20; 2) CT, 16 slices of 24 x 20" in err
    assert not any(value in err for value in private.values())
    assert cli(*args, "--series", "2")[0] == 0
    assert nib.load(tmp_path / "out" / "scans.nii.gz").shape == (24, 20, 16)
    seg = hd.seg.segread(tmp_path / "out" / "dicom-seg" / "scans.dcm")
    source = pydicom.dcmread(folder / "9-001.dcm")
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID


def test_a_single_slice_is_no_scan(cli, tiny_run, tmp_path, write_series) -> None:
    folder = write_series(tmp_path / "scan", scan(), AFFINE)
    code, _, err = cli("predict", tiny_run, folder / "1-001.dcm", "--out", tmp_path / "out")
    assert (code, "give the folder that holds the DICOM series" in err) == (2, True)


def test_the_folder_one_is_in_gives_the_name(tiny_run, tmp_path, write_series, monkeypatch) -> None:
    monkeypatch.chdir(write_series(tmp_path / "scan", scan(), AFFINE))
    (output,) = api.predict(tiny_run, ".", tmp_path / "out", quiet=True)
    assert output.name == "scan.nii.gz"


def written_text(folder: Path) -> dict[Path, bytes]:
    """Every file below, unpacked, and its name."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if path.name.endswith(".gz"):
                content += gzip.decompress(content)
            found[path] = str(path).encode() + content
    return found


def test_nothing_of_a_patient_reaches_what_a_run_writes(
    cli, tmp_path, write_series, private, tiny, monkeypatch
) -> None:
    """Inspect, train, predict, evaluate and report on DICOM; every file and word is searched."""
    data = tmp_path / "data"
    label = (scan() > 480).astype(np.uint8)
    for case in ("a", "b", "c", "d", "e"):
        write_series(data / "images" / case, scan(ord(case)), AFFINE)
        if case in "abe":
            write_volume(data / "labels" / f"{case}.nrrd", label, AFFINE)
    split = {"labeled": ["a", "b"], "unlabeled": ["c", "d"], "val": ["e"]}
    (data / "splits.json").write_text(json.dumps(split))
    bad = shutil.copytree(data / "images" / "a", tmp_path / "bad")
    spoiled = bytearray((bad / "1-003.dcm").read_bytes())
    spoiled[400:] = spoiled[400:700]
    (bad / "1-003.dcm").write_bytes(spoiled)
    two = shutil.copytree(data / "images" / "a", tmp_path / "two")
    write_series(two, scan(), AFFINE, SeriesNumber=2)

    work = tmp_path / "work"
    sets = [part for value in tiny for part in ("--set", value)]
    run, images, out = work / "run", data / "images", work / "out"
    commands: list[tuple[int, list]] = [
        (0, ["inspect", data]),
        (0, ["train", data, "--out", run, "--splits", data / "splits.json", *sets]),
        (0, ["predict", run, images, "--out", out, "--probabilities", "--uncertainty"]),
        (0, ["evaluate", out, data, "--out", work / "scores.json"]),
        (0, ["report", run]),
        (2, ["predict", run, bad, "--out", work / "bad"]),
        (2, ["predict", run, two, "--out", work / "two"]),
        (2, ["inspect", tmp_path / "bad"]),
    ]
    monkeypatch.setenv("DCAMT_CACHE", str(work / "cache"))
    spoken = []
    for wanted, command in commands:
        if command[0] == "evaluate":  # unlabelled cases have nothing to be compared with
            for case in "cd":
                (out / f"{case}.nii.gz").unlink()
        code, *said = cli(*command)
        assert code == wanted, said
        spoken.append("".join(said).encode())
    texts = {**written_text(work), **{Path(f"output {i}"): text for i, text in enumerate(spoken)}}
    assert len(list((work / "cache").iterdir())) >= 8
    assert (run / "report.html") in texts
    secrets = [*private.values(), "Quixwold", "Zephyrine", "privatefreetext"]
    secrets += [str(pydicom.dcmread(p).SeriesInstanceUID) for p in images.glob("*/1-001.dcm")]
    for path, content in texts.items():
        for secret in secrets:
            assert secret.encode() not in content, f"{secret} in {path}"
            assert secret.encode("utf-16-le") not in content, f"{secret} in {path}"


def test_a_run_on_the_literatures_files_never_opens_a_hidden_label(cli, tmp_path, tiny) -> None:
    """Hidden labels are poisoned; the validation case is scored by the label in its file."""
    data = tmp_path / "data"
    for case in ("a", "b", "c", "d", "e", "f"):
        path = data / case / "mri_norm2.h5"
        path.parent.mkdir(parents=True)
        values = scan(ord(case)).astype(np.float32)
        with h5py.File(path, "w") as file:
            file.create_dataset("image", data=values, compression="gzip")
            if case in "abe":
                file.create_dataset("label", data=(values > 480).astype(np.uint8))
            elif case in "cf":
                file.create_dataset("label", data=np.full(SHAPE, "poison", dtype="S6"))
    split = {"labeled": ["a", "b"], "unlabeled": ["c", "d"], "val": ["e"], "test": ["f"]}
    (data / "splits.json").write_text(json.dumps(split))
    sets = [part for value in tiny for part in ("--set", value)]
    code, _, err = cli("train", data, "--out", tmp_path / "run", "--splits", data / "splits.json",
                       "--quiet", *sets)  # fmt: skip
    assert (code, err) == (0, "")
    scores = json.loads((tmp_path / "run" / "validation.json").read_text())
    assert {row["case"] for row in scores["cases"]} == {"e"}
    with pytest.raises(InputError, match="'label' holds no plain numbers"):
        read_label(data / "c" / "mri_norm2.h5")
