"""A run as ONNX: another program computes what PyTorch computes, and needs no dcamt for it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch

from dcamt import api
from dcamt.errors import InputError
from dcamt.inference import graph
from dcamt.runs import export_onnx
from dcamt.runs.build import load_run

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "predict_exported.py"


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("onnx") / "out"
    assert api.export(tiny_run, out, format="onnx") == [out / "model.onnx"]
    return out


def segmented(export, scan, out):
    """What the example makes of a scan, in a Python that is told nothing of dcamt."""
    subprocess.run([sys.executable, "-I", EXAMPLE, export, scan, out], check=True)
    return nib.load(out)


def test_the_example_segments_as_predict_does(exported, tiny_run, phantoms, tmp_path):
    scan = phantoms / "imagesTr" / "phantom_000.nii.gz"
    (expected,) = api.predict(tiny_run, scan, tmp_path / "predict", quiet=True)
    found = segmented(exported, scan, tmp_path / "example.nii.gz")
    np.testing.assert_array_equal(found.affine, nib.load(expected).affine)
    expected = np.asarray(nib.load(expected).dataobj)
    assert len(np.unique(expected)) > 1
    assert (np.asarray(found.dataobj) == expected).mean() > 0.9999


def test_the_example_follows_every_plan(exported, other_plan, turned_scan, tmp_path):
    description = export_onnx.description(load_run(other_plan)[0], "nothing")
    changed = tmp_path / "export"
    shutil.copytree(exported, changed)
    (changed / "model.json").write_text(json.dumps(description))
    (expected,) = api.predict(other_plan, turned_scan, tmp_path / "predict", quiet=True)
    found = segmented(changed, turned_scan, tmp_path / "example.nii.gz")
    expected = np.asarray(nib.load(expected).dataobj)
    assert len(np.unique(expected)) > 1
    assert (np.asarray(found.dataobj) == expected).mean() > 0.999


def test_any_number_of_windows_may_be_given(exported, tiny_run):
    config, method = load_run(tiny_run)
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    for windows in (1, 3):
        image = torch.randn(windows, 1, *config.plan.patch)
        with torch.no_grad():
            expected = method.eval().predict(image)
        (found,) = session.run(None, {"image": image.numpy()})
        np.testing.assert_allclose(found, expected, atol=1e-4)
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


def test_nothing_of_the_data_or_of_this_machine_is_handed_on(exported, phantoms):
    content = b"".join(path.read_bytes() for path in exported.iterdir())
    assert str(phantoms).encode() not in content and b"phantom_0" not in content
    for folder in (Path(torch.__file__).parents[1], Path(api.__file__).parents[1]):
        assert str(folder).encode() not in content


def test_it_says_on_what_it_was_checked(exported, tiny_run):
    about = json.loads((exported / "model.json").read_text())
    assert about["checked"]["on"] == "two windows of a scan of the run's data set"
    config, _ = load_run(tiny_run)
    drawn, what = graph.example_windows(config.model_copy(update={"dataset": None}))
    assert "random numbers" in what
    real, _ = graph.example_windows(config)
    assert drawn.shape == real.shape == (2, 1, 16, 16, 16)


def test_a_scan_smaller_than_the_patch_gives_windows_too(tiny_run):
    config, _ = load_run(tiny_run)
    plan = config.plan.model_copy(update={"patch": (32, 16, 48)})
    windows, _ = graph.example_windows(config.model_copy(update={"plan": plan}))
    assert windows.shape == (2, 1, 32, 16, 48)


@pytest.mark.parametrize("fault", [2e-4, float("nan")])
def test_a_program_that_computes_something_else_is_refused(tiny_run, fault):
    config, method = load_run(tiny_run)
    whole, windows = graph.WholeMethod(method), torch.randn(2, 1, *config.plan.patch)
    graph.check_agrees("ONNX Runtime", whole, whole, windows)
    with pytest.raises(InputError, match=r"ONNX Runtime and PyTorch differ by .*nothing was"):
        graph.check_agrees("ONNX Runtime", lambda x: whole(x) + fault, whole, windows)


def test_nothing_is_written_without_the_packages(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(export_onnx, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"onnx is not installed; run `pip install 'dcamt\[onnx\]'`"
    ):
        api.export(tiny_run, tmp_path / "out", format="onnx")
    assert not (tmp_path / "out").exists()


def test_weights_too_large_for_one_file_are_refused(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(export_onnx, "_LARGEST", 1000)
    with pytest.raises(InputError, match="one ONNX file holds 2 GB; choose --format bundle"):
        api.export(tiny_run, tmp_path / "out", format="onnx")
    assert not (tmp_path / "out").exists()


def test_a_format_that_there_is_not_is_refused(tiny_run, tmp_path):
    with pytest.raises(InputError, match="format 'tflite' is unknown; choose safetensors, onnx"):
        api.export(tiny_run, tmp_path / "out", format="tflite")
