"""Reading and writing NIfTI: geometry, intensities, and what is refused."""

import gzip
import resource
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from dcamt.data.formats import file_stem
from dcamt.data.formats.stored import Forms
from dcamt.data.volume import (
    Volume,
    aligned,
    check_channels,
    read_image,
    read_label,
    write_volume,
)
from dcamt.errors import InputError

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def affine_of(angles: tuple[float, float, float], spacing, origin, flip=(1, 1, 1)) -> np.ndarray:
    """Rotation about x, y, z by degrees, times spacing and flips."""
    rotation = np.eye(3)
    for axis, angle in enumerate(np.radians(angles)):
        i, j = [a for a in range(3) if a != axis]
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = (
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
            np.cos(angle),
        )
        rotation = turn @ rotation
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(np.multiply(spacing, flip))
    affine[:3, 3] = origin
    return affine


GEOMETRIES = {
    "plain": affine_of((0, 0, 0), (1, 1, 1), (0, 0, 0)),
    "anisotropic": affine_of((0, 0, 0), (0.6875, 0.6875, 6.5), (-90.25, 120.5, -33.125)),
    "oblique": affine_of((12, -25, 40), (0.9, 1.1, 2.5), (-101.3, 55.7, 12.9)),
    "flipped": affine_of((0, 0, 0), (0.5, 0.75, 2), (80, -70, 60), flip=(-1, 1, 1)),
    "flipped oblique": affine_of((-30, 5, 110), (0.5, 0.75, 2), (80, -70, 60), flip=(1, 1, -1)),
    "permuted": affine_of((90, 0, 90), (1, 2, 3), (5, 6, 7)),
}


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


@pytest.mark.parametrize("name", GEOMETRIES)
def test_written_volume_keeps_its_place(tmp_path: Path, name: str) -> None:
    affine = GEOMETRIES[name]
    array = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    path = tmp_path / "new" / "volume.nii.gz"
    write_volume(path, array, affine)

    back = read_label(path)
    np.testing.assert_array_equal(back.array, array)
    np.testing.assert_allclose(back.affine, affine, atol=1e-5)

    header = nib.load(path).header
    assert header["sform_code"] == header["qform_code"] == 1
    np.testing.assert_allclose(header.get_sform(), header.get_qform(), atol=1e-5)
    assert header.get_xyzt_units()[0] == "mm"

    other = SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(other).T, array)
    np.testing.assert_allclose(other.GetSpacing(), back.spacing, rtol=1e-5)
    for index in [(0, 0, 0), (3, 0, 2), (1, 4, 5)]:
        world = LPS @ affine @ [*index, 1]
        np.testing.assert_allclose(other.TransformIndexToPhysicalPoint(index), world[:3], atol=1e-4)
    assert [p.name for p in path.parent.iterdir()] == ["volume.nii.gz"]  # nothing temporary left


@pytest.mark.parametrize("name", GEOMETRIES)
def test_volume_written_by_simpleitk_is_read_in_place(tmp_path: Path, name: str) -> None:
    affine = LPS @ GEOMETRIES[name]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    array = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    image = SimpleITK.GetImageFromArray(array.T)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(tmp_path / "a.nii"))

    volume = read_image([tmp_path / "a.nii"])
    np.testing.assert_array_equal(volume.array, array[np.newaxis])
    np.testing.assert_allclose(volume.affine, GEOMETRIES[name], atol=1e-4)


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        ([0, 1], np.uint8),
        ([False, True], np.uint8),
        ([0, 300], np.uint16),
        ([-5, 200], np.int16),
        ([0, 2**40], np.uint64),
        ([0.5, 1e-3], np.float32),
    ],
)
def test_written_type_is_the_smallest(tmp_path: Path, values: list[float], stored: type) -> None:
    array = np.array(values).reshape(2, 1, 1)
    write_volume(tmp_path / "a.nii.gz", array, np.eye(4))
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == stored
    np.testing.assert_allclose(np.asanyarray(image.dataobj), array)


def test_writing_twice_gives_equal_bytes(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 3, (5, 5, 5))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, array, GEOMETRIES["oblique"])
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha", "h5"])
def test_full_disk_keeps_the_old_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    write_volume(path, np.zeros((2, 2, 2), np.uint8), np.eye(4))
    old = path.read_bytes()
    array = np.random.default_rng(0).normal(size=(20, 20, 20))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(InputError, match=rf"a\.{ending}: cannot be written \(.*File too large"):
            write_volume(path, array, np.eye(4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_writing_elsewhere_is_refused(tmp_path: Path) -> None:
    array = np.zeros((2, 2, 2), np.uint8)
    with pytest.raises(InputError, match=r"a\.png: unsupported file ending"):
        write_volume(tmp_path / "a.png", array, np.eye(4))
    with pytest.raises(InputError, match=r"a\.mhd: this format is read only"):
        write_volume(tmp_path / "a.mhd", array, np.eye(4))
    with pytest.raises(ValueError, match="three axes"):
        write_volume(tmp_path / "a.nii.gz", array[np.newaxis], np.eye(4))


def test_image_of_several_files(tmp_path: Path) -> None:
    channels = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    affine = GEOMETRIES["oblique"]
    paths = [save(tmp_path / f"a_{i}.nii.gz", c, affine) for i, c in enumerate(channels)]
    whole = save(tmp_path / "a.nii.gz", np.moveaxis(channels, 0, -1), affine)
    for image in (read_image(paths), read_image([whole])):
        assert image.array.dtype == np.float32
        assert image.array.flags.c_contiguous
        assert image.shape == (3, 4, 5)
        np.testing.assert_array_equal(image.array, channels)
        np.testing.assert_allclose(image.spacing, (0.9, 1.1, 2.5), rtol=1e-6)
    check_channels(image, ["T1", "T2"], whole)
    with pytest.raises(InputError, match=r"channels is 2, but the data set names 1 \(CT\)"):
        check_channels(image, ["CT"], whole)


def test_scale_and_offset_apply(tmp_path: Path) -> None:
    stored = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    content = bytearray(save(tmp_path / "a.nii", stored).read_bytes())
    content[112:120] = np.array([0.5, -10], "<f4").tobytes()  # scl_slope, scl_inter
    (tmp_path / "a.nii").write_bytes(content)
    image = read_image([tmp_path / "a.nii"])
    np.testing.assert_array_equal(image.array[0], stored * np.float32(0.5) - 10)


def test_trailing_axis_of_one_is_dropped(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.ones((2, 3, 4, 1), np.uint8))
    assert read_image([path]).array.shape == (1, 2, 3, 4)
    assert read_label(path).array.shape == (2, 3, 4)


def test_single_slice_is_a_volume(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.ones((2, 3, 1), np.uint8))
    assert read_image([path]).shape == (2, 3, 1)


def test_label_of_whole_floats(tmp_path: Path) -> None:
    values = np.array([0, 1, 1.99999, 3], np.float64).reshape(2, 2, 1)
    label = read_label(save(tmp_path / "a.nii.gz", values))
    assert label.array.dtype == np.int16
    assert label.array.ravel().tolist() == [0, 1, 2, 3]


def truncated(path: Path, keep: float = 0.5) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


NOISE = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)


def zero_spacing(path: Path) -> Path:
    content = bytearray(save(path, NOISE).read_bytes())
    content[80:92] = bytes(12)  # pixdim[1:4]
    content[252:256] = bytes(4)  # qform_code, sform_code
    path.write_bytes(content)
    return path


def placed(path: Path, affine: np.ndarray) -> Path:
    """A file with that sform, which nibabel itself would not write."""
    content = bytearray(save(path, NOISE).read_bytes())
    content[254:256] = np.array([1], "<i2").tobytes()  # sform_code
    content[280:328] = affine[:3].astype("<f4").tobytes()
    path.write_bytes(content)
    return path


def huge(path: Path) -> Path:
    """A header that promises 2 * 10^13 voxels over eight bytes of data."""
    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 22000))
    header["magic"], header["vox_offset"] = b"n+1", 352
    content = header.binaryblock + bytes(12)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def text(path: Path) -> Path:
    path.write_text("not an image " * 100)
    return path


def colours(path: Path) -> Path:
    kind = [("R", "u1"), ("G", "u1"), ("B", "u1")]
    return save(path, np.zeros((3, 3, 3), np.dtype(kind)))


def holed(value: float) -> np.ndarray:
    array = NOISE.copy()
    array[0, 0, :3] = value
    return array


BAD_IMAGES = {
    "missing": (lambda p: p / "a.nii.gz", "no such file"),
    "folder": (lambda p: (p / "a.nii.gz").mkdir() or p / "a.nii.gz", "cannot be read"),
    "empty": (lambda p: (p / "a.nii.gz").touch() or p / "a.nii.gz", "is empty; copy or export"),
    "text": (lambda p: text(p / "a.nii"), "damaged or not NIfTI"),
    "text named gz": (lambda p: text(p / "a.nii.gz"), "damaged or not NIfTI"),
    "truncated gz": (lambda p: truncated(save(p / "a.nii.gz", NOISE)), "data are damaged"),
    "truncated": (lambda p: truncated(save(p / "a.nii", NOISE)), "it is truncated"),
    "huge": (lambda p: huge(p / "a.nii"), "the header promises"),
    "huge gz": (lambda p: huge(p / "a.nii.gz"), "the header promises"),
    "ending": (lambda p: text(p / "a.png"), "unsupported file ending"),
    "2D": (lambda p: save(p / "a.nii.gz", NOISE[0]), "needs three axes"),
    "5D": (lambda p: save(p / "a.nii.gz", np.ones((2, 2, 2, 2, 3))), "is 5D with shape"),
    "NaN": (lambda p: save(p / "a.nii.gz", holed(np.nan)), "NaN or infinite .* in 3 of 512 voxels"),
    "infinite": (lambda p: save(p / "a.nii.gz", holed(-np.inf)), "in 3 of 512 voxels"),
    "too large": (
        lambda p: save(p / "a.nii.gz", holed(1).astype(np.float64) * 1e300),
        r"infinite intensities \(as float32\)",
    ),
    "singular": (
        lambda p: placed(p / "a.nii", np.diag([1.0, 1, 0, 1])),
        "no usable geometry",
    ),
    "NaN affine": (lambda p: placed(p / "a.nii", np.full((4, 4), np.nan)), "no usable geometry"),
    "coinciding axes": (
        lambda p: placed(p / "a.nii", np.eye(4)[[0, 0, 2, 3]]),
        "no usable geometry",
    ),
    "zero spacing": (lambda p: zero_spacing(p / "a.nii"), "no usable geometry"),
    "colours": (lambda p: colours(p / "a.nii.gz"), "colours"),
    "complex": (lambda p: save(p / "a.nii.gz", NOISE.astype(np.complex64)), "complex"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_image(tmp_path: Path, name: str) -> None:
    make, message = BAD_IMAGES[name]
    path = make(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        read_image([path])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_extensions_are_not_read(tmp_path: Path, ending: str) -> None:
    """One that claims a gigabyte is no reason to take a gigabyte."""
    image = nib.Nifti1Image(NOISE, np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"private"))
    content = bytearray(image.to_bytes())
    content[352:356] = (1 << 30).to_bytes(4, "little")
    path = tmp_path / f"a{ending}"
    path.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
    np.testing.assert_array_equal(read_image([path]).array[0], NOISE)


BAD_LABELS = {
    "4D": (np.ones((2, 2, 2, 2), np.uint8), "is 4D"),
    "fractions": (np.full((2, 2, 2), 0.5), "not whole numbers in 8 of 8 voxels"),
    "NaN": (np.full((2, 2, 2), np.nan), "not whole numbers in 8 of 8 voxels"),
    "infinite": (np.full((2, 2, 2), np.inf), "not whole numbers in 8 of 8 voxels"),
    "negative": (np.full((2, 2, 2), -1, np.int16), "run from -1 to -1"),
    "too high": (np.full((2, 2, 2), 40000, np.int32), "run from 40000 to 40000"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_bad_label(tmp_path: Path, name: str) -> None:
    array, message = BAD_LABELS[name]
    with pytest.raises(InputError, match=message):
        read_label(save(tmp_path / "a.nii.gz", array))


def test_4d_file_among_several_channels(tmp_path: Path) -> None:
    paths = [
        save(tmp_path / "a_0000.nii.gz", NOISE),
        save(tmp_path / "a_0001.nii.gz", np.stack([NOISE, NOISE], -1)),
    ]
    with pytest.raises(InputError, match=r"a_0001.* is 4D .* one file per channel"):
        read_image(paths)


def test_channels_on_different_grids(tmp_path: Path) -> None:
    paths = [
        save(tmp_path / "a_0000.nii.gz", NOISE),
        save(tmp_path / "a_0001.nii.gz", NOISE[:-1]),
    ]
    with pytest.raises(InputError, match=r"a_0001.*: the channel has 7 x 8 x 8 voxels"):
        read_image(paths)


def grid(shape: tuple[int, int, int], affine: np.ndarray) -> tuple[Volume, Volume]:
    return Volume(np.zeros((1, *shape), np.float32), affine), Volume(
        np.zeros(shape, np.int16), affine
    )


@pytest.mark.parametrize("name", GEOMETRIES)
def test_rounded_header_is_the_same_grid(name: str) -> None:
    affine = GEOMETRIES[name]
    image, label = grid((200, 200, 50), affine)
    aligned(image, Volume(label.array, np.round(affine, 4)), Path("i"), Path("l"))
    aligned(image, Volume(label.array, affine.astype(np.float32)), Path("i"), Path("l"))


def test_header_rounded_at_512_slices() -> None:
    image, label = grid((512, 512, 100), np.diag([0.703125, 0.703125, 1, 1]))
    rounded = Volume(label.array, np.diag([0.7031, 0.7031, 1, 1]))
    aligned(image, rounded, Path("i"), Path("l"))


def test_shifted_and_scaled_labels_are_refused() -> None:
    affine = GEOMETRIES["oblique"]
    image, label = grid((20, 30, 40), affine)
    moved = affine.copy()
    moved[:3, 3] += affine[:3, 2] * 0.5  # half a slice of 2.5 mm
    with pytest.raises(
        InputError, match=r"l: the label lies up to 1\.25 mm \(0\.5 voxels\) from i"
    ):
        aligned(image, Volume(label.array, moved), Path("i"), Path("l"))
    scaled = affine @ np.diag([1.01, 1, 1, 1])
    with pytest.raises(InputError, match=r"\(0\.19 voxels\)"):
        aligned(image, Volume(label.array, scaled), Path("i"), Path("l"))
    with pytest.raises(InputError, match=r"20 x 30 x 39 voxels, but i has 20 x 30 x 40"):
        aligned(image, Volume(label.array[..., 1:], affine), Path("i"), Path("l"))


def image_and_label(affine: np.ndarray) -> tuple[Volume, Volume]:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1, 4, 5, 6)).astype(np.float32)
    return Volume(values, affine), Volume(rng.integers(0, 9, (4, 5, 6)).astype(np.int16), affine)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("code", ["RAS", "LPS", "LAS", "SPL", "AIR", "PSR"])
def test_a_label_along_other_axes_is_turned_onto_its_image(tmp_path, name, code) -> None:
    """nibabel turns the file; the label must come back voxel by voxel."""
    image, label = image_and_label(GEOMETRIES[name])
    other = nib.Nifti1Image(label.array, label.affine).as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(label.affine), nib.orientations.axcodes2ornt(code)
        )
    )
    nib.save(other, tmp_path / "label.nii.gz")
    turned = aligned(image, read_label(tmp_path / "label.nii.gz"), Path("i"), Path("l"))
    np.testing.assert_array_equal(turned.array, label.array)
    np.testing.assert_array_equal(turned.affine, image.affine)
    assert turned.array.flags.c_contiguous


def test_a_turned_label_of_another_grid_is_refused_with_the_numbers() -> None:
    image, label = image_and_label(np.eye(4))
    flipped = np.diag([-1.0, -1, 1, 1])  # the same axes the other way round, but not the same place
    with pytest.raises(InputError, match=r"the label lies up to .* mm \(4 voxels\) from i"):
        aligned(image, Volume(label.array, flipped), Path("i"), Path("l"))
    with pytest.raises(InputError, match=r"l: the mask has 6 x 4 x 5 voxels, but i has 4 x 5 x 6"):
        aligned(image, Volume(label.array.transpose(2, 0, 1), np.eye(4)), Path("i"), Path("l"),
                "mask")  # fmt: skip


def test_a_cube_is_turned_by_its_axes_and_not_by_its_shape() -> None:
    affine = GEOMETRIES["oblique"]
    values = np.random.default_rng(0).integers(0, 9, (5, 5, 5)).astype(np.int16)
    swapped = Volume(values.transpose(1, 0, 2), affine[:, [1, 0, 2, 3]])
    image = Volume(np.zeros((1, 5, 5, 5), np.float32), affine)
    np.testing.assert_array_equal(aligned(image, swapped, Path("i"), Path("l")).array, values)


def test_a_label_lies_on_its_image_by_either_of_two_transforms() -> None:
    """Drawn in a program that takes the qform, on a scan of which the sform counts here."""
    image, label = image_and_label(GEOMETRIES["oblique"])
    other = GEOMETRIES["flipped"]
    forms = Forms(image.affine, 4, other, 1, np.array([0.5, 0.75, 2]))
    image = replace(image, forms=forms)
    drawn = Volume(label.array[::-1], other @ np.diag([-1, 1, 1, 1]) + _shift(other, 3))
    for found in (
        aligned(image, Volume(label.array, other), Path("i"), Path("l")),
        aligned(image, label, Path("i"), Path("l")),
        aligned(image, drawn, Path("i"), Path("l")),
        aligned(Volume(image.array, other), replace(label, forms=forms), Path("i"), Path("l")),
    ):
        np.testing.assert_array_equal(found.array, label.array)
    with pytest.raises(InputError, match="voxels\\) from i"):
        aligned(image, Volume(label.array, 2 * other), Path("i"), Path("l"))
    with pytest.raises(InputError, match=r"^l: says nothing of its place in space .* unlike i;"):
        aligned(image, Volume(label.array, np.eye(4)), Path("i"), Path("l"))
    with pytest.raises(InputError, match=r"^i: says nothing of its place in space .* unlike l;"):
        aligned(Volume(image.array, np.eye(4)), label, Path("i"), Path("l"))


def _shift(affine: np.ndarray, voxels: int) -> np.ndarray:
    """What moves an origin by voxels along the first axis."""
    shift = np.zeros((4, 4))
    shift[:3, 3] = voxels * affine[:3, 0]
    return shift


def test_channels_along_other_axes_are_turned_onto_the_first(tmp_path: Path) -> None:
    affine = GEOMETRIES["oblique"]
    first, second = nib.Nifti1Image(NOISE, affine), nib.Nifti1Image(NOISE * 2, affine)
    turn = nib.orientations.axcodes2ornt("PSR")
    nib.save(first, tmp_path / "a_0000.nii.gz")
    nib.save(second.as_reoriented(turn), tmp_path / "a_0001.nii.gz")
    image = read_image([tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"])
    np.testing.assert_array_equal(image.array, np.stack([NOISE, NOISE * 2]))


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.nii.gz", "a"),
        ("a.b.nii", "a.b"),
        ("A.NII.GZ", "A"),
        ("a.nrrd", "a"),
        ("a.h5", "a"),
        ("a.gz", None),
        ("nii", None),
    ],
)
def test_stem(name: str, stem: str | None) -> None:
    assert file_stem(name) == stem


def test_real_volume_with_scale_in_its_header(real_data: Path) -> None:
    path = next((real_data / "left_atrium" / "imagesTr").glob("*.nii.gz"))
    image = read_image([path])
    reference = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).T
    np.testing.assert_allclose(image.array[0], reference, atol=1e-5)
    assert abs(image.array.mean()) < 3  # normalised intensities, not bytes up to 255
    assert image.spacing == (0.625, 0.625, 0.625)
