"""What every backbone promises, and its size against the published one."""

import builtins

import pytest
import torch
from monai.networks import nets

from dcamt.config import NetworkConfig, Normalization, Plan
from dcamt.errors import InputError
from dcamt.networks import BACKBONES, swin_unetr
from dcamt.networks.backbone import Backbone
from dcamt.networks.unet import UNet
from dcamt.runs.build import make_network
from smallest import smallest

FIVE_LEVELS, SIX_LEVELS = (112, 112, 80), (128, 128, 128)
every_backbone = pytest.mark.parametrize("name", BACKBONES)


def plan_of(patch=(16, 16, 16), spacing=(1.0, 1.0, 1.0), channels=2, classes=3) -> Plan:
    return Plan(
        channels=tuple(map(str, range(channels))), classes=tuple(map(str, range(classes))),
        ignore=None, orientation="RAS", spacing=spacing, crop=False,
        normalization=(Normalization(),) * channels, patch=patch,
    )  # fmt: skip


def tiny(name: str, **options) -> tuple[Backbone, tuple[int, int, int]]:
    width, patch = smallest(name)
    return make_network(NetworkConfig(name=name, width=width), plan_of(patch))(**options), patch


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "options", "patch", "parameters"),
    [
        ("vnet", {}, FIVE_LEVELS, 9_448_866),
        ("segresnet", {}, FIVE_LEVELS, 18_796_002),
        ("segresnet", {"width": 16}, FIVE_LEVELS, 4_700_914),
        ("mednext", {}, FIVE_LEVELS, 5_550_914),
        ("mednext", {"size": "B"}, FIVE_LEVELS, 10_510_850),
        ("mednext", {"size": "M"}, FIVE_LEVELS, 17_533_506),
        ("mednext", {"size": "L"}, FIVE_LEVELS, 61_726_754),
        ("swin-unetr", {}, SIX_LEVELS, 62_186_708),
        ("swin-unetr", {"width": 24}, SIX_LEVELS, 15_703_004),
        ("unet", {}, FIVE_LEVELS, 16_546_690),
        ("unet", {}, SIX_LEVELS, 31_194_050),
        ("resenc", {}, FIVE_LEVELS, 62_809_026),
        ("resenc", {}, SIX_LEVELS, 102_348_226),
    ],
)
def test_parameters_are_the_published_ones(name, options, patch, parameters) -> None:
    plan = plan_of(patch, channels=1, classes=2)
    with torch.device("meta"):
        network = make_network(NetworkConfig(name=name, **options), plan)()
    assert count(network) == parameters


@every_backbone
@torch.no_grad()
def test_what_it_shows_is_what_it_says(name) -> None:
    network, patch = tiny(name)
    image = torch.randn(1, 2, *patch)
    features, skips = network.eval().encode(image)
    bottleneck = [side // step for side, step in zip(patch, network.stride, strict=True)]
    assert features.shape == (1, network.features, *bottleneck)
    read = network.upsample(features, skips)
    assert read.shape == (1, network.width, *patch)
    assert network.head(read).shape == (1, 3, *patch)
    torch.testing.assert_close(network(image), network.head(read))
    assert network.stride == type(network).stride_for(patch, (1.0, 1.0, 1.0))


@every_backbone
@torch.no_grad()
def test_dropout_acts_on_the_bottleneck_and_before_the_head(name) -> None:
    network, patch = tiny(name, dropout=0.99)
    assert network.dropout.p == 0.99
    seen = []
    network.dropout.register_forward_hook(lambda _, i, o: seen.append((i[0].shape[1], o.eq(0))))
    network.train()(torch.randn(1, 2, *patch))
    assert [channels for channels, _ in seen] == [network.features, network.width]
    assert all(zero.float().mean() > 0.5 for _, zero in seen)


@every_backbone
def test_each_weight_is_there_once(name) -> None:
    network, _ = tiny(name)
    places = [value.untyped_storage().data_ptr() for value in network.state_dict().values()]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("name", ["mednext", "segresnet", "swin-unetr"])
@torch.no_grad()
def test_the_layers_are_those_of_the_library(name) -> None:
    """With the same weights MONAI's own network gives the same logits."""
    network, patch = tiny(name)
    theirs = {
        "segresnet": lambda: nets.SegResNet(3, 8, 2, 3),
        "mednext": lambda: nets.MedNeXt(3, 2, 2, 3, kernel_size=3, use_residual_connection=True),
        "swin-unetr": lambda: nets.SwinUNETR(2, 3, feature_size=12),
    }[name]().eval()
    state = {key.removeprefix("layers."): v for key, v in network.state_dict().items()}
    head = {
        "segresnet": "conv_final.2.conv", "mednext": "out_0.conv_out", "swin-unetr": "out.conv.conv"
    }[name]  # fmt: skip
    for part in ("weight", "bias"):
        value = state.pop(f"head.{part}")
        swapped = name == "mednext" and part == "weight"  # a transposed convolution
        state[f"{head}.{part}"] = value.transpose(0, 1) if swapped else value
    theirs.load_state_dict(state)
    image = torch.randn(1, 2, *patch)
    torch.testing.assert_close(network.eval()(image), theirs(image), atol=1e-5, rtol=1e-5)


def test_a_u_net_halves_each_axis_as_its_plan_says() -> None:
    plan = plan_of((8, 32, 16), (3.0, 1.0, 1.0))
    network = make_network(NetworkConfig(name="unet", width=1), plan)()
    assert network.stride == (2, 8, 4)
    first, second = network.encoder.stages[0][0], network.encoder.stages[1][0]
    assert first.convs[0].all_modules[0].kernel_size == (1, 3, 3)
    assert second.convs[0].all_modules[0].stride == (1, 2, 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "no-such"}, "'no-such' is unknown; known backbones: light-vnet, mednext"),
        ({"name": "segresnet", "width": 12}, "segresnet: its width is a multiple of 8, not 12"),
        ({"name": "swin-unetr", "width": 16}, "swin-unetr: its width is a multiple of 12, not 16"),
        ({"name": "mednext", "size": "XL"}, "mednext has the sizes S, B, M, L, not XL"),
        ({"name": "vnet", "size": "S"}, "vnet has no named sizes; set its width instead"),
    ],
)
def test_what_there_is_not_is_refused(options, said) -> None:
    with pytest.raises(InputError, match=said):
        make_network(NetworkConfig(**options), plan_of())


def test_a_patch_too_small_for_two_levels_is_refused() -> None:
    with pytest.raises(InputError, match="7 x 4 x 4 voxels are too small for a U-Net"):
        UNet(patch=(7, 4, 4))


@pytest.mark.parametrize("name", ["unet", "resenc"])
def test_without_the_package_a_sentence_names_the_command(name, monkeypatch) -> None:
    real = builtins.__import__

    def absent(module, *arguments, **named):
        if module.startswith("dynamic_network_architectures"):
            raise ImportError
        return real(module, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InputError, match="pip install --no-deps dynamic-network-architectures"):
        tiny(name)


def test_without_einops_a_sentence_names_the_command(monkeypatch) -> None:
    monkeypatch.setattr(swin_unetr, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'dcamt\[swin\]'"):
        tiny("swin-unetr")
