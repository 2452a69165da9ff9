"""Every backbone through the whole chain: train, resume, predict, export, card, cost."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import dcamt
from dcamt.config import NetworkConfig, Normalization, Plan
from dcamt.errors import InputError
from dcamt.inference.graph import WholeMethod, example_windows
from dcamt.inference.predictor import make_predictor
from dcamt.networks import BACKBONES
from dcamt.networks.swin_unetr import SwinUNETR
from dcamt.records.run_folder import RunConfig
from dcamt.runs.build import build_method, load_run
from dcamt.runs.complexity import method_cost
from dcamt.runs.export_onnx import onnx_files
from smallest import smallest

CPU = torch.device("cpu")


def settings(name: str, iterations: int) -> list[str]:
    width, patch = smallest(name)
    return [
        "device=cpu", f"network.name={name}", f"network.width={width}", f"data.patch={[*patch]}",
        f"train.iterations={iterations}", "train.labeled_batch=1", "train.unlabeled_batch=1",
        "train.checkpoint_every=1", "train.validate_every=0", "method.decay=0.9",
    ]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def small_windows():
    """Five times faster than windows of 7."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SwinUNETR, "window", 2)
        yield


@pytest.fixture(scope="module", params=BACKBONES)
def run(request, phantoms: Path, tmp_path_factory, cache, small_windows) -> Path:
    """Two iterations of Mean Teacher on each backbone; read only."""
    out = tmp_path_factory.mktemp("runs") / request.param
    dcamt.train(
        phantoms, out, method="mean-teacher", splits=phantoms / "splits.json",
        set=settings(request.param, 2), quiet=True,
    )  # fmt: skip
    return out


def test_the_run_says_what_it_trained(run) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    width, patch = smallest(run.name)
    network = {"name": run.name, "width": width, "size": "S" if run.name == "mednext" else None}
    assert config["network"] == {**network, "dropout": 0.0}
    assert config["plan"]["patch"] == [*patch]
    assert f"{run.name}{', size S' if network['size'] else ''}, width {width}" in dcamt.card(run)


def test_it_resumes_to_the_same_weights(run, phantoms, tmp_path, monkeypatch) -> None:
    from dcamt.engine import train as engine  # noqa: PLC0415

    class PowerCut(Exception):
        pass

    def cut(*arguments: object) -> None:
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(engine, "is_stopped", lambda received, fabric, done: cut() if done > 1 else 0)
        with pytest.raises(PowerCut):
            dcamt.train(
                phantoms, tmp_path / "run", method="mean-teacher",
                splits=phantoms / "splits.json", set=settings(run.name, 2), quiet=True,
            )  # fmt: skip
    # As a comparison asks again: what it left to the backbone is null there.
    network = {"name": run.name, "width": smallest(run.name)[0], "size": None}
    asked = tmp_path / "asked.yaml"
    asked.write_text(yaml.safe_dump({"network": network}))
    dcamt.train(phantoms, tmp_path / "run", config=asked, resume=True, quiet=True)
    expected = load_file(run / "last.safetensors")
    found = load_file(tmp_path / "run" / "last.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_what_is_handed_on_segments_the_same(run, phantoms, tmp_path) -> None:
    scan = phantoms / "imagesTr" / "phantom_001.nii.gz"
    dcamt.export(run, tmp_path / "handed")
    maps = []
    for source in (run, tmp_path / "handed"):
        out = tmp_path / f"from-{source.name}"
        dcamt.predict(source, scan, out, probabilities=True, device="cpu", quiet=True)
        path = out / "probabilities" / "phantom_001_atrium.nii.gz"
        maps.append(nib.load(path).get_fdata())
    assert maps[0].shape == nib.load(scan).shape
    np.testing.assert_allclose(*maps, atol=0.02)  # weights in half precision


def test_made_fast_it_predicts_the_same(run) -> None:
    config, method = load_run(run)
    window = torch.randn(2, 1, *config.plan.patch)
    window = window.contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        expected = method.eval().branches(window)
        predictor = make_predictor(method, config.plan, CPU)
        found = predictor.branches(window)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    maps = 2 if run.name == "light-vnet" else 3  # of full resolution and width; it has coarse ones
    assert predictor.live > maps * smallest(run.name)[0]


@pytest.mark.slow
def test_openvino_gives_the_same_probabilities(run) -> None:
    config, method = load_run(run)
    try:
        predictor = make_predictor(method, config.plan, CPU, "openvino")
    except InputError:
        pytest.skip("OpenVINO is not installed: pip install 'dcamt[openvino]'")
    window = torch.randn(2, 1, *config.plan.patch)
    with torch.no_grad():
        expected = method.eval().branches(window)
    torch.testing.assert_close(predictor.branches(window), expected, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of TorchScript, which is no longer developed
def test_torchscript_gives_the_same_probabilities(run, tmp_path) -> None:
    (model,) = dcamt.export(run, tmp_path / "bundle", format="bundle")
    config, method = load_run(run)
    windows = torch.randn(3, 1, *config.plan.patch)
    with torch.no_grad():
        expected = method.eval().predict(windows)
        found = torch.jit.load(model)(windows)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "unet")) for n in BACKBONES]
)
def test_onnx_runtime_gives_the_same_probabilities(name, small_windows) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'dcamt[onnx]'")
    width, patch = smallest(name)
    plan = Plan(
        channels=("a", "b"), classes=("0", "1", "2"), ignore=None, orientation="RAS",
        spacing=(1, 1, 1), crop=True, normalization=(Normalization(),) * 2, patch=patch,
    )  # fmt: skip
    config = RunConfig(plan=plan, network=NetworkConfig(name=name, width=width))
    method = build_method(config)
    windows, _ = example_windows(config)
    with torch.no_grad():
        expected = WholeMethod(method)(windows.repeat(2, 1, 1, 1, 1))
    network = onnxruntime.InferenceSession(onnx_files(config, method, "card")["model.onnx"])
    (found,) = network.run(None, {"image": windows.repeat(2, 1, 1, 1, 1).numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_it_can_be_counted(name, cli) -> None:
    width, patch = smallest(name)
    code, out, _ = cli(
        "cost", "--method", "mean-teacher", "--set", f"network.name={name}", "--width", width,
        "--patch", *patch, "--json",
    )  # fmt: skip
    assert code == 0
    found = json.loads(out)
    assert found == method_cost(
        "mean-teacher", patch, set=[f"network.name={name}", f"network.width={width}"]
    )
    alone = method_cost("vnet", patch, width=width, set=[f"network.name={name}"])
    assert found == {"parameters": 2 * alone["parameters"], "macs": alone["macs"]}
