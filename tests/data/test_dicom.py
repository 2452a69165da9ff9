"""Folders of DICOM slices: against SimpleITK, several series, and what is refused."""

import gzip
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.uid import (
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)
from scipy.spatial.transform import Rotation

from dcamt.data.formats import dicom
from dcamt.data.volume import read_image, read_label
from dcamt.errors import InputError

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
ARRAY = np.random.default_rng(0).integers(-900, 900, (6, 5, 7)).astype(np.int16)


def slices_along_z(degrees=(0, 0, 0), spacing=(0.9, 1.1, 2.5)) -> np.ndarray:
    """An affine (voxel -> RAS+ mm) whose third axis is the normal of the first two, in LPS."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * spacing
    affine[:3, 3] = (-80.25, 33.5, 12)
    return LPS @ affine


AFFINE = slices_along_z((12, -25, 40))


def itk_series(folder: Path) -> SimpleITK.Image:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def assert_as_simpleitk(folder: Path) -> None:
    found, itk = read_image([folder]), itk_series(folder)
    np.testing.assert_allclose(found.array[0], SimpleITK.GetArrayFromImage(itk).T, atol=1e-3)
    size = np.array(itk.GetSize()) - 1
    for index in np.ndindex(2, 2, 2):
        corner = (size * index).tolist()
        world = (LPS @ found.affine @ [*corner, 1])[:3]
        np.testing.assert_allclose(itk.TransformIndexToPhysicalPoint(corner), world, atol=2e-3)


@pytest.mark.parametrize("degrees", [(0, 0, 0), (12, -25, 40), (90, 0, 0), (0, 180, 0)])
def test_a_series_lies_where_it_was_written(tmp_path: Path, write_series, degrees) -> None:
    affine = slices_along_z(degrees)
    folder = write_series(tmp_path / "scan", ARRAY, affine)
    found = read_image([folder])
    assert found.array.dtype == np.float32
    np.testing.assert_array_equal(found.array[0], ARRAY)
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    assert_as_simpleitk(folder)


@pytest.mark.parametrize("name", ["brain_t1_oblique", "hippocampus_crop"])
def test_real_series_agree_with_simpleitk(real_data: Path, name: str) -> None:
    folder = real_data / "dicom" / name
    if not folder.is_dir():
        pytest.skip(f"dicom/{name} is absent from the real volumes")
    assert_as_simpleitk(folder)


def change(folder: Path, which, **elements) -> Path:
    """Set elements (None removes) of the slices whose place in the order is in ``which``."""
    for path in folder.glob("*.dcm"):
        head = pydicom.dcmread(path)
        if int(head.InstanceNumber) - 1 in which:
            for name, value in elements.items():
                if value is None:
                    delattr(head, name)
                else:
                    setattr(head, name, value)
            head.save_as(path)
    return folder


EVERY = range(99)


def test_values_are_rescaled_slice_by_slice(tmp_path: Path, write_series) -> None:
    folder = write_series(tmp_path / "ct", ARRAY, AFFINE, Modality="CT", RescaleSlope="2",
                          RescaleIntercept="-1024")  # fmt: skip
    change(folder, [3], RescaleSlope="3")
    wanted = ARRAY.astype(np.float32) * 2 - 1024
    wanted[:, :, 3] = ARRAY[:, :, 3] * 3.0 - 1024
    np.testing.assert_array_equal(read_image([folder]).array[0], wanted)
    assert_as_simpleitk(folder)


def test_bits_that_are_not_stored_count_for_nothing(tmp_path: Path, write_series) -> None:
    values = np.clip(ARRAY, -900, 900)
    dirty = (values.astype(np.int32) & 0x0FFF) | (np.arange(7) % 16 << 12)
    folder = write_series(tmp_path / "a", dirty.astype(np.uint16).view(np.int16), AFFINE,
                          BitsStored=12, HighBit=11)  # fmt: skip
    np.testing.assert_array_equal(read_image([folder]).array[0], values)
    large = np.abs(ARRAY).astype(np.uint16) + 40000
    folder = write_series(tmp_path / "b", large, AFFINE, PixelRepresentation=0)
    np.testing.assert_array_equal(read_image([folder]).array[0], large)


def test_big_endian(tmp_path: Path, write_series) -> None:
    folder = write_series(tmp_path / "big", ARRAY, AFFINE)
    for path in folder.iterdir():
        head = pydicom.dcmread(path)
        head.PixelData = head.pixel_array.astype(">i2").tobytes()
        head["PixelData"].VR = "OW"
        head.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        pydicom.dcmwrite(path, head, implicit_vr=False, little_endian=False)
    np.testing.assert_array_equal(read_image([folder]).array[0], ARRAY)


def compress(folder: Path, syntax: str) -> Path:
    for path in folder.iterdir():
        head = pydicom.dcmread(path)
        head.compress(syntax, generate_instance_uid=False)
        head.save_as(path)
    return folder


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_pixels(tmp_path: Path, write_series, private, syntax: str) -> None:
    array = np.random.default_rng(0).integers(0, 60, (16, 12, 5)).astype(np.uint16)
    folder = write_series(tmp_path / "scan", array, AFFINE, PixelRepresentation=0,
                          RescaleSlope="2", RescaleIntercept="-1024")  # fmt: skip
    compress(folder, syntax)
    found = read_image([folder])
    np.testing.assert_array_equal(found.array[0], array * 2.0 - 1024)
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-5)
    path = folder / "1-003.dcm"
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    with pytest.raises(InputError) as error:
        read_image([folder])
    assert not any(value in str(error.value) for value in private.values())


def test_what_decoders_invert_is_refused(tmp_path: Path, write_series) -> None:
    folder = write_series(tmp_path / "scan", ARRAY, AFFINE, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_image([folder]).array[0], ARRAY)
    compress(folder, RLELossless)
    with pytest.raises(InputError, match="is compressed and MONOCHROME1"):
        read_image([folder])


def test_several_series_are_listed_and_one_is_chosen(tmp_path: Path, write_series, private) -> None:
    folder = write_series(tmp_path / "scans", ARRAY, AFFINE, SeriesNumber=7, Modality="CT")
    write_series(folder, ARRAY[:, :, :4] + 1, AFFINE, SeriesNumber=3)
    with pytest.raises(InputError) as error:
        read_image([folder])
    message = str(error.value)
    assert "holds 2 series: 1) MR, 4 slices of 6 x 5; 2) CT, 7 slices of 6 x 5;" in message
    assert "--series" in message
    assert not any(value in message for value in private.values())
    np.testing.assert_array_equal(read_image([folder], 1).array[0], ARRAY[:, :, :4] + 1)
    np.testing.assert_array_equal(read_image([folder], 2).array[0], ARRAY)
    for wrong in (0, 3):
        with pytest.raises(InputError, match=f"has no series {wrong}; the series are 1 to 2"):
            read_image([folder], wrong)


def test_free_text_as_modality_is_not_repeated(tmp_path: Path, write_series) -> None:
    folder = write_series(tmp_path / "scans", ARRAY, AFFINE, Modality="MRS SMITH")
    write_series(folder, ARRAY, AFFINE, SeriesNumber=3)
    with pytest.raises(InputError, match="1\\) other, 7 slices"):
        read_image([folder])


def test_what_is_no_slice_is_passed_over(tmp_path: Path, write_series) -> None:
    folder = write_series(tmp_path / "scan", ARRAY, AFFINE)
    (folder / "readme.txt").write_text("hello")
    (folder / ".hidden").write_text("hello")
    (folder / "DICOMDIR").write_text("hello")
    report = pydicom.dcmread(next(folder.glob("*.dcm")))
    for name in ("Rows", "Columns", "PixelData"):
        delattr(report, name)
    report.SeriesInstanceUID, report.Modality = generate_uid(), "SR"
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID = BasicTextSRStorage
    report.save_as(folder / "report.dcm")
    for path in list(folder.glob("1-*.dcm")):
        path.rename(folder / path.stem)  # slices often have no ending
    np.testing.assert_array_equal(read_image([folder]).array[0], ARRAY)


def remove(folder: Path, *numbers: int) -> Path:
    for number in numbers:
        (folder / f"1-{number:03d}.dcm").unlink()
    return folder


def move(folder: Path, which: int, millimetres: float) -> Path:
    path = folder / f"1-{which:03d}.dcm"
    head = pydicom.dcmread(path)
    normal = np.cross(*np.array(head.ImageOrientationPatient, float).reshape(2, 3))
    place = np.array(head.ImagePositionPatient, float) + millimetres * normal
    head.ImagePositionPatient = [f"{mm:.8f}" for mm in place]
    head.save_as(path)
    return folder


def as_reports(folder: Path) -> Path:
    for path in folder.glob("*.dcm"):
        head = pydicom.dcmread(path)
        head.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
        head.save_as(path)
    return folder


def cut(folder: Path, keep: int) -> Path:
    path = folder / "1-003.dcm"
    path.write_bytes(path.read_bytes()[:keep])
    return folder


def put(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder


def other_image(folder: Path) -> Path:
    head = pydicom.dcmread(folder / "1-003.dcm")
    head.SOPInstanceUID = head.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    head.save_as(folder / "1-008.dcm")
    return folder


def deflate(folder: Path) -> Path:
    head = pydicom.dcmread(folder / "1-003.dcm")
    head.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    head.save_as(folder / "1-003.dcm")
    return folder


def pack(folder: Path) -> Path:
    path = folder / "1-003.dcm"
    put(folder, "1-003.dcm.gz", gzip.compress(path.read_bytes()))
    path.unlink()
    return folder


SPOILED = {
    "slices missing": (lambda f: remove(f, 3, 4), r"slices are missing: .* 2\.5 mm apart, but two"),
    "one slice": (lambda f: remove(f, *range(2, 8)), "has a single slice"),
    "two times": (other_image, "several slices lie at one"),
    "uneven": (lambda f: move(f, 4, 0.6), "unevenly spaced"),
    "turned": (
        lambda f: change(f, [2], ImageOrientationPatient=["1", "0", "0", "0", "0", "1"]),
        "differ in size, spacing or direction",
    ),
    "of other spacing": (
        lambda f: change(f, [2], PixelSpacing=["3", "3"]), "differ in size, spacing or direction"),
    "no position": (
        lambda f: change(f, [2], ImagePositionPatient=None), "lacks ImagePositionPatient"),
    "no spacing": (lambda f: change(f, EVERY, PixelSpacing=None), "lacks PixelSpacing"),
    "zero spacing": (lambda f: change(f, EVERY, PixelSpacing=["0", "0"]), "no usable geometry"),
    "directions that are none": (
        lambda f: change(f, EVERY, ImageOrientationPatient=["1", "0", "0", "1", "0", "0"]),
        "damaged or not DICOM",
    ),
    "colours": (lambda f: change(f, EVERY, SamplesPerPixel=3), "holds colours"),
    "multi-frame": (lambda f: change(f, EVERY, NumberOfFrames=3), "file 1 of 7 .* is multi-frame"),
    "no rows": (lambda f: change(f, [2], Rows=None), "damaged or not DICOM"),
    "no images": (as_reports, "holds no DICOM images"),
    "huge": (lambda f: change(f, EVERY, Rows=65535, Columns=65535), "the header promises"),
    "cut header": (lambda f: cut(f, 700), "damaged or not DICOM|lacks"),
    "cut pixels": (lambda f: cut(f, -20), "the pixels of file 3 of 7 .* cannot be read"),
    "empty": (lambda f: cut(f, 0), r"file 3 of 7 \(counted by name\) is named like a slice"),
    "a stranger": (lambda f: put(f, "x.dcm", b"hello"), "file 8 of 8 .* is named like a slice"),
    "deflated": (deflate, "file 3 of 7 .* is deflated as a whole"),
    "packed": (pack, "file 3 of 7 .* is packed; unpack it"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_bad_series(tmp_path: Path, write_series, private, name: str) -> None:
    spoil, message = SPOILED[name]
    folder = spoil(write_series(tmp_path / "scan", ARRAY, AFFINE))
    with pytest.raises(InputError, match=message) as error:
        read_image([folder])
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    assert not any(value in str(error.value) for value in private.values())
    # Files of an export may bear the name of a patient.
    assert not any(path.name in str(error.value) for path in folder.iterdir())


def test_a_series_is_no_label(tmp_path: Path, write_series) -> None:
    folder = write_series(tmp_path / "scan", ARRAY, AFFINE)
    with pytest.raises(InputError, match=r"no label is read from; convert it to one file"):
        read_label(folder)


def test_small_differences_are_rounding(tmp_path: Path, write_series) -> None:
    folder = move(write_series(tmp_path / "scan", ARRAY, AFFINE), 4, 0.1)
    np.testing.assert_allclose(read_image([folder]).affine, AFFINE, atol=1e-5)


def test_a_tilted_gantry_shears_the_affine(tmp_path: Path, write_series) -> None:
    folder = write_series(tmp_path / "scan", ARRAY, AFFINE)
    for path in folder.iterdir():
        head = pydicom.dcmread(path)
        k = int(head.InstanceNumber) - 1
        along = np.array(head.ImageOrientationPatient, float)[3:]
        place = np.array(head.ImagePositionPatient, float) + 0.8 * k * along
        head.ImagePositionPatient = [f"{mm:.8f}" for mm in place]
        head.save_as(path)
    wanted = AFFINE.copy()
    wanted[:3, 2] += 0.8 * AFFINE[:3, 1] / np.linalg.norm(AFFINE[:3, 1])
    np.testing.assert_allclose(read_image([folder]).affine, wanted, atol=1e-5)


def test_flipped_bytes_are_refused_or_read(tmp_path: Path, write_series, private, capfd) -> None:
    folder = write_series(tmp_path / "scan", ARRAY, AFFINE)
    path = folder / "1-003.dcm"
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        spoiled = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 6)):
            spoiled[place] = rng.integers(0, 256)
        path.write_bytes(spoiled)
        try:
            assert read_image([folder]).array.ndim == 4
        except InputError as error:
            assert "\n" not in str(error)
            assert not any(value in str(error) for value in private.values())
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_series_are_told_from_other_folders(tmp_path: Path, write_series) -> None:
    assert dicom.is_series(write_series(tmp_path / "scan", ARRAY, AFFINE))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.nii.gz").write_bytes(b"hello")
    assert not dicom.is_series(tmp_path / "other")
