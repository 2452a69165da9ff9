"""Draws the odd DICOM folders that people have: the phantoms of odd_inputs, slice by slice."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from odd_inputs import AFFINE, SHAPE, Array, scan

WriteSeries = Callable[..., Path]
Draw = Callable[[Path, WriteSeries], Path]
Change = Callable[[Dataset, int], None]


def slices(folder: Path) -> list[Path]:
    """The files of a series from the lowest slice up."""
    return sorted(folder.glob("*.dcm"), reverse=True)  # named against their order


def series(
    *changes: Change,
    affine: Array = AFFINE,
    then: Callable[[Path], object] = lambda folder: None,
) -> Draw:
    """Draws a series; ``changes`` are made to the header of each slice, with its number from 0."""

    def draw(root: Path, write_series: WriteSeries) -> Path:
        folder = write_series(root / "scan", scan(), affine)
        for number, path in enumerate(slices(folder)) if changes else ():
            head = pydicom.dcmread(path)
            for change in changes:
                change(head, number)
            head.save_as(path)
        then(folder)
        return folder

    return draw


def elements(**values: object) -> Change:
    """Sets elements; None takes one out."""

    def change(head: Dataset, number: int) -> None:
        for name, value in values.items():
            if value is None:
                delattr(head, name)
            else:
                setattr(head, name, value)

    return change


def positron(head: Dataset, number: int) -> None:
    """PET has a slope of its own for every slice."""
    head.SOPClassUID = PositronEmissionTomographyImageStorage
    head.file_meta.MediaStorageSOPClassUID = head.SOPClassUID
    head.Modality, head.RescaleIntercept = "PT", "0"
    head.RescaleSlope = f"{0.5 + 0.01 * number:.4f}"


def run_length(head: Dataset, number: int) -> None:
    head.compress(RLELossless, generate_instance_uid=False)


def left_by_viewers(*names: str) -> Callable[[Path], object]:
    """Files of viewers and systems beside the slices."""
    return lambda folder: [(folder / name).write_bytes(b"[x]\nfoo=1\n" * 20) for name in names]


def thumbnails(folder: Path) -> None:
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(600))


def another_image(**values: object) -> Callable[[Path], object]:
    """One more image among the slices, of a series of its own."""

    def add(folder: Path) -> None:
        head = pydicom.dcmread(slices(folder)[0])
        head.SOPInstanceUID = head.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        head.SeriesInstanceUID, head.SeriesNumber = generate_uid(), 999
        elements(**values)(head, 0)
        head.file_meta.MediaStorageSOPClassUID = head.SOPClassUID
        head.save_as(folder / "zz.dcm")

    return add


NOWHERE = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None}
DOSE = {"SOPClassUID": SecondaryCaptureImageStorage, "Modality": "OT"} | NOWHERE
SCOUT = {"ImageOrientationPatient": ["1", "0", "0", "0", "0", "1"]}


def copies(folder: Path) -> None:
    for path in slices(folder)[3:5]:
        shutil.copy(path, path.with_name(f"{path.stem}(1).dcm"))


def again(folder: Path) -> None:
    """A second time point of the same series."""
    for path in slices(folder):
        head = pydicom.dcmread(path)
        head.SOPInstanceUID = head.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        head.AcquisitionNumber = 2
        head.save_as(path.with_name(f"2-{path.name}"))


def bare(folder: Path) -> None:
    """No preamble and no outer header."""
    for path in slices(folder):
        plain = Dataset({element.tag: element for element in pydicom.dcmread(path)})
        pydicom.dcmwrite(path, plain, implicit_vr=True, little_endian=True)


def without_syntax(folder: Path) -> None:
    """The outer header does not say how the elements are stored."""
    for path in slices(folder):
        head = pydicom.dcmread(path)
        body, outer, meta = DicomBytesIO(), DicomBytesIO(), FileMetaDataset()
        body.is_little_endian = body.is_implicit_VR = True
        write_dataset(body, Dataset({element.tag: element for element in head}))
        meta.MediaStorageSOPClassUID = head.SOPClassUID
        meta.MediaStorageSOPInstanceUID = head.SOPInstanceUID
        write_file_meta_info(outer, meta, enforce_standard=False)
        path.write_bytes(bytes(128) + b"DICM" + outer.getvalue() + body.getvalue())


def big_endian(folder: Path) -> None:
    for path in slices(folder):
        head = pydicom.dcmread(path)
        head.PixelData = head.pixel_array.astype(">i2").tobytes()
        head.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        pydicom.dcmwrite(path, head, implicit_vr=False, little_endian=False, force_encoding=True)


def without_endings(folder: Path) -> None:
    for path in slices(folder):
        path.rename(path.with_suffix(""))
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(50))


def in_one_file(folder: Path) -> None:
    """All slices as frames of one object."""
    heads = [pydicom.dcmread(path) for path in slices(folder)]
    for path in slices(folder):
        path.unlink()
    first = heads[0]
    first.NumberOfFrames = len(heads)
    first.PixelData = b"".join(head.PixelData for head in heads)
    first.SOPClassUID = first.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    first.save_as(folder / "all.dcm")


def jpeg_2000(root: Path, write_series: WriteSeries) -> Path:
    """As SimpleITK writes it, at NOWHERE but for the slices' distance."""
    folder = root / "scan"
    folder.mkdir()
    write_jpeg_2000(folder, scan(), 1.5)
    return folder


def write_jpeg_2000(folder: Path, values: Array, distance: float) -> None:
    """A series of (X, Y, Z) int16 as SimpleITK writes it, its slices ``distance`` mm apart."""
    uid = generate_uid()
    for k in range(values.shape[2]):
        image = SimpleITK.GetImageFromArray(values[:, :, k].T[None].copy())
        tags = {"0008|0060": "MR", "0020|000e": uid, "0020|0032": f"0\\0\\{distance * k}",
                "0020|0037": "1\\0\\0\\0\\1\\0", "0008|0016": MRImageStorage}  # fmt: skip
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer = SimpleITK.ImageFileWriter()
        writer.SetFileName(str(folder / f"{k:03d}.dcm"))
        writer.KeepOriginalImageUIDOn()
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG2000")
        writer.Execute(image)


def volumes(**files: Callable[[Path], object]) -> Draw:
    """A folder of scans, NAME.nii.gz each."""

    def draw(root: Path, write_series: WriteSeries) -> Path:
        folder = root / "scans"
        folder.mkdir()
        for name, write in files.items():
            write(folder / f"{name}.nii.gz")
        return folder

    return draw


def constant(value: int) -> Array:
    return np.full(SHAPE, value, np.int16)
