"""Fixtures shared by all tests."""

import locale
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads: the tensors are tiny

TINY = (
    "device=cpu",
    "network.width=2",
    "data.patch=[16,16,16]",
    "train.iterations=3",
    "train.labeled_batch=2",
    "train.unlabeled_batch=2",
    "train.checkpoint_every=1",
    "train.validate_every=0",
    "method.heads=1",
    "method.head_size=4",
)


PRIVATE = {
    "PatientName": "Quixwold^Zephyrine",
    "PatientID": "PID-771239",
    "PatientBirthDate": "19230405",
    "StudyDate": "20170608",
    "StudyTime": "112233.445",
    "StudyID": "STID-4455",
    "AccessionNumber": "ACC-998877",
    "ReferringPhysicianName": "Refertius^Marvolo",
    "SeriesDescription": "seriesfreetext Quixwold",
    "StudyDescription": "studyfreetext Quixwold",
    "PatientComments": "commentfreetext",
    "InstitutionName": "Hospitalia Nowhere",
    "SeriesDate": "20170609",
    "ContentDate": "20170610",
    "OperatorsName": "Operatrix^Ada",
    "DeviceSerialNumber": "DEVSERIAL-31415",
    "ImageComments": "imagefreetext",
}
"""Elements of a header by which a patient could be known."""

Command = Callable[..., tuple[Any, str, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``cli("train", ...)`` runs the command: exit code, standard output, standard error."""
    from dcamt.cli import main  # noqa: PLC0415

    def run(*args: Any) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["dcamt", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        code = left.value.code
        return 0 if code is None else code, out, err

    return run


@pytest.fixture(autouse=True)
def own_locale() -> Iterator[None]:
    """ITK's DICOM writer leaves the locale C behind, in which Python reads text as ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture(scope="session")
def private() -> dict[str, str]:
    """What write_series puts into every header, by element."""
    return dict(PRIVATE)


@pytest.fixture(scope="session")
def write_series() -> Callable[..., Path]:
    """``write_series(folder, array, affine, **elements)`` writes (X, Y, Z) as DICOM slices.

    The third axis of the affine (voxel -> RAS+ mm) runs along the normal of the first two. Slices
    are named against their order, and their headers name a patient.
    """

    def write(folder: Path, array: Any, affine: Any, **elements: Any) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        cosines = (lps[:3, :2] / spacing[:2]).T.ravel()
        study = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
        study["FrameOfReferenceUID"] = generate_uid()
        series = elements.get("SeriesNumber", 1)
        for k in range(array.shape[2]):
            head = Dataset()
            head.file_meta = FileMetaDataset()
            head.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            head.file_meta.MediaStorageSOPClassUID = head.SOPClassUID = MRImageStorage
            head.SOPInstanceUID = head.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            position = (lps @ [0, 0, k, 1])[:3]
            values: dict[str, Any] = {
                **PRIVATE, **study, "Modality": "MR", "PatientSex": "O", "InstanceNumber": k + 1,
                "SeriesNumber": 1, "Rows": array.shape[1], "Columns": array.shape[0],
                "ImagePositionPatient": [f"{v:.10g}"[:16] for v in position],
                "ImageOrientationPatient": [f"{v:.10f}" for v in cosines],
                "PixelSpacing": [f"{spacing[1]:.10g}", f"{spacing[0]:.10g}"],
                "SliceThickness": f"{spacing[2]:.10g}", "PositionReferenceIndicator": "",
                "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
                "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1,
            }  # fmt: skip
            for name, value in {**values, **elements}.items():
                setattr(head, name, value)
            block = head.private_block(0x0011, "dcamt test", create=True)
            block.add_new(1, "LO", "privatefreetext")
            pixels = np.asarray(array[:, :, k]).T
            head.PixelData = pixels.astype("<i2" if head.PixelRepresentation else "<u2").tobytes()
            name = f"{series}-{array.shape[2] - k:03d}.dcm"
            pydicom.dcmwrite(folder / name, head, enforce_file_format=True)
        return folder

    return write


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real volumes; tests that need it skip where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DCAMT_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip("real volumes are absent: set DCAMT_TEST_DATA to a folder that holds them")
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prepared volumes go here, never to the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCAMT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six phantoms of about 20 x 18 x 16 voxels: 2 labelled, 3 unlabelled, 1 validation.

    Read only: a test that changes files copies the folder first.
    """
    from dcamt.data.phantom import write_phantoms  # noqa: PLC0415

    root = tmp_path_factory.mktemp("phantoms") / "data"
    write_phantoms(root, 6, (20, 18, 16), seed=3, labeled=2, val=1)
    return root


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """``--set`` values of a training that takes a second or two."""
    return list(TINY)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, phantoms: Path, cache: Path) -> Path:
    """A finished DCA-MT run of three iterations on the phantoms; read only."""
    from dcamt import api  # noqa: PLC0415

    out = tmp_path_factory.mktemp("runs") / "tiny"
    return api.train(phantoms, out, splits=phantoms / "splits.json", set=TINY, quiet=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this system does not let root mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def fill() -> Callable[[Path, int], Path]:
    """``fill(disk, left)`` leaves that many bytes free; returns the file that takes the rest."""

    def make(disk: Path, left: int) -> Path:
        filler = disk / "filler"
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        filler.write_bytes(bytes(free - left))
        return filler

    return make
