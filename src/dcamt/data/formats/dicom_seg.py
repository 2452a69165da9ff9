"""A DICOM Segmentation object that refers to the slices it was made from.

It takes from the slices what the standard makes all objects of a patient, a study and a frame of
reference share (the elements below), and nothing else: no description, comment, device, institution
or private element.
"""

import colorsys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from dcamt.config import ClassCodes
from dcamt.data.formats.dicom import sorted_slices
from dcamt.data.formats.dicom_codes import codes_of
from dcamt.data.formats.dicom_slice import Slice
from dcamt.data.formats.guard import reading
from dcamt.errors import InputError
from dcamt.files import atomic

PATIENT_AND_STUDY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    "ReferringPhysicianName",
)  # fmt: skip
"""Required in every object of a study (type 1 or 2), equal in all of them."""
PLACE = (
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID",
    "FrameOfReferenceUID", "PositionReferenceIndicator", "Modality", "Rows", "Columns",
    "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness",
    "SpacingBetweenSlices",
)  # fmt: skip
"""What is referred to, and where it lies."""
NAME_LENGTH = 64
DESCRIPTION = "Segmentation by dcamt"
SERIES_FROM = 1000
"""What is added to the number of the source's series."""


def check_sources(scans: Iterable[Path]) -> None:
    """InputError unless every scan is a folder of DICOM slices and highdicom is there."""
    _highdicom()
    for scan in scans:
        if not scan.is_dir():
            raise InputError(
                f"{scan}: is no folder of DICOM slices, to which a DICOM Segmentation could refer; "
                "leave out --dicom-seg"
            )


def write_segmentation(
    path: Path,
    segmentation: NDArray[np.uint8],
    classes: Sequence[str],
    codes: Mapping[str, ClassCodes],
    folder: Path,
    series: int | None = None,
) -> None:
    """Write ``segmentation`` (X, Y, Z) of the series in ``folder``, one segment a class.

    X, Y and Z are the axes of dicom.read; class k > 0 is segment number k. ``codes`` say what a
    class is; where they do not, its name does. Raises InputError if
    the slices lack what a segmentation must refer to, or the file cannot be written.
    """
    hd: Any = _highdicom()
    segments = [
        _segment(hd, number, name, codes.get(name) or codes_of(name))
        for number, name in enumerate(classes)
        if number > 0
    ]
    with (
        reading(folder, "a DICOM series that a segmentation can refer to"),
        warnings.catch_warnings(action="ignore"),  # they quote the patient's name
    ):
        slices, _ = sorted_slices(folder, series)
        sources = [_source(folder, one) for one in slices]
        result = hd.seg.Segmentation(
            source_images=sources,
            pixel_array=np.ascontiguousarray(segmentation.T),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=hd.UID(),
            series_number=_free_number(slices[0].series[0]),
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="dcamt",
            manufacturer_model_name="dcamt",
            software_versions=version("dcamt"),
            device_serial_number="0",
            omit_empty_frames=bool(segmentation.any()),
            content_label="SEGMENTATION",
            content_description=DESCRIPTION,
        )
        result.SeriesDescription = DESCRIPTION
    with atomic(path) as temporary:
        result.save_as(temporary)


def _segment(hd: Any, number: int, name: str, codes: ClassCodes) -> Any:
    """The description of one class."""
    # A golden section apart, hues of neighbours differ and none comes twice.
    hue = (number - 1) * 0.618034 % 1
    red, green, blue = (255 * part for part in colorsys.hsv_to_rgb(hue, 0.7, 0.95))
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name.replace("\\", "/")[:NAME_LENGTH],  # a backslash parts values
        segmented_property_category=hd.sr.CodedConcept(*codes.category),
        segmented_property_type=hd.sr.CodedConcept(*codes.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="dcamt",
            version=version("dcamt"),
            family=hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
        ),
        display_color=hd.color.CIELabColor.from_rgb(red, green, blue),
    )


def _free_number(source: int) -> int:
    """A series number that is not the source's, and that scanners seldom give."""
    return SERIES_FROM + abs(source) % SERIES_FROM**2


def _source(folder: Path, one: Slice) -> pydicom.Dataset:
    """A slice's header with the elements listed above; required ones it lacks are empty."""
    head = pydicom.dcmread(
        one.path,
        force=True,  # it was told by its content
        stop_before_pixels=True,
        specific_tags=[*PATIENT_AND_STUDY, *PLACE],
    )
    # In UTF-8, which has the letters of the classes' names as well.
    head.decode()
    head.SpecificCharacterSet = "ISO_IR 192"
    for name in PATIENT_AND_STUDY:
        if name not in head:
            setattr(head, name, None)
    if not head.get("StudyInstanceUID") or not head.get("FrameOfReferenceUID"):
        raise InputError(
            f"{folder}: lacks the study or the frame of reference that a DICOM Segmentation must "
            "refer to; leave out --dicom-seg"
        )
    return head


def _highdicom() -> Any:
    try:
        import highdicom  # noqa: PLC0415
    except ImportError:
        raise InputError(
            "--dicom-seg needs the package highdicom; install it with pip install 'dcamt[dicom]'"
        ) from None
    return highdicom
