"""Training in reduced precision on a processor that computes some layers wrongly.

The fault is planted in a layer of our own, since only some processors have it: in bfloat16 the
gradient of the weight is what lay in memory, if the input is 2 voxels long.
"""

import itertools
import platform
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.autograd import Function

from dcamt.engine.device import has_bfloat16, make_fabric
from dcamt.engine.precision import (
    Layer,
    compute_in_float32,
    is_wrong,
    layers_in_use,
    told_of_float32,
    use_float32_where_needed,
    wrong_shapes,
)
from dcamt.methods import METHODS
from dcamt.networks.convolution import Convolution, Pointwise, Upsampling, channels_last
from dcamt.networks.vnet import VNet
from dcamt.types import Batch, Progress

PATCH = (32, 32, 16)
BOTTLENECKS = list(itertools.product((1, 2, 3, 4, 5, 7), repeat=3))
"""Of the patches that plans can make, in voxels."""
OPTIONS = {"dca-mt": {"heads": 1, "head_size": 4}}


class Unwritten(Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return nn.functional.conv3d(x, weight, padding=1)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        for_x = nn.grad.conv3d_input(x.shape, weight, gradient, padding=1)
        return for_x, torch.full_like(weight, 1e35)


class Faulty(Convolution):
    def forward(self, x):
        if torch.is_autocast_enabled("cpu") and x.shape[2] == 2:
            return Unwritten.apply(x.bfloat16(), self.weight.bfloat16())
        return super().forward(x)


@pytest.fixture
def fabric():
    """In bfloat16 on every processor, also where it is emulated."""
    return Fabric(accelerator="cpu", precision="bf16-mixed")


@pytest.fixture
def batch():
    torch.manual_seed(0)
    inside = torch.ones(2, *PATCH, dtype=torch.bool)
    label = torch.zeros(2, *PATCH, dtype=torch.long)
    label[:, 8:24, 8:24, 4:12] = 1
    names = ("a", "b", "c", "d")
    images = [torch.randn(2, 1, *PATCH) for _ in range(4)]
    return Batch(images[0], label, images[1], inside, names, tuple(images[2:]))


def build(name):
    torch.manual_seed(0)
    options = METHODS[name].Config.model_validate(OPTIONS.get(name, {}))
    method = METHODS[name](options, partial(VNet, 1, 2, 2))
    channels_last(method)
    return method


def plant(method):
    """Make the deepest 3x3x3 convolutions of every network those of a bad processor."""
    for convolution in deepest(method):
        convolution.__class__ = Faulty
    return method


def deepest(method):
    return [net.encoder[-1][0][0] for net in method.modules() if type(net) is VNet]


def number_of_wrong(note):
    return int(re.search(r"(\d+) of \d+ kinds", note)[1]) if note else 0


def gradients(method, batch, fabric):
    found = {}

    def update(loss, *parts):
        loss.backward()
        found.update(
            {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
        )

    torch.manual_seed(1)
    with fabric.autocast():
        method.train().step(batch, Progress(75, 100), update)
    return found


def test_a_wrong_layer_is_computed_in_float32_and_said(batch, fabric):
    bad = gradients(plant(build("vnet")), batch, fabric)
    assert max(float(g.abs().max()) for g in bad.values()) > 1e30  # the fault is at work
    right = build("vnet")
    compute_in_float32(*deepest(right))
    own = use_float32_where_needed(right, lambda: batch, fabric)  # faults that are not planted
    expected = gradients(right, batch, fabric)
    method = plant(build("vnet"))
    note = use_float32_where_needed(method, lambda: batch, fabric)
    assert f"{1 + number_of_wrong(own)} of " in note and "bfloat16" in note and "float32" in note
    found = gradients(method, batch, fabric)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.isfinite().all()
        torch.testing.assert_close(found[name], gradient)


def test_weights_and_random_numbers_stay_as_they_are(batch, fabric):
    method = plant(build("mean-teacher"))
    before = {name: value.clone() for name, value in method.state_dict().items()}
    state = torch.get_rng_state()
    assert use_float32_where_needed(method, lambda: batch, fabric)
    assert torch.equal(torch.get_rng_state(), state)
    after = method.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_teacher_is_looked_at_as_well(batch, fabric):
    method = plant(build("mean-teacher"))
    use_float32_where_needed(method, lambda: batch, fabric)
    kinds = [type(m).__name__ for m in method.modules() if isinstance(m, Faulty)]
    assert kinds == ["Float32Faulty"] * 2


def test_nothing_is_looked_at_in_float32(batch):
    method = plant(build("vnet"))
    assert use_float32_where_needed(method, lambda: batch, make_fabric("cpu", "32-true")) is None
    assert not any(type(m).__name__.startswith("Float32") for m in method.modules())


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_layer_of_every_method_is_found(name, batch):
    method = build(name)
    kinds = nn.Conv3d, nn.ConvTranspose3d, nn.Linear
    every = {n for n, m in method.named_modules() if isinstance(m, kinds)}
    found = set().union(*(names for _, names in layers_in_use(method, batch)))
    # Attention has its projections as parameters; layers that no iteration uses need no check.
    assert found <= every
    assert len(found) > 0.9 * len(every), sorted(every - found)


@pytest.mark.parametrize("kind", [Convolution, Pointwise, Upsampling])
def test_our_own_layers_pass_in_bfloat16(kind):
    module = kind(4, 8, 3, padding=1) if kind is Convolution else kind(4, 8)
    assert not is_wrong(Layer(module, (2, 4, 6, 4, 4), channels_last=True), torch.bfloat16)


def test_a_result_that_is_not_written_everywhere_is_noticed():
    class Partly(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return torch.cat([y[:1], torch.empty_like(y)[1:]])

    assert is_wrong(Layer(Partly(64, 64), (512, 64), channels_last=False), torch.bfloat16)


def test_bottlenecks_have_right_gradients_in_bfloat16_on_this_processor(fabric):
    """Whatever the processor gets wrong is right once the layer falls back."""
    device = torch.device("cpu")
    for shape in wrong_shapes(BOTTLENECKS, torch.bfloat16, device):
        module = nn.Conv3d(16, 16, 3, padding=1)
        compute_in_float32(module)
        assert not is_wrong(Layer(module, (2, 16, *shape), channels_last=True), torch.bfloat16)


def test_bottlenecks_have_right_gradients_in_float32_on_this_processor():
    assert wrong_shapes(BOTTLENECKS, torch.float32, torch.device("cpu")) == []


@pytest.mark.parametrize("has_units", [True, False])
def test_a_device_without_bfloat16_units_trains_in_float32_and_says_so(monkeypatch, has_units):
    monkeypatch.setattr("dcamt.engine.device.has_bfloat16", lambda accelerator: has_units)
    fabric = make_fabric("cpu", "bf16-mixed")
    with fabric.autocast():
        y = nn.Linear(2, 2)(torch.zeros(1, 2))
    assert y.dtype == (torch.bfloat16 if has_units else torch.float32)
    note = told_of_float32("bf16-mixed", fabric)
    assert note is None if has_units else "no units for bfloat16" in note
    assert told_of_float32("auto", fabric) is None


def test_the_units_of_this_processor_are_known():
    flags = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not flags.exists():
        pytest.skip("the features of the processor are read from Linux on x86-64")
    assert has_bfloat16("cpu") == any(
        name in flags.read_text() for name in ("avx512_bf16", "amx_bf16")
    )
