"""The fast networks give what the trained ones give, and leave them alone."""

import sys
from functools import partial
from importlib.util import find_spec

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from dcamt import api
from dcamt.config import Normalization, Plan
from dcamt.errors import InputError
from dcamt.inference.predictor import make_predictor
from dcamt.methods import METHODS
from dcamt.networks.folding import fold_batch_norm
from dcamt.networks.vnet import VNet
from dcamt.runs.build import load_run

# Only looked for: its import is the code's own to do.
needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None,
    reason="OpenVINO is not installed: pip install 'dcamt[openvino]'",
)
CPU = torch.device("cpu")
PLAN = Plan(
    channels=("a", "b"), classes=("background", "organ", "tumour"), ignore=None, orientation="RAS",
    spacing=(1, 1, 1), crop=True, normalization=(Normalization(), Normalization()),
    patch=(32, 16, 16),
)  # fmt: skip


def trained(name="vnet", seed=0, width=3, **options):
    """A method whose batch norms have seen images and have weights of their own."""
    torch.manual_seed(seed)
    kind = METHODS[name]
    method = kind(kind.Config(**options), partial(VNet, 2, 3, width))
    for module in method.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        for _ in range(3):
            method.branches(3 + 2 * torch.randn(2, 2, 32, 16, 16))
    return method.eval()


def convolutions_and_norms(module):
    convolutions = sum(isinstance(m, nn.Conv3d | nn.ConvTranspose3d) for m in module.modules())
    return convolutions, sum(isinstance(m, nn.BatchNorm3d) for m in module.modules())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("windows", [1, 3])
def test_every_method_predicts_the_same_when_made_fast(name, windows):
    method = trained(name)
    image = torch.randn(windows, 2, 32, 16, 16)
    with torch.no_grad():
        expected = method.branches(image)
        found = make_predictor(method, PLAN, CPU).branches(image)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_every_batch_norm_of_a_v_net_is_folded():
    network = VNet(2, 3, 2).eval()
    convolutions, norms = convolutions_and_norms(network)
    assert norms == convolutions - 1 == 29  # 12 + 4 down + 4 up + 9; the head has none
    fold_batch_norm(network)
    assert convolutions_and_norms(network) == (convolutions, 0)


def test_folding_by_hand():
    """1x1x1 kernel of 2, mean 3, variance 4, weight 5, bias 7: 5 (2 x + 1 - 3) / 2 + 7."""
    norm = nn.BatchNorm3d(1, eps=0)
    block = nn.Sequential(nn.Conv3d(1, 1, 1), norm).eval()
    with torch.no_grad():
        block[0].weight.fill_(2), block[0].bias.fill_(1)
        norm.running_mean.fill_(3), norm.running_var.fill_(4)
        norm.weight.fill_(5), norm.bias.fill_(7)
    fold_batch_norm(block)
    (folded,) = block
    assert folded.weight.item() == 5
    assert folded.bias.item() == 2


def test_what_cannot_be_folded_is_left_alone():
    without = nn.BatchNorm3d(2, track_running_stats=False)
    network = nn.Sequential(
        nn.Conv3d(2, 2, 3), nn.GroupNorm(1, 2), nn.BatchNorm3d(2), nn.Conv3d(2, 2, 3), without
    ).eval()
    kinds = [type(m) for m in network]
    image = torch.randn(1, 2, 8, 8, 8)
    expected = network(image)
    fold_batch_norm(network)
    assert [type(m) for m in network] == kinds
    assert torch.equal(network(image), expected)


def test_the_method_stays_trainable_and_as_it_was():
    method = trained()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    convolutions = convolutions_and_norms(method)
    make_predictor(method, PLAN, CPU)
    assert convolutions_and_norms(method) == convolutions
    after = method.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.requires_grad for p in method.parameters())


@needs_openvino
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "dca-mt")) for n in METHODS]
)
@pytest.mark.parametrize("windows", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_openvino_gives_the_same_probabilities(name, windows):
    method = trained(name)
    predictor = make_predictor(method, PLAN, CPU, "openvino")
    for seed in range(2):
        image = torch.randn(windows, 2, 32, 16, 16, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            expected = method.branches(image)
        found = predictor.branches(image.contiguous(memory_format=torch.channels_last_3d))
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@needs_openvino
def test_openvino_segments_scans(tiny_run, phantoms, tmp_path):
    scan = phantoms / "imagesTr" / "phantom_001.nii.gz"
    maps = {}
    for backend in ("torch", "openvino"):
        out = tmp_path / backend
        api.predict(tiny_run, scan, out, probabilities=True, backend=backend, quiet=True)
        path = out / "probabilities" / "phantom_001_atrium.nii.gz"
        maps[backend] = nib.load(path).get_fdata()
    np.testing.assert_allclose(maps["openvino"], maps["torch"], atol=1e-4)


@needs_openvino
def test_openvino_reports_nothing_over_the_network():
    make_predictor(trained(), PLAN, CPU, "openvino")
    assert sys.modules["openvino_telemetry"] is None


def test_without_openvino_a_sentence_says_how_to_get_it(tiny_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)  # makes the import fail
    config, method = load_run(tiny_run)
    with pytest.raises(InputError, match=r"not installed.*pip install 'dcamt\[openvino\]'"):
        make_predictor(method, config.plan, CPU, "openvino")


def test_openvino_on_a_gpu_is_refused():
    with pytest.raises(InputError, match="openvino computes on the CPU; add --device cpu"):
        make_predictor(trained(), PLAN, torch.device("cuda"), "openvino")
