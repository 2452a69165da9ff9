"""NRRD, MetaImage and HDF5: against SimpleITK and h5py, and against hostile and damaged files."""

import gzip
import os
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK
from scipy.spatial.transform import Rotation

from dcamt.data.formats import FORMATS, hdf5, parts_of
from dcamt.data.volume import read_image, read_label, write_volume
from dcamt.errors import InputError

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
WRITTEN = ("nii.gz", "nii", "nrrd", "mha", "h5")


def placed(degrees, spacing, flips=(1, 1, 1), order=(0, 1, 2)) -> np.ndarray:
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    affine[:3, :3] = (turn @ np.diag(flips))[:, order] @ np.diag(spacing)
    affine[:3, 3] = (-80.25, 33.5, 12.0625)
    return affine


GEOMETRIES = {
    "plain": placed((0, 0, 0), (1, 1, 1)),
    "anisotropic": placed((0, 0, 0), (0.6875, 0.6875, 6.5)),
    "oblique": placed((12, -25, 40), (0.9, 1.1, 2.5)),
    "flipped": placed((0, 0, 0), (0.5, 0.75, 2), (-1, 1, 1)),
    "flipped oblique": placed((-30, 5, 110), (0.5, 0.75, 2), (1, 1, -1)),
    "permuted": placed((3, 2, 1), (1, 2, 3), order=(2, 0, 1)),
}
IMAGE = np.random.default_rng(0).normal(0, 100, (4, 5, 6)).astype(np.float32)
LABEL = np.random.default_rng(1).integers(0, 3, (4, 5, 6)).astype(np.uint8)


def itk_image(array: np.ndarray, affine: np.ndarray, vector: bool = False) -> SimpleITK.Image:
    """(X, Y, Z) or (X, Y, Z, channel) as SimpleITK holds it."""
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    moved = np.moveaxis(array, (0, 1, 2), (2, 1, 0))
    image = SimpleITK.GetImageFromArray(moved, isVector=vector)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("ending", WRITTEN)
def test_what_is_written_is_read_in_place(tmp_path: Path, ending: str, name: str) -> None:
    affine = GEOMETRIES[name]
    for what, array in (("image", IMAGE), ("label", LABEL)):
        write_volume(tmp_path / f"{what}.{ending}", array, affine)
    image, label = (
        read_image([tmp_path / f"image.{ending}"]), read_label(tmp_path / f"label.{ending}")
    )  # fmt: skip
    np.testing.assert_array_equal(image.array[0], IMAGE)
    np.testing.assert_array_equal(label.array, LABEL)
    for volume in (image, label):
        np.testing.assert_allclose(volume.affine, affine, atol=1e-5)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_simpleitk_reads_what_is_written(tmp_path: Path, ending: str, name: str) -> None:
    path = tmp_path / f"a.{ending}"
    write_volume(path, IMAGE, GEOMETRIES[name])
    found, wanted = SimpleITK.ReadImage(str(path)), itk_image(IMAGE, GEOMETRIES[name])
    np.testing.assert_array_equal(
        SimpleITK.GetArrayFromImage(found), SimpleITK.GetArrayFromImage(wanted)
    )
    for key in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(found, key)(), getattr(wanted, key)(), atol=1e-9)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("ending", ["nrrd", "nhdr", "mha", "mhd"])
def test_what_simpleitk_writes_is_read(
    tmp_path: Path, ending: str, packed: bool, name: str
) -> None:
    path = tmp_path / f"a.{ending}"
    SimpleITK.WriteImage(itk_image(IMAGE, GEOMETRIES[name]), str(path), useCompression=packed)
    found = read_image([path])
    np.testing.assert_array_equal(found.array[0], IMAGE)
    np.testing.assert_allclose(found.affine, GEOMETRIES[name], atol=1e-9)


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_numbers_of_every_type(tmp_path: Path, ending: str, kind: str) -> None:
    values = np.array([0, 1, 100, 127] * 2, kind).reshape(2, 2, 2)
    SimpleITK.WriteImage(itk_image(values, np.eye(4)), str(tmp_path / f"a.{ending}"))
    np.testing.assert_array_equal(read_label(tmp_path / f"a.{ending}").array, values)


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_channels_of_one_file(tmp_path: Path, ending: str) -> None:
    channels = np.stack([IMAGE, -IMAGE], -1)
    image = itk_image(channels, GEOMETRIES["oblique"], vector=True)
    SimpleITK.WriteImage(image, str(tmp_path / f"a.{ending}"))
    found = read_image([tmp_path / f"a.{ending}"])
    np.testing.assert_array_equal(found.array, np.stack([IMAGE, -IMAGE]))
    np.testing.assert_allclose(found.affine, GEOMETRIES["oblique"], atol=1e-9)
    with pytest.raises(InputError, match="is 4D"):
        read_label(tmp_path / f"a.{ending}")


RAW = np.arange(24, dtype=">i2").reshape(2, 3, 4)
NRRD = {
    "type": "short", "dimension": "3", "space": "left-posterior-superior", "sizes": "2 3 4",
    "space directions": "(1,0,0) (0,2,0) (0,0,3)", "space origin": "(10,20,30)",
    "endian": "big", "encoding": "raw",
}  # fmt: skip
META = {
    "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "True",
    "CompressedData": "False", "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "10 20 30",
    "ElementSpacing": "1 2 3", "DimSize": "2 3 4", "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}  # fmt: skip
PLACED = LPS @ [[1, 0, 0, 10], [0, 2, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1]]


def nrrd(path: Path, data: bytes = RAW.tobytes(order="F"), **changes: str | None) -> Path:
    fields = NRRD | {key.replace("_", " "): value for key, value in changes.items()}
    lines = [f"{key}: {value}" for key, value in fields.items() if value is not None]
    path.write_bytes("\n".join(["NRRD0004", "# a comment", *lines, "", ""]).encode() + data)
    return path


def meta(path: Path, data: bytes = RAW.tobytes(order="F"), **changes: str | None) -> Path:
    fields = META | changes
    last = fields.pop("ElementDataFile")
    fields["ElementDataFile"] = last
    lines = [f"{key} = {value}" for key, value in fields.items() if value is not None]
    path.write_bytes("\n".join([*lines, ""]).encode() + data)
    return path


SPACES = {
    "left-posterior-superior": (-1, -1), "LPS": (-1, -1), "right-anterior-superior": (1, 1),
    "RAS": (1, 1), "left-anterior-superior": (-1, 1), "LAS": (-1, 1),
}  # fmt: skip


@pytest.mark.parametrize("space", SPACES)
def test_spaces_of_nrrd(tmp_path: Path, space: str) -> None:
    path = nrrd(tmp_path / "a.nrrd", space=space)
    found = read_image([path])
    np.testing.assert_array_equal(found.array[0], RAW)
    expected = np.diag([*SPACES[space], 1, 1]) @ LPS @ PLACED
    np.testing.assert_allclose(found.affine, expected)
    itk = SimpleITK.ReadImage(str(path))
    first = LPS @ found.affine @ [0, 0, 0, 1]
    np.testing.assert_allclose(itk.TransformIndexToPhysicalPoint((0, 0, 0)), first[:3])


def test_ways_to_store_nrrd(tmp_path: Path) -> None:
    data, words = RAW.tobytes(order="F"), " ".join(map(str, RAW.ravel(order="F"))).encode()
    ways = [
        nrrd(tmp_path / "gzip.nrrd", gzip.compress(data), encoding="gzip"),
        nrrd(tmp_path / "two.nrrd", gzip.compress(data[:9]) + gzip.compress(data[9:]),
             encoding="gz"),
        nrrd(tmp_path / "text.nrrd", words, encoding="ascii"),
        nrrd(tmp_path / "skip.nrrd", b"12345" + data, byte_skip="5"),
        nrrd(tmp_path / "last.nrrd", b"12345" + data, byte_skip="-1"),
        nrrd(tmp_path / "little.nrrd", RAW.astype("<i2").tobytes(order="F"), endian="little"),
    ]  # fmt: skip
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.raw").write_bytes(data)
    ways.append(nrrd(tmp_path / "a.nhdr", b"", data_file="below/a.raw"))
    for path in ways:
        found = read_image([path])
        np.testing.assert_array_equal(found.array[0], RAW)
        np.testing.assert_allclose(found.affine, PLACED)
    bare = nrrd(tmp_path / "bare.nrrd", space=None, space_directions=None, space_origin=None,
                spacings="1 2 3")  # fmt: skip
    itk = SimpleITK.ReadImage(str(bare))
    np.testing.assert_allclose(read_image([bare]).spacing, itk.GetSpacing())


def test_ways_to_store_metaimage(tmp_path: Path) -> None:
    data, words = RAW.tobytes(order="F"), " ".join(map(str, RAW.ravel(order="F"))).encode()
    packed = zlib.compress(data)
    ways = [
        meta(tmp_path / "raw.mha"),
        meta(tmp_path / "packed.mha", packed, CompressedData="True",
             CompressedDataSize=str(len(packed))),
        meta(tmp_path / "text.mha", words, BinaryData="False"),
        meta(tmp_path / "skip.mha", b"12345" + data, HeaderSize="5"),
        meta(tmp_path / "last.mha", b"12345" + data, HeaderSize="-1"),
        meta(tmp_path / "other.mha", Offset=None, Position="10 20 30"),
    ]  # fmt: skip
    (tmp_path / "a.raw").write_bytes(data)
    ways.append(meta(tmp_path / "a.mhd", b"", ElementDataFile="a.raw"))
    for path in ways:
        found = read_image([path])
        np.testing.assert_array_equal(found.array[0], RAW)
        np.testing.assert_allclose(found.affine, PLACED)


def literature(path: Path, **datasets: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file.create_dataset(name, data=values, compression="gzip")
    return path


def test_hdf5_of_the_literature(tmp_path: Path) -> None:
    path = literature(tmp_path / "mri_norm2.h5", image=IMAGE, label=LABEL)
    image, label = read_image([path]), read_label(path)
    np.testing.assert_array_equal(image.array[0], IMAGE)
    np.testing.assert_array_equal(label.array, LABEL)
    np.testing.assert_array_equal(image.affine, np.eye(4))
    assert hdf5.has_label(path)
    bare = literature(tmp_path / "bare.h5", image=IMAGE)
    assert not hdf5.has_label(bare)
    with pytest.raises(InputError, match=r"bare\.h5: has no dataset 'label'"):
        read_label(bare)


def test_an_image_is_read_without_its_label(tmp_path: Path) -> None:
    """The label's bytes are spoiled, so that a look at them would show."""
    path = literature(tmp_path / "a.h5", image=IMAGE, label=LABEL)
    with h5py.File(path) as file:
        place = file["label"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[place.byte_offset : place.byte_offset + place.size] = b"\xff" * place.size
    path.write_bytes(content)
    np.testing.assert_array_equal(read_image([path]).array[0], IMAGE)
    with pytest.raises(InputError, match="damaged"):
        read_label(path)


def external_link(path: Path) -> Path:
    literature(path.parent / "other.h5", image=IMAGE)
    with h5py.File(path, "w") as file:
        file["image"] = h5py.ExternalLink(str(path.parent / "other.h5"), "image")
    return path


def external_storage(path: Path) -> Path:
    (path.parent / "secret").write_bytes(bytes(64))
    with h5py.File(path, "w") as file:
        file.create_dataset("image", (4, 4, 4), "u1", external=[(path.parent / "secret", 0, 64)])
    return path


def virtual(path: Path) -> Path:
    literature(path.parent / "other.h5", image=IMAGE)
    layout = h5py.VirtualLayout(IMAGE.shape, "f4")
    layout[:] = h5py.VirtualSource(str(path.parent / "other.h5"), "image", IMAGE.shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("image", layout)
    return path


def never_filled(path: Path) -> Path:
    """10^12 voxels of which none is stored."""
    with h5py.File(path, "w") as file:
        file.create_dataset("image", (10**4,) * 3, "f4", chunks=(8, 8, 8), compression="gzip")
    return path


def plugin(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("image", data=IMAGE, compression="lzf")
    return path


def below(folder: Path, name: str) -> Path:
    (folder / "in").mkdir()
    return folder / "in" / name


def outside(folder: Path) -> str:
    (folder / "secret.raw").write_bytes(bytes(48))
    return "../secret.raw"


def linked(folder: Path) -> str:
    (folder / "secret.raw").write_bytes(bytes(48))
    (folder / "in" / "link.raw").symlink_to("../secret.raw")
    return "link.raw"


def cut(path: Path, keep: float = 0.7) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def flip(path: Path, place: int) -> Path:
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
    return path


def written(path: Path) -> Path:
    write_volume(path, IMAGE, np.eye(4))
    return path


HUGE = "20000 20000 20000"
BAD = {
    "nrrd: huge": (lambda p: nrrd(p / "a.nrrd", sizes=HUGE), "the header promises"),
    "nrrd: huge gz": (
        lambda p: nrrd(p / "a.nrrd", gzip.compress(b"1"), sizes=HUGE, encoding="gzip"),
        "the header promises",
    ),
    "nrrd: huge text": (
        lambda p: nrrd(p / "a.nrrd", b"1 2", sizes=HUGE, encoding="text"), "the header promises"),
    "nrrd: more than the memory": (
        lambda p: nrrd(p / "a.nrrd", sizes="9999999 9999999 999999"), "the header promises"),
    "nrrd: negative": (lambda p: nrrd(p / "a.nrrd", sizes="-2 -3 4"), "damaged or not NRRD"),
    "nrrd: no sizes": (lambda p: nrrd(p / "a.nrrd", sizes=None), "damaged or not NRRD"),
    "nrrd: truncated": (lambda p: nrrd(p / "a.nrrd", b"123"), "the header promises"),
    "nrrd: truncated gz": (lambda p: cut(written(p / "a.nrrd"), 0.9), "data are damaged"),
    "nrrd: a flipped byte": (lambda p: flip(written(p / "a.nrrd"), -30), "data are damaged"),
    "nrrd: checksum": (lambda p: flip(written(p / "a.nrrd"), -6), "data are damaged"),
    "nrrd: empty": (lambda p: cut(written(p / "a.nrrd"), 0), "is empty"),
    "nrrd: text": (lambda p: (p / "a.nrrd").write_text("hello") and p / "a.nrrd", "not NRRD"),
    "nrrd: endless header": (
        lambda p: (p / "a.nrrd").write_bytes(b"NRRD0004\n" + b"x" * 10**6) and p / "a.nrrd",
        "damaged or not NRRD",
    ),
    "nrrd: folder": (lambda p: (p / "a.nrrd").mkdir() or p / "a.nrrd", "cannot be read"),
    "nrrd: pipe": (lambda p: os.mkfifo(p / "a.nrrd") or p / "a.nrrd", "no regular file"),
    "nrrd: missing": (lambda p: p / "a.nrrd", "no such file"),
    "nrrd: outside": (
        lambda p: nrrd(below(p, "a.nhdr"), b"", data_file=outside(p)), "outside its own folder"),
    "nrrd: outside, not detached": (
        lambda p: nrrd(below(p, "a.nrrd"), b"", data_file=outside(p)), "outside its own folder"),
    "nrrd: absolute": (
        lambda p: nrrd(p / "a.nhdr", b"", data_file="/etc/passwd", byte_skip="0"),
        "outside its own folder",
    ),
    "nrrd: link": (
        lambda p: nrrd(below(p, "a.nhdr"), b"", data_file=linked(p)), "leads out of its"),
    "nrrd: data file missing": (
        lambda p: nrrd(p / "a.nhdr", b"", data_file="a.raw"), "data file a.raw is missing"),
    "nrrd: list": (lambda p: nrrd(p / "a.nhdr", data_file="LIST"), "spread over several files"),
    "nrrd: encoding": (lambda p: nrrd(p / "a.nrrd", encoding="bzip2"), "encoded as 'bzip2'"),
    "nrrd: type": (lambda p: nrrd(p / "a.nrrd", type="block"), "holds 'block' values"),
    "nrrd: 2D": (
        lambda p: nrrd(p / "a.nrrd", dimension="2", sizes="4 6", space_directions="(1,0) (0,1)"),
        "has 2 axes",
    ),
    "nrrd: singular": (
        lambda p: nrrd(p / "a.nrrd", space_directions="(1,0,0) (1,0,0) (0,0,1)"), "no usable"),
    "nrrd: NaN": (
        lambda p: nrrd(p / "a.nrrd", space_directions="(nan,0,0) (0,1,0) (0,0,1)"), "no usable"),
    "nrrd: infinite origin": (lambda p: nrrd(p / "a.nrrd", space_origin="(inf,0,0)"), "no usable"),
    "nrrd: no vectors": (lambda p: nrrd(p / "a.nrrd", space_origin="here"), "damaged or not NRRD"),
    "meta: huge": (lambda p: meta(p / "a.mha", DimSize=HUGE), "the header promises"),
    "meta: huge packed": (
        lambda p: meta(p / "a.mha", zlib.compress(b"1"), DimSize=HUGE, CompressedData="True"),
        "the header promises",
    ),
    "meta: huge channels": (
        lambda p: meta(p / "a.mha", ElementNumberOfChannels="99999999999"), "the header promises"),
    "meta: negative": (lambda p: meta(p / "a.mha", DimSize="2 -3 -4"), "damaged or not MetaImage"),
    "meta: truncated": (lambda p: meta(p / "a.mha", b"123"), "the header promises"),
    "meta: truncated packed": (lambda p: cut(written(p / "a.mha"), 0.9), "damaged"),
    "meta: a flipped byte": (lambda p: flip(written(p / "a.mha"), -30), "damaged"),
    "meta: checksum": (lambda p: flip(written(p / "a.mha"), -1), "damaged"),
    "meta: empty": (lambda p: cut(written(p / "a.mha"), 0), "is empty"),
    "meta: no data file": (lambda p: cut(meta(p / "a.mha", b""), 0.5), "damaged or not MetaImage"),
    "meta: outside": (
        lambda p: meta(below(p, "a.mhd"), b"", ElementDataFile=outside(p)),
        "outside its own folder",
    ),
    "meta: absolute": (
        lambda p: meta(p / "a.mha", b"", ElementDataFile="/etc/passwd"), "outside its own folder"),
    "meta: link": (
        lambda p: meta(below(p, "a.mhd"), b"", ElementDataFile=linked(p)),
        "leads out of its own folder",
    ),
    "meta: list": (lambda p: meta(p / "a.mhd", ElementDataFile="LIST"), "spread over several"),
    "meta: type": (lambda p: meta(p / "a.mha", ElementType="MET_STRING"), "'MET_STRING' values"),
    "meta: 2D": (
        lambda p: meta(p / "a.mha", NDims="2", DimSize="4 6"), "has 2 axes and 1 values"),
    "meta: singular": (
        lambda p: meta(p / "a.mha", TransformMatrix="1 0 0 1 0 0 0 0 1"), "no usable geometry"),
    "meta: no spacing": (
        lambda p: meta(p / "a.mha", ElementSpacing="1 0 1"), "no usable geometry"),
    "h5: external link": (lambda p: external_link(p / "a.h5"), "link or lies in another file"),
    "h5: external storage": (lambda p: external_storage(p / "a.h5"), "lies in another file"),
    "h5: virtual": (lambda p: virtual(p / "a.h5"), "lies in another file"),
    "h5: never filled": (lambda p: never_filled(p / "a.h5"), "the header promises"),
    "h5: plug-in": (lambda p: plugin(p / "a.h5"), "compressed by a plug-in"),
    "h5: no image": (lambda p: literature(p / "a.h5", label=LABEL), "has no dataset 'image'"),
    "h5: 2D": (lambda p: literature(p / "a.h5", image=IMAGE[0]), r"shape \(5, 6\)"),
    "h5: text": (lambda p: (p / "a.h5").write_text("hello") and p / "a.h5", "not HDF5"),
    "h5: truncated": (lambda p: cut(literature(p / "a.h5", image=IMAGE)), "not HDF5"),
    "h5: complex": (
        lambda p: literature(p / "a.h5", image=IMAGE.astype(np.complex64)), "no plain numbers"),
    "h5: NaN": (lambda p: literature(p / "a.h5", image=IMAGE * np.nan), "NaN or infinite"),
    "nii.gz: a flipped byte": (lambda p: flip(written(p / "a.nii.gz"), -30), "damaged"),
    "nii.gz: checksum": (lambda p: flip(written(p / "a.nii.gz"), -6), "damaged"),
    "nii: pipe": (lambda p: os.mkfifo(p / "a.nii") or p / "a.nii", "no regular file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_file(tmp_path: Path, name: str) -> None:
    make, message = BAD[name]
    path = make(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        read_image([path])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", WRITTEN)
def test_what_memory_cannot_hold_is_refused(tmp_path: Path, monkeypatch, ending: str) -> None:
    """Zeros that truly unpack to more than the machine has."""
    zeros = np.zeros((50, 40, 30), np.float32)
    write_volume(tmp_path / f"a.{ending}", zeros, np.eye(4))
    monkeypatch.setattr("dcamt.memory.free_memory", lambda: 60_000 * 12 - 1)
    with pytest.raises(
        InputError, match=r"reading it takes 0.00072 GB of memory, but 0.00072 GB are"
    ):
        read_image([tmp_path / f"a.{ending}"])


@pytest.mark.parametrize(
    "ending", [ending for ending in FORMATS if ending not in (".nhdr", ".mhd")]
)
def test_every_cut_and_many_flips_are_refused_or_read(tmp_path: Path, ending: str) -> None:
    """Whatever happens to a file, reading gives a volume or an InputError."""
    whole = tmp_path / f"whole{ending}"
    write_volume(whole, IMAGE, GEOMETRIES["oblique"])
    content = whole.read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / f"a{ending}"
    for keep in range(0, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:keep])
        with pytest.raises(InputError):
            read_image([path])
    for _ in range(150):
        spoiled = bytearray(content)
        # Headers are at the front of all formats, so half of the changes go there.
        reach = len(content) if rng.random() < 0.5 else min(400, len(content))
        for place in rng.integers(0, reach, rng.integers(1, 4)):
            spoiled[place] = rng.integers(0, 256)
        path.write_bytes(spoiled)
        try:
            assert read_image([path]).array.ndim == 4
        except InputError as error:
            assert "\n" not in str(error)


def test_real_nrrd_agrees_with_simpleitk(real_data: Path) -> None:
    folder = real_data / "nrrd"
    if not folder.is_dir():
        pytest.skip("nrrd is absent from the real volumes")
    image, label = (
        read_image([folder / "brain1_image.nrrd"]), read_label(folder / "brain1_label.nrrd")
    )  # fmt: skip
    for array, affine, name in (
        (image.array[0], image.affine, "brain1_image"), (label.array, label.affine, "brain1_label")
    ):  # fmt: skip
        itk = SimpleITK.ReadImage(str(folder / f"{name}.nrrd"))
        np.testing.assert_array_equal(array, SimpleITK.GetArrayFromImage(itk).T)
        for index in ((0, 0, 0), (255, 0, 24), (7, 200, 3)):
            world = (LPS @ affine @ [*index, 1])[:3]
            np.testing.assert_allclose(itk.TransformIndexToPhysicalPoint(index), world, atol=1e-6)


@pytest.mark.parametrize("ending", WRITTEN)
@pytest.mark.parametrize("source", ["dicom/brain_t1_oblique", "nrrd/brain1_image.nrrd"])
def test_real_geometry_survives_every_round_trip(
    real_data: Path, tmp_path: Path, source: str, ending: str
) -> None:
    if not (real_data / source).exists():
        pytest.skip(f"{source} is absent from the real volumes")
    image = read_image([real_data / source])
    path = tmp_path / f"a.{ending}"
    write_volume(path, image.array[0, ::4, ::4], image.affine @ np.diag([4, 4, 1, 1]))
    back = read_image([path])
    np.testing.assert_array_equal(back.array[0], image.array[0, ::4, ::4])
    np.testing.assert_allclose(back.affine, image.affine @ np.diag([4, 4, 1, 1]), atol=1e-4)


def test_real_literature_files(real_data: Path) -> None:
    files = sorted((real_data / "left_atrium_h5").glob("*/mri_norm2.h5"))
    if not files:
        pytest.skip("left_atrium_h5 is absent from the real volumes")
    for path in files:
        case = path.parent.name
        image, label = read_image([path]), read_label(path)
        known = read_image([real_data / f"left_atrium/imagesTr/{case}_0000.nii.gz"])
        wanted = read_label(real_data / f"left_atrium/labelsTr/{case}.nii.gz")
        np.testing.assert_array_equal(label.array, wanted.array)
        assert image.spacing == (1, 1, 1)  # the file says nothing of the 0.625 mm
        assert np.abs(image.array - known.array).max() < 0.05  # those are bytes


# ------------------------------------------------------------------------------------------- units

LENGTHS = {
    "mm": 1, "Millimeters": 1, "cm": 10, "m": 1000, "metre": 1000, "um": 1e-3, "microns": 1e-3,
    "\u00b5m": 1e-3, "\u03bcm": 1e-3, "nm": 1e-6, "": 1, "???": 1,
}  # fmt: skip


@pytest.mark.parametrize("unit", LENGTHS)
def test_units_of_a_header_become_millimetres(tmp_path: Path, unit: str) -> None:
    quoted = " ".join([f'"{unit}"'] * 3)
    ways = [
        nrrd(tmp_path / "space.nrrd", space_units=quoted),
        nrrd(tmp_path / "axes.nrrd", space=None, space_directions=None, space_origin=None,
             spacings="1 2 3", units=quoted),
        meta(tmp_path / "a.mha", DistanceUnits=unit),
    ]  # fmt: skip
    mm = LENGTHS[unit]
    for path in ways:
        image = read_image([path])
        np.testing.assert_allclose(image.spacing, np.multiply((1, 2, 3), mm))
        assert len(image.remarks) == (mm != 1)
        if path.name != "axes.nrrd":
            np.testing.assert_allclose(image.affine, np.diag([mm, mm, mm, 1]) @ PLACED)


def test_every_axis_may_have_a_unit_of_its_own(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "a.nrrd", space_units='"mm" "cm" "um"')
    image = read_image([path])
    np.testing.assert_allclose(image.affine, np.diag([1, 10, 1e-3, 1]) @ PLACED)
    assert len(image.remarks) == 2
    several = nrrd(tmp_path / "b.nrrd", np.stack([RAW, RAW]).tobytes(order="F"), dimension="4",
                   sizes="2 2 3 4", space=None, space_directions=None, space_origin=None,
                   kinds="list domain domain domain", spacings="nan 1 2 3",
                   units='"" "mm" "um" "mm"')  # fmt: skip
    assert read_image([several]).spacing == pytest.approx((1, 2e-3, 3))


def test_a_unit_that_is_no_length_is_told_and_not_repeated(tmp_path: Path) -> None:
    image = read_image([nrrd(tmp_path / "a.nrrd", space_units='"Quixwold" "mm" "mm"')])
    assert image.remarks == ("the header's unit is no known length; sizes are taken as mm",)
    np.testing.assert_allclose(image.affine, PLACED)


def test_what_is_written_says_millimetres(tmp_path: Path) -> None:
    for ending, field in (("nrrd", b'space units: "mm" "mm" "mm"'), ("mha", b"DistanceUnits = mm")):
        write_volume(tmp_path / f"a.{ending}", IMAGE, GEOMETRIES["oblique"])
        assert field in (tmp_path / f"a.{ending}").read_bytes()
        assert read_image([tmp_path / f"a.{ending}"]).remarks == ()


# ------------------------------------------------------------------------- headers in the wild


def test_a_field_needs_no_blank_after_its_colon(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "a.nrrd", own="is kept: out", measurement_frame="(1,0,0)")
    head, data = path.read_bytes().split(b"\n\n", 1)
    head = head.replace(b": ", b":") + b"\nSegment0_Name:=a: b\nspace:=mine"
    path.write_bytes(head + b"\n\n" + data)
    image = read_image([path])
    np.testing.assert_array_equal(image.array[0], RAW)
    np.testing.assert_allclose(image.affine, PLACED)


@pytest.mark.parametrize("first", ["none", "(nan,nan,nan)"])
@pytest.mark.parametrize("kind", ["list", "vector", "RGB-color", None])
def test_channels_on_the_first_axis_of_nrrd(tmp_path: Path, first: str, kind: str | None) -> None:
    path = nrrd(
        tmp_path / "a.nrrd", np.stack([RAW, RAW + 1]).astype(">i2").tobytes(order="F"),
        dimension="4", sizes="2 2 3 4", space_directions=f"{first} {NRRD['space directions']}",
        kinds=kind and f"{kind} domain domain domain",
    )  # fmt: skip
    image = read_image([path])
    np.testing.assert_array_equal(image.array, np.stack([RAW, RAW + 1]))
    np.testing.assert_allclose(image.affine, PLACED)


def test_a_header_of_any_name_may_have_its_data_beside_it(tmp_path: Path) -> None:
    """Whether they are is told by the header: .nrrd and .mha may be detached, .nhdr attached."""
    (tmp_path / "data.raw").write_bytes(RAW.tobytes(order="F"))
    paths = [
        nrrd(tmp_path / "a.nrrd", b"", data_file="data.raw"),
        nrrd(tmp_path / "b.nhdr"),
        meta(tmp_path / "c.mha", b"", ElementDataFile="data.raw"),
        meta(tmp_path / "d.mhd"),
    ]
    for path in paths:
        np.testing.assert_array_equal(read_image([path]).array[0], RAW)
    detached = [tmp_path / "data.raw"]
    assert [parts_of(path)[1:] for path in paths] == [detached, [], detached, []]


# ------------------------------------------------------------------------------------------- links


def pair(folder: Path, ending: str, data: str) -> Path:
    """A header in ``folder`` and the data that it names as a.raw, in the file ``data``."""
    Path(data).parent.mkdir(parents=True, exist_ok=True)
    Path(data).write_bytes(RAW.tobytes(order="F"))
    folder.mkdir(parents=True, exist_ok=True)
    make, key = (nrrd, "data_file") if ending == "nhdr" else (meta, "ElementDataFile")
    return make(folder / f"a.{ending}", b"", **{key: "a.raw"})


@pytest.mark.parametrize("ending", ["nhdr", "mhd"])
@pytest.mark.parametrize("manager", ["annex", "annex of data alone", "store outside", "farm"])
def test_pairs_that_a_data_manager_keeps_are_read(
    tmp_path: Path, manager: str, ending: str
) -> None:
    images = tmp_path / "set" / "images"
    images.mkdir(parents=True)
    if manager == "annex of data alone":  # a small text stays in git
        header = pair(images, ending, str(tmp_path / "set/.git/annex/objects/x/1/1"))
        (images / "a.raw").symlink_to("../.git/annex/objects/x/1/1")
    elif manager == "farm":  # of links to pairs that lie together elsewhere
        header = pair(tmp_path / "other", ending, str(tmp_path / "other/a.raw"))
        (images / header.name).symlink_to(header)
        header = images / header.name
    else:
        store = tmp_path / ("cache/files" if "outside" in manager else "set/.git/annex/objects")
        kept = pair(store / "x" / "1", ending, str(store / "y" / "2" / "2"))
        kept = kept.rename(kept.with_name("KEY"))
        header = images / f"a.{ending}"
        header.symlink_to(os.path.relpath(kept, images))
        (images / "a.raw").symlink_to(os.path.relpath(store / "y" / "2" / "2", images))
    np.testing.assert_array_equal(read_image([header]).array[0], RAW)
    assert parts_of(header)[1].read_bytes() == RAW.tobytes(order="F")
    again = tmp_path / "links" / header.name  # as a comparison links its test scans
    again.parent.mkdir()
    again.symlink_to(header)
    np.testing.assert_array_equal(read_image([again]).array[0], RAW)


@pytest.mark.parametrize("ending", ["nhdr", "mhd"])
@pytest.mark.parametrize("linked", [True, False])
def test_links_of_a_stranger_lead_nowhere(tmp_path: Path, ending: str, linked: bool) -> None:
    """A header and a link to a file of the user's, in a folder from somebody else."""
    images = tmp_path / "home" / "downloads" / "set" / "images"
    header = pair(images, ending, str(tmp_path / "home" / "secret"))
    (images / "a.raw").symlink_to(tmp_path / "home" / "secret")
    if linked:
        kept = images.parent / ".git" / "annex" / "objects" / f"KEY.{ending}"
        kept.parent.mkdir(parents=True)
        header.rename(kept)
        header.symlink_to(kept)
    with pytest.raises(InputError, match=r"its data file a\.raw is a link that leads out"):
        read_image([header])


def test_data_that_were_not_fetched_are_told(tmp_path: Path) -> None:
    images = tmp_path / "images"
    header = pair(images, "mhd", str(tmp_path / "gone"))
    (images / "a.raw").symlink_to("../.git/annex/objects/xx/key")
    with pytest.raises(InputError, match=r"a\.mhd: .* a link to a file that is not there"):
        read_image([header])


# -------------------------------------------------------------------------------- channels of HDF5

LONG = np.random.default_rng(2).normal(size=(3, 8, 9, 10)).astype(np.float32)


@pytest.mark.parametrize("first", [True, False])
def test_channels_of_hdf5_come_first_or_last(tmp_path: Path, first: bool) -> None:
    stored = LONG if first else np.moveaxis(LONG, 0, -1)
    image = read_image([literature(tmp_path / "a.h5", image=stored)])
    np.testing.assert_array_equal(image.array, LONG)
    (remark,) = image.remarks
    assert ("first" if first else "last") in remark


def test_one_channel_of_hdf5_is_no_channel(tmp_path: Path) -> None:
    path = literature(tmp_path / "a.h5", image=IMAGE[None], label=LABEL[None])
    np.testing.assert_array_equal(read_image([path]).array[0], IMAGE)
    np.testing.assert_array_equal(read_label(path).array, LABEL)
    last = literature(tmp_path / "b.h5", image=IMAGE[..., None])
    np.testing.assert_array_equal(read_image([last]).array[0], IMAGE)


@pytest.mark.parametrize("shape", [(4, 5, 6, 7), (3, 20, 20, 4), (2, 2, 2, 2, 2)])
def test_axes_that_could_be_either_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = literature(tmp_path / "a.h5", image=np.zeros(shape, np.float32))
    with pytest.raises(InputError, match="far shorter and first or last"):
        read_image([path])
