"""A run in 8 bits for OpenVINO: small, as good, and it needs no dcamt."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from dcamt import api
from dcamt.errors import InputError
from dcamt.runs import export_onnx, export_openvino

needs_nncf = pytest.mark.skipif(  # to import it here would let it report its use
    find_spec("nncf") is None, reason="NNCF is not installed: pip install 'dcamt[int8]'"
)

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "predict_exported.py"


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(export_openvino, "_WINDOWS", 8)
    out = tmp_path_factory.mktemp("openvino") / "out"
    assert api.export(tiny_run, out, format="openvino") == [out / "model.bin"]
    patch.undo()
    return out


@needs_nncf
@pytest.mark.slow
def test_the_example_segments_as_predict_does_but_for_rounding(
    exported, tiny_run, phantoms, tmp_path
):
    scan = phantoms / "imagesTr" / "phantom_000.nii.gz"
    (expected,) = api.predict(tiny_run, scan, tmp_path / "predict", quiet=True)
    out = tmp_path / "example.nii.gz"
    subprocess.run([sys.executable, "-I", EXAMPLE, exported, scan, out], check=True)
    found = np.asarray(nib.load(out).dataobj)
    expected = np.asarray(nib.load(expected).dataobj)
    assert len(np.unique(expected)) > 1
    assert (found == expected).mean() > 0.97


@needs_nncf
@pytest.mark.slow
def test_the_weights_have_8_bits(exported, tiny_run, tmp_path):
    api.export(tiny_run, tmp_path / "half")
    half = (tmp_path / "half" / "last.safetensors").stat().st_size
    assert (exported / "model.bin").stat().st_size < 0.8 * half


@needs_nncf
@pytest.mark.slow
def test_it_says_what_rounding_costs(exported):
    checked = json.loads((exported / "model.json").read_text())["checked"]
    assert checked["on"].endswith("validation cases")
    assert checked["dice"] >= checked["dice_in_float32"] - 0.002


@needs_nncf
@pytest.mark.slow
def test_no_name_and_no_folder_is_in_it(exported, tiny_run, phantoms):
    for file in exported.iterdir():
        content = file.read_bytes()
        for secret in (str(tiny_run), str(phantoms), "phantom_0", str(Path.home())):
            assert secret.encode() not in content, (file.name, secret)


@needs_nncf
@pytest.mark.slow
def test_nothing_is_reported_over_the_network(exported):
    assert sys.modules["openvino_telemetry"] is None


@needs_nncf
@pytest.mark.slow
def test_a_network_that_8_bits_spoil_is_not_written(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(export_openvino, "_WINDOWS", 1)
    monkeypatch.setattr(export_openvino, "_MAY_LOSE", -1.0)
    with pytest.raises(InputError, match=r"8 bits cost too much Dice .* choose --format onnx"):
        api.export(tiny_run, tmp_path / "out", format="openvino")
    assert not (tmp_path / "out").exists()


@needs_nncf
def test_a_run_of_several_sites_has_no_scans_for_it(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "dataset": None}))
    with pytest.raises(InputError, match=r"names no data set.* choose --format onnx"):
        api.export(run, tmp_path / "out", format="openvino")


def test_without_nncf_a_sentence_says_how_to_get_it(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(export_onnx, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed; run `pip install 'dcamt\[int8\]'`"):
        api.export(tiny_run, tmp_path / "out", format="openvino")
