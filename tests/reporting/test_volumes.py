"""Cases as the viewer takes them."""

import json

import nibabel as nib
import numpy as np
import pytest

from dcamt.reporting.volumes import Layers, pack

SHAPE = (40, 36, 30)


def unpack(data: bytes) -> dict[str, nib.Nifti1Image]:
    line, _, rest = data.partition(b"\n")
    found = {}
    for name, length in json.loads(line).items():
        found[name] = nib.Nifti1Image.from_bytes(rest[:length])
        rest = rest[length:]
    return found


def layers(spacing: tuple[float, ...] = (1, 1, 1), affine: np.ndarray | None = None) -> Layers:
    affine = np.diag([*spacing, 1.0]) if affine is None else affine
    scan = np.random.default_rng(0).normal(500, 100, SHAPE).astype(np.float32)
    label = np.zeros(SHAPE, np.int16)
    label[18:24, 15:22, 12:19] = 2
    return Layers(scan, affine, label, [np.roll(label, 2, 0)], [None])


def world(image: nib.Nifti1Image, value: float) -> np.ndarray:
    """The places in mm of the voxels of a label, sorted."""
    places = nib.affines.apply_affine(image.affine, np.argwhere(image.get_fdata() == value))
    return places[np.lexsort(places.T)]


@pytest.mark.parametrize("whole", [False, True])
def test_voxels_stay_where_they_are(whole):
    affine = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(("P", "I", "R")), SHAPE)
    affine = np.diag([0.7, 0.8, 2.0, 1.0]) @ affine
    affine[:3, 3] += [10, -20, 30]
    case = layers(affine=affine)
    files = unpack(pack(case, whole))
    assert nib.aff2axcodes(files["scan"].affine) == ("R", "A", "S")
    for name, array in (("reference", case.reference), ("prediction-0", case.predictions[0])):
        expected = world(nib.Nifti1Image(array, affine), 2)
        assert np.allclose(world(files[name], 2), expected, atol=1e-3)
    assert (np.prod(files["scan"].shape) < np.prod(SHAPE)) == (not whole)


def test_the_scan_keeps_its_intensities_within_its_window():
    case = layers()
    scan = unpack(pack(case, whole=True))["scan"].get_fdata()
    low, high = np.percentile(case.scan, [0.5, 99.5])
    assert np.abs(scan - case.scan.clip(low, high)).max() <= (high - low) / 255


def test_a_large_case_is_thinned_where_it_is_finest_and_says_so():
    case = layers((1, 1, 4))
    files = unpack(pack(case, whole=True, limit=np.prod(SHAPE) // 4))
    assert files["scan"].shape == (20, 18, 30)
    assert files["scan"].header["descrip"].item() == b"step 2 2 1"
    assert np.array_equal(files["reference"].get_fdata(), case.reference[::2, ::2])
    assert np.allclose(files["scan"].header.get_zooms(), [2, 2, 4])


def test_a_case_without_structures_is_shown_whole():
    case = layers()
    empty = Layers(case.scan, case.affine, np.zeros(SHAPE, np.int16), [], [])
    assert unpack(pack(empty))["scan"].shape == SHAPE
