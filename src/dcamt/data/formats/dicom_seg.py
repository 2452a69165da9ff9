"""A DICOM Segmentation object that refers to the slices it was made from.

It takes from the slices what the standard makes all objects of a patient, a study and a frame of
reference share (the elements below), and nothing else: no description, comment, device, institution
or private element.
"""

import warnings
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from dcamt.data.formats.dicom import sorted_slices
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
    folder: Path,
    series: int | None = None,
) -> None:
    """Write ``segmentation`` (X, Y, Z) of the series in ``folder``, one segment a class.

    X, Y and Z are the axes of dicom.read; class k > 0 is segment number k. Raises InputError if
    the slices lack what a segmentation must refer to, or the file cannot be written.
    """
    hd: Any = _highdicom()
    tissue = hd.sr.CodedConcept("85756007", "SCT", "Tissue")
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:NAME_LENGTH],
            segmented_property_category=tissue,
            segmented_property_type=tissue,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=hd.AlgorithmIdentificationSequence(
                name="dcamt",
                version=version("dcamt"),
                family=hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
            ),
        )
        for number, name in enumerate(classes)
        if number > 0
    ]
    with (
        reading(folder, "a DICOM series that a segmentation can refer to"),
        warnings.catch_warnings(action="ignore"),  # they quote the patient's name
    ):
        sources = [_source(one) for one in sorted_slices(folder, series)[0]]
        result = hd.seg.Segmentation(
            source_images=sources,
            pixel_array=np.ascontiguousarray(segmentation.T),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=hd.UID(),
            series_number=1,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="dcamt",
            manufacturer_model_name="dcamt",
            software_versions=version("dcamt"),
            device_serial_number="0",
            omit_empty_frames=bool(segmentation.any()),
        )
    with atomic(path) as temporary:
        result.save_as(temporary)


def _source(one: Slice) -> pydicom.Dataset:
    """A slice's header with the elements listed above; required ones it lacks are empty."""
    head = pydicom.dcmread(
        one.path, stop_before_pixels=True, specific_tags=[*PATIENT_AND_STUDY, *PLACE]
    )
    # In UTF-8, which has the letters of the classes' names as well.
    head.decode()
    head.SpecificCharacterSet = "ISO_IR 192"
    for name in PATIENT_AND_STUDY:
        if name not in head:
            setattr(head, name, None)
    if not head.get("StudyInstanceUID") or not head.get("FrameOfReferenceUID"):
        raise InputError(
            f"{one.path}: lacks the study or the frame of reference that a DICOM Segmentation must "
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
