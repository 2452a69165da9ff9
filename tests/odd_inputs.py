"""Draws the odd inputs that people have, one a kind: small phantoms whose place is known.

A data set has the cases a and b, which are labelled, and u and v, which are not, unless its kind
says otherwise. Every scan is of SHAPE voxels at AFFINE (voxel -> RAS+ mm); where a label is, it is
brighter, by which a test tells that both still lie on each other.
"""

import gzip
import json
import os
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import SimpleITK

SHAPE = (16, 15, 14)
AFFINE = np.diag([1.0, 1.0, 1.5, 1.0])
AFFINE[:3, 3] = (5, -6, 7)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

Array = np.ndarray[Any, Any]
Writer = Callable[[Path, Array], None]


def label() -> Array:
    """Two classes side by side, (X, Y, Z) uint8; no flip brings them onto themselves."""
    values = np.zeros(SHAPE, np.uint8)
    values[3:7, 3:8, 3:8] = 1
    values[8:13, 3:8, 3:8] = 2
    return values


def scan(seed: int = 0) -> Array:
    """Noise, and two bright blocks where the label is, (X, Y, Z) int16 above 0."""
    noise = np.random.default_rng(seed).normal(300, 30, SHAPE)
    return np.rint(noise + 300.0 * label()).astype(np.int16)


def turned(degrees: float) -> Array:
    """AFFINE, turned about the third axis."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(4)
    turn[:2, :2] = (cosine, -sine), (sine, cosine)
    return turn @ AFFINE


def sheared(by: float) -> Array:
    """AFFINE, whose second axis leans over to the first."""
    affine = AFFINE.copy()
    affine[:3, 1] += by * affine[:3, 0]
    return affine


TURNED, LEANING = turned(20), sheared(0.15)
SPACED = np.diag([-1.0, -1.0, 1.5, 1.0])
"""Where a file that tells its voxels' size alone has them."""
TILT = AFFINE.copy()
TILT[1, 2] = 1.5 * np.tan(np.radians(15))
FLAT = np.diag([0.4, 0.4, 8.0, 1.0])
AXES = "(1,0,0) (0,1,0) (0,0,1.5)"


# ------------------------------------------------------------------------------------------ files


def nifti(
    affine: Array = AFFINE,
    code: int = 1,
    qform: Array | None = None,
    qform_code: int = 1,
    unit: str = "mm",
    change: Callable[[Array], Array] = lambda array: array,
) -> Writer:
    """Writes NIfTI with these transforms, in mm of the unit; packed as the name says."""

    def write(path: Path, array: Array) -> None:
        header = nib.Nifti1Header()
        header.set_data_dtype(change(array).dtype)
        image = nib.Nifti1Image(change(array), None, header, dtype=change(array).dtype)
        image.set_qform(affine if qform is None else qform, qform_code, strip_shears=True)
        image.set_sform(affine, code)
        image.header.set_xyzt_units(unit)
        content = image.to_bytes()
        packed = path.name.lower().endswith(".gz")
        path.write_bytes(gzip.compress(content) if packed else content)

    return write


def patched(write: Writer, *fields: tuple[int, bytes]) -> Writer:
    """Like ``write``, with bytes of the NIfTI header replaced."""

    def change(path: Path, array: Array) -> None:
        write(path, array)
        content = bytearray(gzip.decompress(path.read_bytes()))
        for start, data in fields:
            content[start : start + len(data)] = data
        path.write_bytes(gzip.compress(content))

    return change


def nrrd(**fields: str | None) -> Writer:
    """Writes NRRD at AFFINE; ``fields`` replace those of the header, and None takes one out."""

    def write(path: Path, array: Array) -> None:
        types = {"uint8": "uchar", "int16": "short", "float32": "float"}
        header: dict[str, str | None] = {
            "type": types[str(array.dtype)],
            "dimension": str(array.ndim),
            "space": "right-anterior-superior",
            "sizes": " ".join(map(str, array.shape)),
            "space directions": AXES,
            "kinds": "domain domain domain",
            "endian": "little",
            "encoding": "gzip",
            "space origin": "(5,-6,7)",
        }
        header |= {key.replace("_", " "): value for key, value in fields.items()}
        data = array.tobytes(order="F")
        if header["encoding"] == "gzip":
            data = gzip.compress(data)
        lines = [f"{key}: {value}" for key, value in header.items() if value is not None]
        path.write_bytes("\n".join(["NRRD0004", *lines, "", ""]).encode() + data)

    return write


def without_blanks(path: Path, array: Array) -> None:
    nrrd()(path, array)
    header, _, data = path.read_bytes().partition(b"\n\n")
    path.write_bytes(header.replace(b": ", b":") + b"\n\n" + data)


def itk(path: Path, array: Array) -> None:
    """By SimpleITK, packed; a fourth axis becomes values of a voxel."""
    moved = np.moveaxis(array, (0, 1, 2), (2, 1, 0))
    image = SimpleITK.GetImageFromArray(moved, isVector=array.ndim == 4)
    lps = LPS @ AFFINE
    image.SetSpacing((1, 1, 1.5))
    image.SetDirection((lps[:3, :3] / (1, 1, 1.5)).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def hdf5(path: Path, array: Array) -> None:
    """An image with an axis of one channel, or a label."""
    with h5py.File(path, "w") as file:
        if array.dtype == np.uint8:
            file["label"] = array
        else:
            file["image"] = array[None].astype(np.float32)


def swapped(path: Path, array: Array) -> None:
    """NIfTI, the highest byte first."""
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(array.dtype.newbyteorder(">"))
    image = nib.Nifti1Image(array, AFFINE, header)
    image.set_qform(AFFINE, 1)
    nib.save(image, path)


def unpacked(path: Path, array: Array) -> None:
    """NIfTI as .nii, whatever the name says."""
    nifti()(path.with_suffix(""), array)
    path.with_suffix("").rename(path)


def colours(path: Path, array: Array) -> None:
    values = np.zeros(array.shape, [(channel, "u1") for channel in "RGB"])
    values["R"] = array
    nib.save(nib.Nifti1Image(values, AFFINE), path)


def in_metres(path: Path, array: Array) -> None:
    nifti(np.diag([1e-3, 1e-3, 1e-3, 1]) @ AFFINE, unit="meter")(path, array)


def in_microns(path: Path, array: Array) -> None:
    nifti(np.diag([1e3, 1e3, 1e3, 1]) @ AFFINE, unit="micron")(path, array)


def along(code: str) -> Writer:
    """Writes the same voxels at the same places, stored along other axes."""

    def write(path: Path, array: Array) -> None:
        axes = nib.orientations.axcodes2ornt(code)
        nib.save(nib.Nifti1Image(array, AFFINE).as_reoriented(axes), path)

    return write


def vectors(path: Path, array: Array) -> None:
    """NIfTI as ITK writes channels: X, Y, Z, 1, channel."""
    itk(path, two(array))


def channels_first(path: Path, array: Array) -> None:
    """NRRD with a list of two channels as its fastest axis."""
    values = np.stack([array, 2 * array])
    nrrd(dimension="4", kinds="list domain domain domain", space_directions=f"none {AXES}")(
        path, values
    )


def over_time(path: Path, array: Array) -> None:
    """NRRD of two points in time."""
    nrrd(dimension="4", kinds="domain domain domain time", space_directions=f"{AXES} none")(
        path, two(array)
    )


def mirrored_nrrd(path: Path, array: Array) -> None:
    """The same voxels at the same places, stored from the other end of the first axis."""
    write = nrrd(space_directions="(-1,0,0) (0,1,0) (0,0,1.5)", space_origin="(20,-6,7)")
    write(path, array[::-1])


def of_case(others: dict[str, Writer], write: Writer) -> Writer:
    """One writer for some cases, ``write`` for the rest."""
    return lambda path, array: others.get(path.name.split(".")[0], write)(path, array)


# --------------------------------------------------------------------------------- voxels changed


def two(array: Array) -> Array:
    """A scan of two channels on a fourth axis; a label as it is."""
    return array if array.dtype == np.uint8 else np.stack([array, 2 * array], -1)


def dark_below(array: Array) -> Array:
    """A scan that is 0 where a part of the label lies."""
    if array.dtype == np.uint8:
        return array
    values = array.copy()
    values[:, :, :4] = 0
    return values


def thick(array: Array) -> Array:
    return np.tile(array[:, :, 3:7], (2, 2, 1))


def with_nan(array: Array) -> Array:
    values = array.astype(np.float32)
    values[:3] = np.nan
    return values


def one_hot(array: Array) -> Array:
    return np.stack([array == value for value in (0, 1, 2)], -1).astype(np.uint8)


def partly_ignored(array: Array) -> Array:
    values = array.copy()
    values[0] = 255
    return values


def slope(scale: float, offset: float) -> tuple[int, bytes]:
    """The fields of a NIfTI header that scale the values, and where they begin."""
    return 112, np.array([scale, offset], "<f4").tobytes()


# -------------------------------------------------------------------------------------- data sets


NIFTI = nifti()


def plain(
    image: Writer = NIFTI,
    label_of: Writer | None = None,
    ending: str = ".nii.gz",
    label_ending: str | None = None,
    labelled: Iterable[str] = "ab",
    unlabelled: Iterable[str] = "uv",
    **entries: Any,
) -> Callable[[Path], None]:
    """Draws images/ and labels/, and a dataset.json if it has ``entries``."""

    def draw(root: Path) -> None:
        for folder in ("images", "labels"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for seed, name in enumerate([*labelled, *unlabelled]):
            image(root / "images" / f"{name}{ending}", scan(seed))
            if name in [*labelled]:
                path = root / "labels" / f"{name}{label_ending or ending}"
                (label_of or image)(path, label())
        if entries:
            (root / "dataset.json").write_text(json.dumps(entries))

    return draw


NAMED = {"background": 0, "ant": 1, "post": 2}


def nnunet(
    channels: dict[str, str] | None = None,
    labels: dict[str, Any] = NAMED,
    label_values: Callable[[Array], Array] = lambda array: array,
    text: Callable[[str], str] = str,
) -> Callable[[Path], None]:
    """Draws imagesTr/CASE_0000.nii.gz and so on, labelsTr/ and dataset.json."""
    channels = channels or {"0": "MRI"}

    def draw(root: Path) -> None:
        for folder in ("imagesTr", "labelsTr"):
            (root / folder).mkdir(parents=True)
        for seed, name in enumerate("abuv"):
            for number in range(len(channels)):
                nifti()(root / "imagesTr" / f"{name}_{number:04d}.nii.gz", scan(seed))
            if name in "ab":
                values = label_values(label()).astype(np.uint8)
                nifti()(root / "labelsTr" / f"{name}.nii.gz", values)
        described = {"channel_names": channels, "labels": labels, "numTraining": 2,
                     "file_ending": ".nii.gz"}  # fmt: skip
        content = text(json.dumps(described, indent=1))
        (root / "dataset.json").write_bytes(content.encode())

    return draw


def beside(draw: Callable[[Path], None], *more: Callable[[Path], None]) -> Callable[[Path], None]:
    """Draws several things into one folder."""

    def all_of(root: Path) -> None:
        for one in (draw, *more):
            one(root)

    return all_of


def left_by_systems(root: Path) -> None:
    """What a Synology server, macOS and Windows put beside scans."""
    for folder in (root / "images", root / "labels"):
        for path in list(folder.iterdir()):
            thumbnail = folder / "@eaDir" / path.name / "SYNOFILE_THUMB_M.png"
            thumbnail.parent.mkdir(parents=True)
            thumbnail.write_bytes(b"x")
        for name in ("._a.nii.gz", ".DS_Store", "Thumbs.db", "desktop.ini"):
            (folder / name).write_bytes(b"\0\5\x16\7Mac")


def linked(root: Path) -> None:
    """Moves every file into a folder of its own in a store, and puts a link in its place."""
    for path in [p for folder in ("images", "labels") for p in (root / folder).iterdir()]:
        kept = root / ".store" / f"{path.parent.name}-{path.name}" / path.name
        kept.parent.mkdir(parents=True)
        path.rename(kept)
        path.symlink_to(os.path.relpath(kept, path.parent))


def spelled_two_ways(root: Path) -> None:
    """Writes an accent as two characters in the images' names and as one in the labels'."""
    for folder, form in (("images", "NFD"), ("labels", "NFC")):
        for path in list((root / folder).iterdir()):
            path.rename(path.with_name(unicodedata.normalize(form, path.name.replace("a", "ä"))))


def of_both(root: Path) -> None:
    """Flat HDF5 files with image and label each."""
    root.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate("abc"):
        with h5py.File(root / f"image{name}_norm.h5", "w") as file:
            file["image"], file["label"] = scan(seed).astype(np.float32), label()


def dicom_cases(root: Path, write_series: Callable[..., Path]) -> None:
    """DICOM scans, and a label as drawn on what dcm2niix makes of one: its rows run upwards."""
    for seed, name in enumerate("ab"):
        write_series(root / "images" / name, scan(seed), AFFINE)
    flipped = AFFINE @ np.diag([1, -1, 1, 1])
    flipped[:3, 3] = (AFFINE @ [0, SHAPE[1] - 1, 0, 1])[:3]
    (root / "labels").mkdir()
    nifti(flipped)(root / "labels" / "a.nii.gz", label()[:, ::-1])


def add(name: str, content: bytes) -> Callable[[Path], None]:
    """Puts a file of that content into the data set."""
    return lambda root: (root / name).write_bytes(content) and None
