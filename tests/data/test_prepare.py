import os
import shutil

import numpy as np
import pytest
import SimpleITK

from dcamt.config import Normalization, Plan
from dcamt.data import prepare as module
from dcamt.data.dataset import Case
from dcamt.data.prepare import cache_folder, prepare
from dcamt.data.space import label_to_network, to_network
from dcamt.data.volume import read_image, read_label, write_volume
from dcamt.errors import InputError
from dcamt.types import IGNORE

AFFINE = np.array([[-1.5, 0, 0, 3], [0, 0.8, -1.2, -8], [0, 0.6, 1.6, 4], [0, 0, 0, 1]])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each of these tests."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DCAMT_CACHE", str(folder))
    return folder


@pytest.fixture
def case(tmp_path):
    rng = np.random.default_rng(0)
    image, label = tmp_path / "a_0000.nii.gz", tmp_path / "a.nii.gz"
    write_volume(image, rng.normal(100, 20, (10, 9, 8)).astype(np.float32), AFFINE)
    write_volume(label, rng.integers(0, 3, (10, 9, 8)), AFFINE)
    return Case("a", (image,), label)


@pytest.fixture
def reads(monkeypatch):
    """Files opened by preparation, in order."""
    opened = []

    def watch(read):
        def watched(what):
            opened.append(what)
            return read(what)

        return watched

    monkeypatch.setattr(module, "read_image", watch(module.read_image))
    monkeypatch.setattr(module, "read_label", watch(module.read_label))
    return opened


def plan_of(**changes):
    plan = Plan(
        channels=("MR",),
        classes=("background", "one", "two"),
        ignore=None,
        orientation="RAS",
        spacing=(1.2, 1.2, 1.2),
        crop=True,
        normalization=(Normalization(),),
        patch=(16, 16, 16),
    )
    return plan.model_copy(update=changes)


def test_what_is_prepared_is_what_the_network_should_see(case):
    ready = prepare([case], plan_of())[0]
    image, placement = to_network(read_image(case.images), plan_of())
    np.testing.assert_array_equal(ready.image, image)
    assert ready.image.dtype == np.float32
    label = label_to_network(read_label(case.label), placement, plan_of())
    np.testing.assert_array_equal(ready.label, label)
    assert ready.label.dtype == np.int8
    assert ready.name == "a"


def test_arrays_are_mapped_and_cannot_be_changed(case):
    ready = prepare([case], plan_of())[0]
    assert isinstance(ready.image, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        ready.image[0, 0, 0, 0] = 1


def test_the_second_time_nothing_is_read(case, reads):
    prepare([case], plan_of())
    assert reads == [case.images, case.label]
    reads.clear()
    again = prepare([case], plan_of())[0]
    assert reads == []
    assert again.image.shape[0] == 1


def test_the_patch_size_needs_no_second_preparation(case, reads):
    prepare([case], plan_of())
    reads.clear()
    prepare([case], plan_of(patch=(32, 32, 32)))
    assert reads == []


@pytest.mark.parametrize(
    "changes",
    [
        {"spacing": (2.0, 2.0, 2.0)},
        {"orientation": "LPS"},
        {"crop": False},
        {"classes": ("background", "one", "two", "three")},
        {"normalization": (Normalization(scheme="window", low=0, high=9, mean=1, std=2),)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_changed_plan_never_meets_an_old_entry(case, changes):
    old = prepare([case], plan_of())[0]
    before = old.image.copy()
    new = prepare([case], plan_of(**changes))[0]
    assert new.image_path != old.image_path
    assert new.label_path != old.label_path
    np.testing.assert_array_equal(old.image, before)
    expected, _ = to_network(read_image(case.images), plan_of(**changes))
    np.testing.assert_array_equal(new.image, expected)


def test_a_changed_slice_or_data_file_is_prepared_anew(tmp_path, write_series):
    values = np.random.default_rng(0).integers(0, 99, (10, 9, 8)).astype(np.int16)
    series = write_series(tmp_path / "scan", values, np.diag([-1.0, -1.0, 1.0, 1.0]))
    parts = [(series, series / "1-003.dcm")]
    for header, data in (("b.mhd", "b.raw"), ("c.mhd", "volume 0.raw"), ("d.nhdr", "volume.raw")):
        path = tmp_path / header
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(path))
        written = path.with_suffix(".raw")
        text = path.read_text().replace(written.name, data)
        written.rename(tmp_path / data)
        path.write_text(text)
        parts.append((path, tmp_path / data))
    for path, part in parts:
        case = Case("a", (path,), None)
        before = prepare([case], plan_of())[0].image.copy()
        stat = part.stat()
        content = bytearray(part.read_bytes())
        content[-2] ^= 7
        part.write_bytes(content)
        os.utime(part, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        assert not np.array_equal(prepare([case], plan_of())[0].image, before)


def test_a_changed_image_is_prepared_anew(tmp_path):
    """Even where it has the same size and is only a nanosecond younger."""
    path = tmp_path / "a.nii"
    case = Case("a", (path,), None)
    arrays = []
    for i in range(2):
        values = np.random.default_rng(i).normal(0, 1, (10, 9, 8)).astype(np.float32)
        write_volume(path, values, AFFINE)
        os.utime(path, ns=(0, 1_000_000_000 + i))
        arrays.append(prepare([case], plan_of())[0].image.copy())
    assert not np.array_equal(*arrays)


def test_a_changed_image_with_its_old_date_is_prepared_anew(tmp_path):
    """As a copy that keeps dates leaves it."""
    path = tmp_path / "a.nii"
    arrays = []
    for i in range(2):
        values = np.random.default_rng(i).normal(0, 1, (10, 9, 8)).astype(np.float32)
        write_volume(path, values, AFFINE)
        os.utime(path, ns=(0, 1_000_000_000))
        arrays.append(prepare([Case("a", (path,), None)], plan_of())[0].image.copy())
    assert not np.array_equal(*arrays)


def test_a_changed_label_is_prepared_anew_and_its_image_stays(case):
    old = prepare([case], plan_of())[0]
    write_volume(case.label, np.ones((10, 9, 8), np.int16), AFFINE)
    new = prepare([case], plan_of())[0]
    assert new.image_path == old.image_path
    assert set(np.unique(new.label)) == {1}


@pytest.mark.parametrize("which", ["image_path", "label_path"])
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "gone"])
def test_a_damaged_entry_is_built_again(case, which, damage):
    ready = prepare([case], plan_of())[0]
    image, label = ready.image.copy(), ready.label.copy()
    path = getattr(ready, which)
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes({"cut": content[:-7], "empty": b"", "garbage": b"x" * 999}[damage])
    again = prepare([case], plan_of())[0]
    np.testing.assert_array_equal(again.image, image)
    np.testing.assert_array_equal(again.label, label)


@pytest.mark.parametrize("which", ["image_path", "label_path"])
def test_a_flipped_bit_is_noticed(case, which):
    ready = prepare([case], plan_of())[0]
    image, label = ready.image.copy(), ready.label.copy()
    path = getattr(ready, which)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.unlink()
    path.write_bytes(content)
    again = prepare([case], plan_of())[0]
    np.testing.assert_array_equal(again.image, image)
    np.testing.assert_array_equal(again.label, label)


def test_an_entry_is_never_unpickled(case):
    ready = prepare([case], plan_of())[0]
    expected = ready.image.copy()
    ready.image_path.unlink()
    with ready.image_path.open("wb") as file:
        np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.testing.assert_array_equal(prepare([case], plan_of())[0].image, expected)


def test_a_case_without_label_shares_the_image_and_has_no_label_entry(case, cache, reads):
    labelled = prepare([case], plan_of())[0]
    reads.clear()
    hidden = prepare([Case("a", case.images, None)], plan_of())[0]
    assert hidden.image_path == labelled.image_path
    assert hidden.label_path is None
    assert reads == []


def test_hidden_labels_are_not_opened(case, reads):
    case.label.write_bytes(b"not a volume")
    prepare([Case("a", case.images, None)], plan_of())
    assert reads == [case.images]


def test_nothing_temporary_is_left_in_the_cache(case, cache):
    prepare([case], plan_of())
    assert sorted(p.name.split(".", 1)[1] for p in cache.iterdir()) == ["image.npy", "label.npy"]


def test_a_label_on_another_grid_is_refused(case, cache):
    shifted = AFFINE.copy()
    shifted[0, 3] += 5
    write_volume(case.label, np.ones((10, 9, 8), np.int16), shifted)
    with pytest.raises(InputError, match=r"a\.nii\.gz.*mm"):
        prepare([case], plan_of())
    write_volume(case.label, np.ones((10, 9, 7), np.int16), AFFINE)
    with pytest.raises(InputError, match="10 x 9 x 7"):
        prepare([case], plan_of())
    assert not list(cache.glob("*.label.npy"))


def test_a_value_outside_the_classes_is_refused(case):
    label = np.zeros((10, 9, 8), np.int16)
    label[0, 0, 0] = 3
    write_volume(case.label, label, AFFINE)
    with pytest.raises(InputError, match=r"a\.nii\.gz.*holds 3"):
        prepare([case], plan_of())
    ready = prepare([case], plan_of(ignore=3, spacing=(1.5, 1.0, 2.0)))[0]
    assert set(np.unique(ready.label)) <= {0, IGNORE}


def test_an_image_with_other_channels_is_refused(case):
    image = np.ones((10, 9, 8), np.float32)
    second = case.images[0].with_name("a_0001.nii.gz")
    write_volume(second, image, AFFINE)
    with pytest.raises(InputError, match="channel"):
        prepare([Case("a", (case.images[0], second), None)], plan_of())


def test_a_missing_file_is_named(case):
    case.images[0].unlink()
    with pytest.raises(InputError, match=r"a_0000\.nii\.gz"):
        prepare([case], plan_of())


def test_order_and_names_of_many_cases_are_kept(tmp_path):
    cases = []
    for i in range(7):
        path = tmp_path / f"c{i}.nii.gz"
        write_volume(path, np.full((4, 4, 4), i) + np.arange(64).reshape(4, 4, 4), AFFINE)
        cases.append(Case(f"c{i}", (path,), None))
    ready = prepare(cases, plan_of(normalization=(_raw(),), crop=False, spacing=_native()))
    assert [r.name for r in ready] == [c.name for c in cases]
    assert [float(r.image.min()) for r in ready] == list(range(7))


def test_a_copied_data_set_does_not_share_entries(case, tmp_path):
    """Entries go by the resolved path: two data sets with equal names stay apart."""
    other = tmp_path / "elsewhere"
    other.mkdir()
    shutil.copy2(case.images[0], other)
    copy = Case("a", (other / case.images[0].name,), None)
    first, second = prepare([case, copy], plan_of())
    assert first.image_path != second.image_path


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("DCAMT_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("DCAMT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "dcamt"


def _raw():
    return Normalization(scheme="window", low=-1e6, high=1e6, mean=0, std=1)


def _native():
    return tuple(float(s) for s in np.linalg.norm(AFFINE[:3, :3], axis=0))
