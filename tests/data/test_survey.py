"""What one look at a data set tells: the same to inspect, to plan and to train."""

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dcamt.config import DataConfig, load_config
from dcamt.data import look as looking
from dcamt.data import prepare as preparation
from dcamt.data import survey as surveying
from dcamt.data.dataset import read_dataset
from dcamt.data.inspect import inspect
from dcamt.data.prepare import prepare
from dcamt.data.space import label_to_network, to_network
from dcamt.data.survey import survey
from dcamt.data.volume import Volume, read_image, read_label, write_volume
from dcamt.errors import InputError
from dcamt.runs.plan import plan_run

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
AFFINE[:3, 3] = 5, 6, 7
SETTINGS = ["device=cpu", "data.patch=[16,16,16]", "network.width=2"]


def scan(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(50, 5, (20, 18, 16)).astype(np.float32)


def block(*values: int) -> np.ndarray:
    label = np.zeros((20, 18, 16), np.int16)
    for i, value in enumerate(values or (1,)):
        label[4:12, 4:12, 3 + 3 * i : 6 + 3 * i] = value
    return label


def write(root: Path, labels: dict[str, np.ndarray | None], image=scan, json_: dict | None = None):
    for seed, (name, label) in enumerate(labels.items()):
        write_volume(root / "images" / f"{name}.nii.gz", image(seed), AFFINE)
        if label is not None:
            write_volume(root / "labels" / f"{name}.nii.gz", label, AFFINE)
    if json_ is not None:
        (root / "dataset.json").write_text(json.dumps(json_))
    return root


def train_refuses(root: Path) -> str | None:
    try:
        plan_run(root, load_config(None, SETTINGS), None, None)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("cases", "described", "good"),
    [
        pytest.param({"a": block(), "b": block(), "u": None, "v": None}, None, True, id="good"),
        pytest.param({"a": block(), "u": None, "v": None}, None, True, id="one labelled"),
        pytest.param({"a": block(), "b": block(), "u": None}, None, True, id="one unlabelled"),
        pytest.param({"a": block(), "b": block()}, None, True, id="none unlabelled"),
        pytest.param({"a": block()}, None, True, id="one case"),
        pytest.param({"u": None, "v": None}, None, False, id="no label"),
        pytest.param({"a": block() * 0, "b": block() * 0}, None, False, id="nothing labelled"),
        pytest.param({"a": block(1, 3), "b": block()}, None, False, id="a gap"),
        pytest.param(
            {"a": block(), "b": block(), "u": None},
            {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1, "b": 2}},
            True,
            id="a class that no label shows",
        ),
        pytest.param(
            {"a": block() * 0, "b": block() * 0},
            {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}},
            False,
            id="declared and nothing labelled",
        ),
        pytest.param(
            {"a": block(1, 2), "b": block()},
            {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}},
            False,
            id="a value that is not declared",
        ),
        pytest.param(
            {"a": block() * 0, "b": block() * 0, "u": None},
            {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}},
            False,
            id="CT without foreground",
        ),
    ],
)
def test_what_inspect_passes_is_what_train_takes(tmp_path, cases, described, good):
    root = write(tmp_path / "set", cases, json_=described)
    errors = inspect(root).errors
    refusal = train_refuses(root)
    assert (not errors) == (refusal is None) == good, (errors, refusal)
    if not good:
        assert refusal.startswith(errors[0][:60])


def test_a_damaged_scan_is_the_same_error_to_both(tmp_path):
    root = write(tmp_path / "set", {"a": block(), "b": block(), "u": None})
    (root / "images" / "u.nii.gz").write_bytes(b"no scan")
    (error,) = inspect(root).errors
    assert train_refuses(root) == error


def test_what_cannot_be_resampled_into_memory_is_an_error_to_both(tmp_path):
    root = write(tmp_path / "set", {c: block() for c in "abcd"})
    huge = np.diag([1e6, 1e6, 1e6, 1.0])
    write_volume(root / "images" / "e.nii.gz", scan(9), huge)
    (error,) = inspect(root).errors
    assert "memory" in error
    told, of_memory = f"{root / 'images' / 'e.nii.gz'}: ", "of memory, but "  # what is free moves
    assert error.startswith(told)
    assert train_refuses(root).split(of_memory)[0] == error.split(of_memory)[0]


def turned_by(degrees: float) -> np.ndarray:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(4)
    turn[:2, :2] = (cosine, -sine), (sine, cosine)
    return turn @ AFFINE


def test_what_is_odd_alike_is_one_warning_with_the_worst_of_its_numbers(tmp_path):
    root = write(tmp_path / "set", {c: block() for c in "abc"} | {"u": None})
    for name, degrees in (("a", 10), ("b", 20), ("u", 5)):
        for path in root.glob(f"*/{name}.nii.gz"):
            image = nib.Nifti1Image(np.asarray(nib.load(path).dataobj), AFFINE)
            image.set_sform(turned_by(degrees), 4)
            image.set_qform(AFFINE, 1)
            nib.save(image, path)
    (warning,) = inspect(root).warnings
    assert warning.startswith("a, b, u (3 of 4 cases, worst in b): sform and qform")
    worst = np.linalg.norm((turned_by(20) - AFFINE) @ [19, 17, 15, 1])
    assert f"by up to {worst:.3g} mm" in warning


def test_a_class_that_cannot_be_learnt_is_a_warning_of_training_too(tmp_path, cli):
    described = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1, "lost": 2}}
    root = write(tmp_path / "set", {c: block() for c in "ab"} | {"u": None}, json_=described)
    (warning,) = inspect(root).warnings
    assert "class 2 (lost)" in warning
    planned = plan_run(root, load_config(None, SETTINGS), None, None)
    assert planned.warnings == (warning,)


# ------------------------------------------------------------------------------- intensities


def masked(seed: int = 0) -> np.ndarray:
    """A head of about 50 with a hole of zeros in it, in a background of exact zeros."""
    image = np.zeros((20, 18, 16), np.float32)
    image[4:16, 3:15, 3:13] = np.random.default_rng(seed).normal(50, 5, (12, 12, 10))
    image[9:11, 9:11, 7:9] = 0
    return image


def test_a_masked_scan_is_normalised_over_what_is_not_zero(tmp_path):
    root = write(tmp_path / "set", {"a": block(), "b": block(), "u": None}, image=masked)
    planned = plan_run(root, load_config(None, SETTINGS), None, None)
    assert planned.config.plan.normalization[0].masked
    assert any("is 0 (masked)" in warning for warning in planned.warnings)
    array, _ = to_network(Volume(masked()[None], AFFINE), planned.config.plan)
    head = np.zeros((20, 18, 16), bool)
    head[4:16, 3:15, 3:13] = True  # the hole belongs to it
    box = array[0]  # cropped to the head
    assert box.shape == (12, 12, 10)
    assert box.mean() == pytest.approx(0, abs=1e-5)
    assert box.std() == pytest.approx(1, abs=1e-5)


def test_outside_the_mask_zero_stays_zero(tmp_path):
    root = write(tmp_path / "set", {"a": block(), "b": block(), "u": None}, image=masked)
    config = load_config(None, [*SETTINGS, "data.crop=false"])
    plan = plan_run(root, config, None, None).config.plan
    array, _ = to_network(Volume(masked()[None], AFFINE), plan)
    outside = np.ones((20, 18, 16), bool)
    outside[4:16, 3:15, 3:13] = False
    assert (array[0][outside] == 0).all()
    inside = array[0][~outside]
    assert (inside.mean(), inside.std()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))


def test_a_scan_without_a_mask_is_normalised_as_a_whole(tmp_path):
    root = write(tmp_path / "set", {"a": block(), "b": block(), "u": None})
    plan = plan_run(root, load_config(None, SETTINGS), None, None).config.plan
    assert not plan.normalization[0].masked


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("noNorm", scan()),
        ("nonorm", scan()),
        ("rescale_to_0_1", (scan() - scan().min()) / (scan().max() - scan().min())),
        ("rgb_to_0_1", scan() / 255),
        ("zscore", (scan() - scan().mean()) / scan().std()),
        ("T2w", (scan() - scan().mean()) / scan().std()),
    ],
)
def test_channel_names_mean_what_nnunet_means_by_them(tmp_path, name, expected):
    described = {"channel_names": {"0": name}, "labels": {"background": 0, "organ": 1}}
    root = write(tmp_path / "set", {"a": block(), "b": block(), "u": None}, json_=described)
    plan = plan_run(root, load_config(None, SETTINGS), None, None).config.plan
    array, _ = to_network(Volume(scan()[None], AFFINE), plan)
    np.testing.assert_allclose(array[0], expected, rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------- crop


def half_empty(seed: int = 0) -> np.ndarray:
    image = scan(seed)
    image[:8] = 0  # where half of the label lies
    return image


def test_a_crop_never_takes_labelled_voxels_away(tmp_path):
    root = write(tmp_path / "set", {"a": block(), "b": block(), "u": None}, image=half_empty)
    planned = plan_run(root, load_config(None, SETTINGS), None, None)
    assert planned.config.plan.crop is False
    (warning,) = (w for w in planned.warnings if "cropped" in w)
    assert "a, b (2 of 3 cases)" in warning
    for case in planned.ready[:2]:
        assert int((case.label == 1).sum()) == int((block() == 1).sum())
    assert inspect(root).warnings == list(planned.warnings)


def test_a_crop_that_is_asked_for_tells_what_it_takes_away(tmp_path):
    root = write(tmp_path / "set", {"a": block(), "b": block(), "u": None}, image=half_empty)
    planned = plan_run(root, load_config(None, [*SETTINGS, "data.crop=true"]), None, None)
    assert planned.config.plan.crop is True
    assert any("50% of the labelled voxels" in warning for warning in planned.warnings)


def test_voxels_that_nobody_annotated_keep_no_scan_from_being_cropped(tmp_path):
    label = np.where(block() > 0, block(), 255).astype(np.int16)
    label[10:12] = 1  # within what is not zero
    label[:8] = 255
    described = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "organ": 1, "ignore": 255},
    }
    cases = {"a": label, "b": label, "u": None}
    root = write(tmp_path / "set", cases, image=half_empty, json_=described)
    planned = plan_run(root, load_config(None, SETTINGS), None, None)
    assert planned.config.plan.crop is True
    assert not any("cropped" in warning for warning in planned.warnings)


def test_scans_are_cropped_where_no_label_is_lost(tmp_path):
    root = write(tmp_path / "set", {"a": block(), "b": block(), "u": None}, image=masked)
    assert plan_run(root, load_config(None, SETTINGS), None, None).config.plan.crop is True


# --------------------------------------------------------------------------------- one reading


def test_each_file_is_decoded_once(tmp_path, monkeypatch):
    root = write(tmp_path / "set", {c: block() for c in "abcde"} | {"u": None, "v": None})
    read: list[str] = []
    for module in (looking, preparation):
        for name in ("read_image", "read_label"):
            real = getattr(module, name)

            def note(path, *rest, real=real):
                read.append(str(path[0] if isinstance(path, tuple) else path))
                return real(path, *rest)

            monkeypatch.setattr(module, name, note)
    plan_run(root, load_config(None, SETTINGS), None, None)
    assert sorted(read) == sorted(set(read))
    assert len(read) == 7 + 5


def test_what_does_not_fit_into_the_room_is_read_again(tmp_path, monkeypatch):
    root = write(tmp_path / "set", {c: block() for c in "ab"} | {"u": None})
    data = read_dataset(root)
    names = [case.name for case in data.cases]
    one = scan().nbytes + block().nbytes
    monkeypatch.setattr(surveying, "free_memory", lambda: 4.0 * one + 8)
    seen = survey(data, names, DataConfig(patch=(16, 16, 16)), keep=True)
    assert len(seen.kept) == 1
    whole = {p.name: np.array(p.image) for p in prepare(data.cases, seen.plan, seen.kept)}
    assert set(whole) == set(names)
    assert not seen.kept


@pytest.mark.parametrize("changed", ["images", "labels"])
def test_a_file_that_changes_after_the_survey_is_read_again(tmp_path, changed):
    root = write(tmp_path / "set", {"a": block(), "b": block()})
    data = read_dataset(root)
    seen = survey(data, ["a", "b"], DataConfig(patch=(16, 16, 16)), keep=True)
    other = scan(7) if changed == "images" else np.ones_like(block())
    write_volume(root / changed / "a.nii.gz", other, AFFINE)
    made, _ = prepare(data.cases, seen.plan, seen.kept)
    case = data.cases[0]
    expected, placement = to_network(read_image(case.images), seen.plan)
    assert np.array_equal(made.image, expected)
    label = label_to_network(read_label(case.label), placement, seen.plan)
    assert np.array_equal(made.label, label)


def test_where_the_system_does_not_tell_its_memory_room_is_limited(tmp_path, monkeypatch):
    root = write(tmp_path / "set", {c: block() for c in "ab"})
    data = read_dataset(root)
    monkeypatch.setattr(surveying, "free_memory", lambda: math.inf)
    monkeypatch.setattr(surveying, "_UNTOLD", 4.0 * (scan().nbytes + block().nbytes) + 8)
    seen = survey(data, ["a", "b"], DataConfig(patch=(16, 16, 16)), keep=True)
    assert len(seen.kept) == 1
