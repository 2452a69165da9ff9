"""DICOM folders as they are exported: what lies beside the slices, copies, odd encodings."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import (
    BasicTextSRStorage,
    CTImageStorage,
    EncapsulatedPDFStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    RLELossless,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    generate_uid,
)

from dcamt.data.dataset import read_dataset, scan_dataset
from dcamt.data.formats import dicom
from dcamt.data.scans import find_scans
from dcamt.data.volume import read_image, write_volume
from dcamt.errors import InputError
from odd_series import write_jpeg_2000

ARRAY = np.random.default_rng(0).integers(-900, 900, (6, 5, 7)).astype(np.int16)
AFFINE = np.diag([-0.9, -1.1, 2.5, 1])
AFFINE[:3, 3] = (80.25, -33.5, 12)
BESIDE = "files beside the slices that are no part of a volume and were passed over: "


@pytest.fixture
def folder(tmp_path: Path, write_series) -> Path:
    return write_series(tmp_path / "scan", ARRAY, AFFINE)


def assert_read(folder: Path, *remarks: str, series: int | None = None) -> None:
    found = read_image([folder], series)
    np.testing.assert_array_equal(found.array[0], ARRAY)
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-5)
    assert found.remarks == remarks


def add(folder: Path, name: str = "zz.dcm", other_series: bool = True, **elements) -> Path:
    """A changed copy of a slice beside the others; None removes an element."""
    head = pydicom.dcmread(folder / "1-003.dcm")
    head.SOPInstanceUID = head.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    if other_series:
        head.SeriesInstanceUID, head.SeriesNumber = generate_uid(), 999
    for element, value in elements.items():
        if value is None:
            delattr(head, element)
        else:
            setattr(head, element, value)
    head.file_meta.MediaStorageSOPClassUID = head.SOPClassUID
    head.save_as(folder / name)
    return folder


NOWHERE = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None}
COLOURS = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
PAGE = NOWHERE | {"SOPClassUID": SecondaryCaptureImageStorage, "Modality": "OT"}
TURNED = {"ImageOrientationPatient": ["1", "0", "0", "0", "0", "1"]}
SCOUT = TURNED | {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
NO_IMAGE = {"Rows": None, "Columns": None, "PixelData": None}


@pytest.mark.parametrize(
    "names",
    [
        ["Thumbs.db"],
        ["Thumbs.db", "desktop.ini", "autorun.inf", "README", "VERSION", "LOCKFILE"],
        ["viewer.exe", "scan.zip", "report.pdf", "notes.txt", "preview.png", "a.nii.gz"],
    ],
)
def test_files_of_other_programs_are_passed_over_and_counted(folder, names) -> None:
    for index, name in enumerate(names):
        (folder / name).write_bytes(
            [b"\xd0\xcf\x11\xe0" + bytes(600), b"[x]\nfoo=1\n", b""][index % 3]
        )
    assert_read(folder, f"{BESIDE}{len(names)}")


def test_what_systems_hide_is_not_spoken_of(folder) -> None:
    for name in (".DS_Store", "._1-003.dcm", "DICOMDIR", ".hidden"):
        (folder / name).write_bytes(b"\0\5\26\7Mac")
    thumbs = folder / "@eaDir" / "1-003.dcm"
    thumbs.mkdir(parents=True)
    (thumbs / "SYNOFILE_THUMB_M.png").write_bytes(b"x")
    assert_read(folder)


@pytest.mark.parametrize("other_series", [True, False])
@pytest.mark.parametrize(
    "elements",
    [
        PAGE,
        PAGE | COLOURS,
        {"SOPClassUID": SecondaryCaptureImageStorage} | COLOURS,
        COLOURS,
        {"PhotometricInterpretation": "PALETTE COLOR"},
        SCOUT,
        {"SOPClassUID": EnhancedMRImageStorage, "NumberOfFrames": 4} | NOWHERE,
        {"SOPClassUID": SegmentationStorage, "NumberOfFrames": 4, "Modality": "SEG"},
        {"SOPClassUID": BasicTextSRStorage, "Modality": "SR"} | NO_IMAGE,
        {"SOPClassUID": RTStructureSetStorage, "Modality": "RTSTRUCT"} | NO_IMAGE,
        {"SOPClassUID": GrayscaleSoftcopyPresentationStateStorage, "Modality": "PR"} | NO_IMAGE,
        {"SOPClassUID": EncapsulatedPDFStorage, "Modality": "DOC"} | NO_IMAGE,
    ],
)
def test_a_dicom_object_that_is_no_slice_is_passed_over(folder, elements, other_series) -> None:
    assert_read(add(folder, other_series=other_series, **elements), f"{BESIDE}1")


def test_a_screen_shot_that_bears_a_place_is_no_slice(folder) -> None:
    add(folder, other_series=False, SOPClassUID=SecondaryCaptureImageStorage)
    assert_read(folder, f"{BESIDE}1")


def test_a_series_that_consists_of_captures_is_a_volume(tmp_path, write_series) -> None:
    """Workstations store what they resampled in this class."""
    folder = write_series(tmp_path / "a", ARRAY, AFFINE)
    for path in folder.iterdir():
        head = pydicom.dcmread(path)
        head.SOPClassUID = SecondaryCaptureImageStorage
        head.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        head.save_as(path)
    assert_read(folder)


def test_a_series_of_one_image_is_no_volume(folder) -> None:
    add(folder, **TURNED)
    shutil.copy(folder / "zz.dcm", folder / "zz (1).dcm")
    assert_read(folder, f"{BESIDE}2")


def test_a_series_without_a_place_leaves_the_other_one(folder, write_series) -> None:
    write_series(folder, ARRAY, AFFINE, SeriesNumber=0)
    for path in folder.glob("0-*.dcm"):
        head = pydicom.dcmread(path)
        del head.PixelSpacing
        head.save_as(path)
    assert_read(folder, f"{BESIDE}7")
    assert_read(folder, f"{BESIDE}7", series=1)
    with pytest.raises(InputError, match="has no series 2; the series are 1 to 1"):
        read_image([folder], 2)


def test_what_is_wrong_with_one_series_does_not_touch_another(folder, write_series) -> None:
    write_series(folder, ARRAY, AFFINE, SeriesNumber=2)
    (folder / "2-004.dcm").unlink()
    head = pydicom.dcmread(folder / "2-002.dcm")
    del head.ImagePositionPatient
    head.save_as(folder / "2-002.dcm")
    with pytest.raises(InputError, match="1\\) MR, 7 slices of 6 x 5; 2\\) MR, 5 slices of 6 x 5"):
        read_image([folder])
    assert_read(folder, f"{BESIDE}1", series=1)
    with pytest.raises(InputError, match=r"file 9 of 13 .* lacks ImagePositionPatient"):
        read_image([folder], 2)


def test_images_that_are_each_a_series_are_told(folder) -> None:
    for path in folder.iterdir():
        head = pydicom.dcmread(path)
        head.SeriesInstanceUID = generate_uid()
        head.save_as(path)
    with pytest.raises(InputError, match="holds 7 images, each a series of its own"):
        read_image([folder])


def shorten(path: Path) -> None:
    head = pydicom.dcmread(path)
    head.PixelData = head.PixelData[:-20]
    head.save_as(path)
    path.write_bytes(path.read_bytes() + bytes(99))


LOST: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(2000)),
    "cut in the preamble": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "cut after the preamble": lambda path: path.write_bytes(path.read_bytes()[:132]),
    "cut in the outer header": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:500]),
    "cut before the pixels": lambda path: path.write_bytes(path.read_bytes()[:-70]),
    "too few pixels, padded": shorten,
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to("annex/gone")),
}


@pytest.mark.parametrize("names", ["IM1-{}.dcm", "IM1-{}", "1.2.840.10008.{}", "00A7{}F"])
@pytest.mark.parametrize("name", LOST)
def test_a_damaged_end_slice_is_never_lost(folder, name, names) -> None:
    """The first slice: without it the rest is a sound volume."""
    for path in list(folder.iterdir()):
        path.rename(path.with_name(names.format(path.stem[2:])))
    first = folder / names.format("007")
    LOST[name](first)
    with pytest.raises(InputError, match=r"scan: .*file 7 of 7 \(counted by name\)") as error:
        read_image([folder])
    assert first.name not in str(error.value)


def test_copies_count_once(folder) -> None:
    shutil.copy(folder / "1-003.dcm", folder / "1-003(1).dcm")
    shutil.copy(folder / "1-003.dcm", folder / "copy of 1-003.dcm")
    # The same image with another header, in another encoding.
    head = pydicom.dcmread(folder / "1-005.dcm")
    head.SeriesDescription = "corrected"
    head.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    pydicom.dcmwrite(folder / "again.dcm", head, implicit_vr=True, little_endian=True)
    assert_read(folder, "copies of slices that were left out: 3")


def test_first_slices_that_are_missing_show_in_the_numbers_of_the_others(folder) -> None:
    (first,) = (path for path in folder.iterdir() if pydicom.dcmread(path).InstanceNumber == 1)
    first.unlink()
    found = read_image([folder])
    np.testing.assert_array_equal(found.array[0], ARRAY[:, :, 1:])
    assert found.remarks == (
        "its slices are numbered from 2 on; check that no earlier one is missing",
    )


@pytest.mark.parametrize("numbers", [lambda k: None, lambda k: k - 1, lambda k: 2 * k, lambda k: 7])
def test_other_numbers_say_nothing_of_missing_slices(folder, numbers) -> None:
    for path in folder.iterdir():
        head = pydicom.dcmread(path)
        head.InstanceNumber = numbers(int(head.InstanceNumber))
        head.save_as(path)
    assert_read(folder)


def test_copies_of_compressed_slices_count_once(tmp_path, write_series) -> None:
    array = np.random.default_rng(0).integers(0, 60, (16, 12, 5)).astype(np.uint16)
    folder = write_series(tmp_path / "scan", array, AFFINE, PixelRepresentation=0)
    for path in folder.iterdir():
        head = pydicom.dcmread(path)
        head.compress(RLELossless, generate_instance_uid=False)
        head.save_as(path)
    shutil.copy(folder / "1-003.dcm", folder / "1-003 copy.dcm")
    found = read_image([folder])
    np.testing.assert_array_equal(found.array[0], array)
    assert found.remarks == ("copies of slices that were left out: 1",)


@pytest.mark.parametrize("change", ["identity", "pixels", "slope"])
def test_different_images_at_one_place_are_refused(folder, change) -> None:
    head = pydicom.dcmread(folder / "1-003.dcm")
    if change == "identity":  # as a second time point has, though nothing moved
        head.SOPInstanceUID = head.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    elif change == "pixels":
        head.PixelData = bytes(len(head.PixelData))
    else:
        head.RescaleSlope = "2"
    head.save_as(folder / "1-008.dcm")
    with pytest.raises(InputError, match="several slices lie at one place"):
        read_image([folder])


def encoded(head: pydicom.Dataset, implicit: bool, little: bool) -> bytes:
    """The elements alone."""
    body = DicomBytesIO()
    body.is_implicit_VR, body.is_little_endian = implicit, little
    plain = pydicom.Dataset({element.tag: element for element in head})
    if not little:
        plain.PixelData = head.pixel_array.astype(">i2").tobytes()
        plain["PixelData"].VR = "OW"
    write_dataset(body, plain)
    return body.getvalue()


def outer(head: pydicom.Dataset, syntax: str | None) -> bytes:
    """The outer header alone."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = head.SOPClassUID, "1.2.3"
    if syntax:
        meta.TransferSyntaxUID = syntax
    buffer = DicomBytesIO()
    write_file_meta_info(buffer, meta, enforce_standard=False)
    return buffer.getvalue()


PREAMBLE = bytes(128) + b"DICM"
ENCODINGS: dict[str, Callable[[pydicom.Dataset], bytes]] = {
    "bare, implicit": lambda head: encoded(head, True, True),
    "bare, explicit": lambda head: encoded(head, False, True),
    "bare, big endian": lambda head: encoded(head, False, False),
    "outer header without preamble": lambda head: (
        outer(head, ImplicitVRLittleEndian) + encoded(head, True, True)
    ),
    "no syntax, implicit": lambda head: PREAMBLE + outer(head, None) + encoded(head, True, True),
    "no syntax, explicit": lambda head: PREAMBLE + outer(head, None) + encoded(head, False, True),
    "no outer header": lambda head: PREAMBLE + encoded(head, False, True),
    "big endian": lambda head: (
        PREAMBLE + outer(head, ExplicitVRBigEndian) + encoded(head, False, False)
    ),
    "padded": lambda head: (
        PREAMBLE + outer(head, ImplicitVRLittleEndian) + encoded(head, True, True) + bytes(999)
    ),
    "with garbage behind": lambda head: (
        PREAMBLE + outer(head, ImplicitVRLittleEndian) + encoded(head, True, True) + b"hello " * 99
    ),
}


@pytest.mark.parametrize("ending", [".dcm", ""])
@pytest.mark.parametrize("name", ENCODINGS)
def test_slices_are_told_by_their_content(folder, name, ending) -> None:
    for path in list(folder.iterdir()):
        content = ENCODINGS[name](pydicom.dcmread(path))
        path.unlink()
        path.with_suffix(ending).write_bytes(content)
    (folder / "README").write_bytes(b"\x08 is no group")
    assert dicom.is_series(folder)
    assert_read(folder, f"{BESIDE}1")


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_a_slope_for_every_slice_holds_for_compressed_ones(tmp_path, write_series, syntax) -> None:
    array = np.random.default_rng(0).integers(0, 60, (16, 12, 5)).astype(np.uint16)
    folder = write_series(tmp_path / "pet", array, AFFINE, PixelRepresentation=0, Modality="PT",
                          SOPClassUID=PositronEmissionTomographyImageStorage)  # fmt: skip
    for path in folder.iterdir():
        head = pydicom.dcmread(path)
        head.RescaleSlope, head.RescaleIntercept = f"{0.5 + 0.25 * head.InstanceNumber}", "0"
        head.file_meta.MediaStorageSOPClassUID = head.SOPClassUID
        head.compress(syntax, generate_instance_uid=False)
        head.save_as(path)
    wanted = array * (0.5 + 0.25 * np.arange(1, 6))
    np.testing.assert_allclose(read_image([folder]).array[0], wanted)


def test_jpeg_2000_as_itk_writes_it(tmp_path) -> None:
    array = np.random.default_rng(0).integers(-60, 60, (32, 24, 4)).astype(np.int16)
    write_jpeg_2000(tmp_path, array, 2)
    found = read_image([tmp_path])
    np.testing.assert_array_equal(found.array[0], array)
    np.testing.assert_allclose(found.affine, np.diag([-1, -1, 2, 1]), atol=1e-6)


def test_only_positions_say_how_far_apart_slices_lie(tmp_path, write_series) -> None:
    folder = write_series(tmp_path / "scan", ARRAY, AFFINE, SliceThickness="5",
                          SpacingBetweenSlices="-2")  # fmt: skip
    assert_read(folder)


def test_the_spacing_on_a_detector_is_none_of_the_patient(tmp_path, write_series) -> None:
    folder = write_series(tmp_path / "scan", ARRAY, AFFINE, ImagerPixelSpacing=["1", "1"])
    for path in folder.iterdir():
        head = pydicom.dcmread(path)
        del head.PixelSpacing
        head.save_as(path)
    with pytest.raises(InputError, match="as well as 6 of the others, lacks PixelSpacing"):
        read_image([folder])


def test_a_class_of_the_maker_may_hold_slices(tmp_path, write_series) -> None:
    assert_read(
        write_series(tmp_path / "a", ARRAY, AFFINE, SOPClassUID="1.3.46.670589.11.0.0.12.1")
    )


def test_a_series_number_that_is_none_is_zero(folder) -> None:
    for path in folder.iterdir():
        path.write_bytes(
            path.read_bytes().replace(b"\x20\0\x11\0IS\x02\x001 ", b"\x20\0\x11\0IS\x02\0??")
        )
    assert_read(folder)


def test_a_folder_further_down_is_named_and_not_read(folder, write_series) -> None:
    write_series(folder / "more", ARRAY, AFFINE)
    assert_read(folder, "folders beside the slices that hold DICOM files too and were not read: 1")


def test_folders_are_told_by_what_is_in_their_files(tmp_path, write_series) -> None:
    def holding(name: str, **files: bytes) -> Path:
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file.replace("_", ".")).write_bytes(content)
        return tmp_path / name

    assert not dicom.is_series(holding("a", README_dcm=b"read me"))
    assert not dicom.is_series(holding("b", README=b"", Thumbs_db=b"\xd0\xcf", x_nii=b"hello"))
    assert not dicom.is_series(holding("c", DICOMDIR=PREAMBLE))
    assert dicom.is_series(holding("d", one_dcm=b"", two_dcm=b""))  # damage is told, not skipped
    assert dicom.is_series(holding("e", one_dcm_gz=gzip.compress(b""), two_dcm_gz=b""))
    assert dicom.is_series(holding("f", IM1=PREAMBLE))


def test_slices_among_scans_are_told_once_and_without_names(tmp_path, folder) -> None:
    images = tmp_path / "data" / "images"
    write_volume(images / "a.nii.gz", ARRAY, AFFINE)
    (images / "README.dcm").write_text("read me")
    with pytest.raises(
        InputError, match=r"images: holds DICOM slices among the scans.* convert labels"
    ):
        find_scans(images, 1)
    for path in folder.iterdir():
        shutil.copy(path, images)
    _, problems = scan_dataset(tmp_path / "data")
    assert len(problems) == 1
    assert "README" not in problems[0]
    assert "1-00" not in problems[0]


def test_dicom_cases_of_a_data_set_may_have_neighbours(tmp_path, write_series) -> None:
    """Synology's @eaDir beside and in the cases, Windows's files in them."""
    for case in ("a", "b"):
        folder = write_series(tmp_path / "images" / case, ARRAY, AFFINE)
        (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(600))
        (folder / "@eaDir" / "1-001.dcm").mkdir(parents=True)
        (folder / "@eaDir" / "1-001.dcm" / "SYNOFILE_THUMB_M.png").write_bytes(b"x")
    (tmp_path / "images" / "Thumbs.db").write_bytes(b"x")
    write_volume(tmp_path / "labels" / "a.nii.gz", (ARRAY > 0).astype(np.uint8), AFFINE)
    dataset = read_dataset(tmp_path)
    assert [case.name for case in dataset.cases] == ["a", "b"]
    for case in dataset.cases:
        assert_read(case.images[0], f"{BESIDE}1")


def test_no_message_repeats_a_files_name(folder) -> None:
    """Archives name files by patients and identities."""
    for path in list(folder.iterdir()):
        path.rename(path.with_name(f"SMITH^JOHN-{path.name}"))
    (folder / "SMITH^JOHN.txt").write_text("hello")
    said = ["".join(read_image([folder]).remarks)]
    first = folder / "SMITH^JOHN-1-001.dcm"
    content = first.read_bytes()
    for spoiled in (b"", content[:300], content[:500], content[:-9], b"x" + content):
        first.write_bytes(spoiled)
        with pytest.raises(InputError) as error:
            read_image([folder])
        said.append(str(error.value))
    assert not any("SMITH" in words for words in said)


@pytest.mark.parametrize("kind", [CTImageStorage, MRImageStorage])
def test_a_slice_that_lost_its_place_is_no_neighbour(folder, kind) -> None:
    add(folder, other_series=False, SOPClassUID=kind, ImagePositionPatient=None)
    with pytest.raises(InputError, match=r"file 8 of 8 .* lacks ImagePositionPatient"):
        read_image([folder])
