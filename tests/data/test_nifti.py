"""What a NIfTI header says of the place of its voxels: units, two transforms, shear, and names."""

import gzip
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from scipy.spatial.transform import Rotation

from dcamt.data.formats.stored import Forms
from dcamt.data.grid import apart, is_sheared
from dcamt.data.volume import read_image, read_label, write_volume
from dcamt.errors import CannotHold, InputError

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (6, 7, 8)
VALUES = np.random.default_rng(0).integers(0, 100, SHAPE).astype(np.int16)
NAN = float("nan")


def placed(degrees=(0, 0, 0), spacing=(1.0, 2.0, 3.0), origin=(-10.0, 20.0, 30.0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * spacing
    affine[:3, 3] = origin
    return affine


def sheared(by: float, affine: np.ndarray | None = None) -> np.ndarray:
    """The second axis leans over to the first."""
    result = (placed() if affine is None else affine).copy()
    result[:3, 1] += by * result[:3, 0]
    return result


def save(
    path: Path,
    sform: np.ndarray | None = None,
    sform_code: int = 0,
    qform: np.ndarray | None = None,
    qform_code: int = 0,
    units: int = 2,
    array: np.ndarray = VALUES,
    **fields: object,
) -> Path:
    """A file whose header says just that; ``fields`` go over it, byte for byte."""
    header = nib.Nifti1Header()
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    if qform is not None:
        header.set_qform(qform, qform_code)
    if sform is not None:
        for row, values in zip("xyz", sform, strict=False):
            header[f"srow_{row}"] = values
    header["sform_code"], header["qform_code"] = sform_code, qform_code
    header["xyzt_units"], header["magic"], header["vox_offset"] = units, b"n+1", 352
    for key, value in fields.items():
        header[key][...] = value
    content = header.binaryblock + bytes(4) + array.tobytes(order="F")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def itk_affine(path: Path) -> np.ndarray:
    """Voxel -> RAS+ mm, as SimpleITK takes it from the file."""
    image = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return LPS @ affine


# ------------------------------------------------------------------------------------------ units


@pytest.mark.parametrize(
    ("code", "mm", "name"), [(1, 1000, "metre"), (3, 1e-3, "micron"), (2, 1, ""), (0, 1, "")]
)
@pytest.mark.parametrize("forms", ["sform", "qform", "sizes"])
def test_every_unit_becomes_millimetres(tmp_path, code, mm, name, forms) -> None:
    affine = placed()
    path = {
        "sform": lambda p: save(p, affine, 2, affine, 1, units=code),
        "qform": lambda p: save(p, None, 0, affine, 1, units=code),
        "sizes": lambda p: save(p, None, 0, affine, 0, units=code),
    }[forms](tmp_path / "a.nii.gz")
    image = read_image([path])
    np.testing.assert_allclose(image.spacing, np.multiply((1, 2, 3), mm), rtol=1e-6)
    if forms != "sizes":  # of which SimpleITK places the origin elsewhere
        np.testing.assert_allclose(image.affine, itk_affine(path), rtol=1e-6, atol=1e-9)
    said = (f"the header's unit is the {name}; sizes were converted to mm",) if name else ()
    assert image.remarks == said


def test_the_unit_of_time_does_not_matter(tmp_path) -> None:
    path = save(tmp_path / "a.nii", placed(), 1, units=3 + 8)  # micron, second
    assert read_image([path]).spacing == pytest.approx((1e-3, 2e-3, 3e-3))


def test_scans_of_one_size_in_three_units_have_one_spacing(tmp_path) -> None:
    found = []
    for code, factor in ((1, 1e-3), (2, 1), (3, 1e3)):
        affine = np.diag([factor, factor, factor, 1]) @ placed()
        found.append(read_image([save(tmp_path / f"{code}.nii", affine, 1, units=code)]).affine)
    np.testing.assert_allclose(found, [placed()] * 3, rtol=1e-6)


# ---------------------------------------------------------------------------------- two transforms

TURNED = placed((0, 0, 20), origin=(-5.0, 13.0, 39.0))


def says(**fields: object) -> dict[str, object]:
    """What ``save`` is to write into the header."""
    return fields


BROKEN_QUATERNION = {"quatern_b": NAN}
HEADERS = {
    # name: how it is saved, the affine that counts, what is said of it
    "both alike": (says(sform=placed(), sform_code=1, qform=placed(), qform_code=1), placed(), ""),
    "turned against each other": (
        says(sform=TURNED, sform_code=4, qform=placed(), qform_code=1),
        TURNED,
        r"differ by up to 12\.4 mm; the sform is taken",
    ),
    "turned, both of the scanner": (
        says(sform=TURNED, sform_code=1, qform=placed(), qform_code=1), TURNED, "sform is taken"),
    "sform of zeros": (
        says(sform=np.zeros((4, 4)), sform_code=1, qform=placed(), qform_code=1),
        placed(), "the sform of the header is not usable"),
    "sform of NaN": (
        says(sform=np.full((4, 4), NAN), sform_code=2, qform=placed(), qform_code=1),
        placed(), "the sform of the header is not usable"),
    "sheared sform, sound qform": (
        says(sform=sheared(0.2), sform_code=2, qform=placed(), qform_code=1),
        placed(), r"differ by up to 1\.2 mm; the qform is taken"),
    "sheared sform alone": (says(sform=sheared(0.2), sform_code=2), sheared(0.2), "pixdim"),
    "a shear of rounding": (
        says(sform=sheared(1e-4), sform_code=2, qform=placed(), qform_code=1),
        sheared(1e-4), ""),
    "qform alone": (says(qform=placed((5, 6, 7)), qform_code=1), placed((5, 6, 7)), ""),
    "qfac 0": (says(qform=placed(), qform_code=1, pixdim=[0, 1, 2, 3, 0, 0, 0, 0]), placed(), ""),
    "a mirrored qform": (
        says(qform=placed() @ np.diag([1, 1, -1, 1]), qform_code=1),
        placed() @ np.diag([1, 1, -1, 1]), ""),
    "quaternion of NaN": (
        says(sform=TURNED, sform_code=2, qform=placed(), qform_code=1, **BROKEN_QUATERNION),
        TURNED, "the qform of the header is not usable"),
    "quaternion too long": (
        says(sform=TURNED, sform_code=2, qform=placed(), qform_code=1, quatern_b=1, quatern_c=1),
        TURNED, "the qform of the header is not usable"),
    "quaternion of NaN, sheared sform": (
        says(sform=sheared(0.2), sform_code=2, qform=placed(), qform_code=1, **BROKEN_QUATERNION),
        sheared(0.2), "the qform of the header is not usable"),
    "voxels of no size, sound sform": (
        says(sform=TURNED, sform_code=2, qform=placed(), qform_code=1,
             pixdim=[1, 0, 0, 0, 0, 0, 0, 0]),
        TURNED, "the qform of the header is not usable"),
    "sizes that are not the sform's": (
        says(sform=TURNED, sform_code=2, pixdim=[1, 1, 1, 1, 0, 0, 0, 0]), TURNED, "pixdim"),
    "neither, sizes alone": (says(qform=placed(), qform_code=0), None, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_which_transform_counts_and_what_is_said(tmp_path, name) -> None:
    saved, affine, remark = HEADERS[name]
    path = save(tmp_path / "a.nii.gz", **saved)
    image = read_image([path])
    wanted = nib.load(path).affine if affine is None else affine
    np.testing.assert_allclose(image.affine, wanted, atol=1e-5)
    np.testing.assert_array_equal(image.array[0], VALUES)
    of_shear = [said for said in image.remarks if "off a right angle" in said]
    assert len(of_shear) == is_sheared(image.affine, SHAPE)
    others = [said for said in image.remarks if said not in of_shear]
    assert len(others) == bool(remark)
    assert all(re.search(remark, said) and str(path) not in said for said in others)


READERS = {
    "nibabel": lambda path: nib.load(path).affine,
    "the qform": lambda path: nib.load(path).header.get_qform(),
    "SimpleITK": itk_affine,
}
UNREADABLE = {  # by that reader, or it makes up a place for the scan
    ("quaternion of NaN", "SimpleITK"), ("quaternion too long", "SimpleITK"),
    ("neither, sizes alone", "the qform"),
    ("sform of zeros", "nibabel"), ("sform of NaN", "nibabel"), ("sform of NaN", "SimpleITK"),
    ("quaternion of NaN", "the qform"), ("quaternion too long", "the qform"),
    ("quaternion of NaN, sheared sform", "the qform"),
    ("quaternion of NaN, sheared sform", "SimpleITK"),
    ("voxels of no size, sound sform", "the qform"), ("sheared sform alone", "SimpleITK"),
    ("voxels of no size, sound sform", "SimpleITK"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_written_lies_on_its_scan_in_every_reader(tmp_path, name, reader) -> None:
    if (name, reader) in UNREADABLE:
        pytest.skip("that reader cannot place the scan either")
    scan = save(tmp_path / "scan.nii.gz", **HEADERS[name][0])
    image = read_image([scan])
    written = tmp_path / "segmentation.nii.gz"
    write_volume(written, VALUES > 50, image.affine, image.forms)
    place = READERS[reader]
    np.testing.assert_allclose(place(written), place(scan), atol=2e-5)
    # What was read from the scan is read from what was written: the two can be compared.
    back = read_label(written)
    assert apart(image.affine, back.affine, SHAPE)[1] < 1e-3


@pytest.mark.parametrize("name", HEADERS)
def test_codes_are_the_scans_and_nothing_broken_is_written_again(tmp_path, name) -> None:
    saved = HEADERS[name][0]
    image = read_image([save(tmp_path / "scan.nii.gz", **saved)])
    write_volume(tmp_path / "a.nii.gz", VALUES, image.affine, image.forms)
    header = nib.load(tmp_path / "a.nii.gz").header
    codes = int(header["sform_code"]), int(header["qform_code"])
    had = saved.get("sform_code", 0), saved.get("qform_code", 0)
    sound = {
        "sform of zeros": (1, 1), "sform of NaN": (1, 1), "quaternion of NaN": (2, 2),
        "quaternion too long": (2, 2), "quaternion of NaN, sheared sform": (2, 0),
        "voxels of no size, sound sform": (2, 2),
    }  # fmt: skip
    assert codes == sound.get(name, had)
    assert header.get_xyzt_units()[0] == "mm"
    for affine in (header.get_sform(), header.get_qform()):
        assert np.isfinite(affine).all()
    if codes[0]:
        assert abs(np.linalg.det(header.get_sform())) > 1


def test_transforms_in_microns_are_written_in_millimetres(tmp_path) -> None:
    scan = save(tmp_path / "scan.nii", TURNED, 4, placed(), 1, units=3)
    image = read_image([scan])
    write_volume(tmp_path / "a.nii", VALUES, image.affine, image.forms)
    header = nib.load(tmp_path / "a.nii").header
    thousandth = np.diag([1e-3, 1e-3, 1e-3, 1])
    np.testing.assert_allclose(header.get_sform(), thousandth @ TURNED, atol=1e-6)
    np.testing.assert_allclose(header.get_qform(), thousandth @ placed(), atol=1e-6)
    np.testing.assert_allclose(itk_affine(tmp_path / "a.nii"), itk_affine(scan), atol=1e-6)


@pytest.mark.parametrize(
    "saved",
    [
        says(sform=np.zeros((4, 4)), sform_code=1),
        says(sform=np.zeros((4, 4)), sform_code=1, qform=placed(), qform_code=1, quatern_b=NAN),
        says(qform=placed(), qform_code=1, quatern_b=NAN),
        says(qform=placed(), qform_code=1, pixdim=[1, 1, 0, 1, 0, 0, 0, 0]),
        says(qform=placed(), qform_code=1, qoffset_x=NAN),
        says(pixdim=[1, 1, 0, 1, 0, 0, 0, 0]),
        says(pixdim=[1, 1, NAN, 1, 0, 0, 0, 0]),
    ],
)
def test_a_header_of_which_nothing_is_sound_is_refused(tmp_path, saved) -> None:
    with pytest.raises(InputError, match="no usable geometry"):
        read_image([save(tmp_path / "a.nii", **saved)])


def test_channels_in_several_files_keep_the_transforms_of_the_first(tmp_path) -> None:
    first = save(tmp_path / "a_0000.nii", TURNED, 4, placed(), 1)
    second = save(tmp_path / "a_0001.nii", TURNED, 2)
    image = read_image([first, second])
    assert image.forms is not None
    assert (image.forms.sform_code, image.forms.qform_code) == (4, 1)
    np.testing.assert_allclose(image.forms.qform, placed(), atol=1e-5)


# ------------------------------------------------------------------------------------------- shear


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_a_shear_that_nifti_cannot_hold_is_not_written(tmp_path, ending) -> None:
    path = tmp_path / f"a.{ending}"
    with pytest.raises(CannotHold, match=r"11\.3 degrees off a right angle.*--format nrrd or mha"):
        write_volume(path, VALUES, sheared(0.2, placed(spacing=(1, 1, 1))))
    assert not path.exists()
    write_volume(path, VALUES, sheared(1e-4))  # of rounding
    np.testing.assert_allclose(itk_affine(path), sheared(1e-4), atol=1e-3)


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_a_shear_in_other_formats_is_right_for_simpleitk(tmp_path, ending) -> None:
    affine = sheared(0.3, placed((10, 20, 30)))
    write_volume(tmp_path / f"a.{ending}", VALUES, affine)
    itk = SimpleITK.ReadImage(str(tmp_path / f"a.{ending}"))
    for corner in np.ndindex(2, 2, 2):
        index = [int(i * (n - 1)) for i, n in zip(corner, SHAPE, strict=True)]
        world = (LPS @ affine @ [*index, 1])[:3]
        np.testing.assert_allclose(itk.TransformIndexToPhysicalPoint(index), world, atol=1e-4)
    assert read_image([tmp_path / f"a.{ending}"]).affine == pytest.approx(affine, abs=1e-5)


def test_a_sheared_nifti_is_written_as_it_was(tmp_path) -> None:
    image = read_image([save(tmp_path / "scan.nii", sheared(0.2), 2)])
    write_volume(tmp_path / "a.nii", VALUES, image.affine, image.forms)
    written = nib.load(tmp_path / "a.nii")
    np.testing.assert_allclose(written.affine, sheared(0.2), atol=1e-5)
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (2, 0)


def test_without_transforms_of_a_scan_both_are_the_affine(tmp_path) -> None:
    write_volume(tmp_path / "a.nii", VALUES, TURNED)
    image = read_image([tmp_path / "a.nii"])
    assert isinstance(image.forms, Forms)
    assert (image.forms.sform_code, image.forms.qform_code) == (1, 1)
    for form in (image.forms.sform, image.forms.qform):
        np.testing.assert_allclose(form, TURNED, atol=1e-5)


# -------------------------------------------------------------------------- content before the name


def test_packed_or_not_is_told_by_the_content(tmp_path) -> None:
    plain = save(tmp_path / "plain.nii", placed(), 1)
    packed = save(tmp_path / "packed.nii.gz", placed(), 1)
    for source, name in ((plain, "a.nii.gz"), (packed, "b.nii"), (packed, "C.NII")):
        path = tmp_path / name
        path.write_bytes(source.read_bytes())
        np.testing.assert_array_equal(read_image([path]).array[0], VALUES)


@pytest.mark.parametrize("held", ["nii", "nrrd", "mha", "h5"])
@pytest.mark.parametrize("named", ["nii.gz", "nii", "nrrd", "mha", "h5"])
def test_a_format_is_told_by_the_content(tmp_path, held, named) -> None:
    write_volume(tmp_path / f"held.{held}", VALUES.astype(np.float32), placed())
    path = (tmp_path / f"held.{held}").rename(tmp_path / f"named.{named}")
    image = read_image([path])
    np.testing.assert_array_equal(image.array[0], VALUES)
    np.testing.assert_allclose(image.affine, placed(), atol=1e-5)


def test_nifti_2_and_either_byte_order_are_read(tmp_path) -> None:
    for name, kind in (("two.nii", nib.Nifti2Image), ("one.nii.gz", nib.Nifti1Image)):
        nib.save(kind(VALUES, placed()), tmp_path / name)
        np.testing.assert_array_equal(read_image([tmp_path / name]).array[0], VALUES)
    swapped = nib.Nifti1Image(VALUES, placed(), nib.Nifti1Header(endianness=">"))
    nib.save(swapped, tmp_path / "swapped.nii")
    image = read_image([tmp_path / "swapped.nii"])
    np.testing.assert_array_equal(image.array[0], VALUES)
    np.testing.assert_allclose(image.affine, placed())


def npy() -> bytes:
    return b"\x93NUMPY\x01\x00" + bytes(400)


def analyze() -> bytes:
    header = nib.AnalyzeHeader()
    header.set_data_shape(SHAPE)
    return header.binaryblock + bytes(1000)


def pair() -> bytes:
    header = nib.nifti1.Nifti1PairHeader()
    header.set_data_shape(SHAPE)
    return header.binaryblock + bytes(4)


OTHERS = {
    "an empty file": (b"", "is empty; copy or export it again"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid ", "git lfs pull"),
    "a pointer of git-annex": (b"/annex/objects/MD5E-s1--ab\n", "git annex get"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "is no NIfTI file but a PNG picture"),
    "an archive": (b"PK\x03\x04" + bytes(100), "a ZIP archive; unpack it"),
    "a web page": (b"<!DOCTYPE html><html>", "a web page"),
    "a NumPy array": (npy(), "a NumPy array"),
    "a slice": (bytes(128) + b"DICM" + bytes(100), "a single DICOM file"),
    "Analyze": (analyze(), "in the Analyze format"),
    "the header of a pair": (pair(), "the header of a pair"),
    "bzip2": (b"BZh91AY", "packed with bzip2"),
    "gzip of text": (gzip.compress(b"hello " * 100), "damaged or not NIfTI"),
    "gzip of NRRD": (gzip.compress(b"NRRD0004\n"), "a NRRD file packed with gzip; unpack it"),
    "gzip cut short": (b"\x1f\x8b\x08", "damaged or not NIfTI"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_volume_is_called_by_its_name(tmp_path, name) -> None:
    content, message = OTHERS[name]
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_image([path])
    assert str(path) in str(error.value)


def test_a_link_to_a_file_that_was_not_fetched_says_so(tmp_path) -> None:
    (tmp_path / "a.nii.gz").symlink_to(".git/annex/objects/xx/key")
    with pytest.raises(InputError, match="is a link whose target is not there; fetch its content"):
        read_image([tmp_path / "a.nii.gz"])


# ---------------------------------------------------------------------------------------- channels


def test_channels_as_itk_writes_them(tmp_path) -> None:
    """X, Y, Z, 1, C: ITK's axis of time lies between space and channels."""
    first = SimpleITK.GetImageFromArray(VALUES.T.astype(np.float32))
    path = tmp_path / "a.nii.gz"
    SimpleITK.WriteImage(SimpleITK.Compose(first, first * 2 + 1, first - 3), str(path))
    assert nib.load(path).shape == (*SHAPE, 1, 3)
    image = read_image([path])
    np.testing.assert_array_equal(image.array, np.stack([VALUES, VALUES * 2 + 1, VALUES - 3]))
    np.testing.assert_allclose(image.affine, itk_affine(path))


@pytest.mark.parametrize("ones", [(1,), (1, 1), (1, 1, 1, 1)])
def test_axes_of_one_after_the_third_do_not_matter(tmp_path, ones) -> None:
    path = save(tmp_path / "a.nii", placed(), 1, array=VALUES.reshape(*SHAPE, *ones, order="F"))
    np.testing.assert_array_equal(read_label(path).array, VALUES)
    np.testing.assert_array_equal(read_image([path]).array[0], VALUES)


def test_channels_over_time_are_refused(tmp_path) -> None:
    path = save(tmp_path / "a.nii", placed(), 1, array=np.zeros((2, 3, 4, 5, 2), np.int16))
    with pytest.raises(InputError, match="is 5D with shape"):
        read_image([path])


def test_slopes_of_nothing_leave_the_values_alone(tmp_path) -> None:
    for slope, intercept in ((0, 5), (NAN, 0), (0, 0), (NAN, NAN)):
        path = save(tmp_path / "a.nii", placed(), 1, scl_slope=slope, scl_inter=intercept)
        np.testing.assert_array_equal(read_image([path]).array[0], VALUES)
    path = save(tmp_path / "a.nii", placed(), 1, scl_slope=2, scl_inter=-100)
    np.testing.assert_array_equal(read_image([path]).array[0], VALUES * 2 - 100)


@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "i8", "u8", "f4", "f8", ">i2", ">f4"])
def test_numbers_of_every_type_and_byte_order(tmp_path, kind) -> None:
    nib.save(nib.Nifti1Image(VALUES.astype(kind), placed(), dtype=kind), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_image([tmp_path / "a.nii.gz"]).array[0], VALUES)
    np.testing.assert_array_equal(read_label(tmp_path / "a.nii.gz").array, VALUES)
