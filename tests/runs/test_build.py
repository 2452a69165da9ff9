"""What patches and batches a method takes with its backbones, told before it trains."""

import shutil

import numpy as np
import pytest
import yaml

from dcamt.config import Normalization, Plan, load_config
from dcamt.data.plan import PATCH_VOXELS, plan_patch, sixteen
from dcamt.errors import InputError
from dcamt.networks.levels import strides_and_kernels
from dcamt.networks.unet import UNet
from dcamt.networks.vnet import VNet
from dcamt.runs.build import check_networks, load_run, network_stride


def planned(patch, *settings):
    plan = Plan(
        channels=("MR",), classes=("background", "one"), ignore=None, orientation="RAS",
        spacing=(1.0, 1.0, 1.0), crop=False, normalization=(Normalization(),), patch=patch,
    )  # fmt: skip
    return load_config(None, ["network.width=24", *settings]).model_copy(update={"plan": plan})


def test_the_usual_stride_is_the_v_nets() -> None:
    assert sixteen((1, 1, 1), (1.0, 1.0, 1.0)) == VNet.stride


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.4, 0.4, 5.0), (2.0, 0.7, 0.9)])
@pytest.mark.parametrize("shape", [(35, 50, 19), (512, 512, 30), (8, 3, 11), (300, 280, 260)])
def test_a_planned_patch_suits_the_u_net_that_is_made_for_it(shape, spacing) -> None:
    patch = plan_patch(np.array(shape, float), spacing, UNet.stride_for)
    stride = UNet.stride_for(patch, spacing)
    assert all(side % step == 0 for side, step in zip(patch, stride, strict=True))
    assert np.prod(patch) <= PATCH_VOXELS
    assert len(strides_and_kernels(patch, spacing)[0]) > 1


def test_a_coarse_axis_is_rounded_to_a_stride_of_its_own() -> None:
    shape, spacing = np.array((20.0, 150.0, 130.0)), (3.6, 0.62, 0.62)
    assert plan_patch(shape, spacing, UNet.stride_for) == (20, 160, 128)


@pytest.mark.parametrize(
    ("settings", "patch", "said"),
    [
        (["network.name=swin-unetr"], (32, 32, 32), "one voxel at the bottleneck of swin-unetr"),
        (["network.name=mednext"], (16, 16, 16), "of mednext, which instance norm makes 0"),
        (["train.labeled_batch=1"], (16, 16, 16), "labeled_batch = 1 .* batch norm has one value"),
        (
            ["network.name=segresnet", "method.name=sassnet"],
            (8, 16, 16),
            "method sassnet: .* at least 16 voxels",
        ),
        (
            ["network.name=segresnet", "method.name=mcf"],
            (24, 24, 24),
            "every side must be a multiple of 16",
        ),
        (
            ["network.name=unet", "method.name=vnet"],
            (20, 34, 32),
            "every side must be a multiple of 4, 8 and 8, one for each axis",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(settings, patch, said) -> None:
    with pytest.raises(InputError, match=said):
        check_networks(planned(patch, *settings))


@pytest.mark.parametrize(
    ("settings", "patch"),
    [
        (["network.name=swin-unetr", "method.name=vnet"], (64, 32, 32)),
        (["network.name=segresnet"], (8, 8, 8)),
        (["network.name=unet", "method.name=mcf"], (32, 16, 16)),
        ([], (16, 16, 16)),
    ],
)
def test_what_can_be_trained_is_not(settings, patch) -> None:
    check_networks(planned(patch, *settings))


def test_the_stride_is_that_of_all_networks_of_a_method() -> None:
    mcf = load_config(None, ["method.name=mcf", "network.name=swin-unetr"])
    assert network_stride(mcf, (64, 64, 64), (1.0, 1.0, 1.0)) == (32, 32, 32)
    mcf = load_config(None, ["method.name=mcf", "network.name=unet"])
    assert network_stride(mcf, (128, 32, 8), (1.0, 1.0, 1.0)) == (32, 16, 16)


def test_a_run_from_before_there_were_backbones_is_a_v_net(tiny_run, tmp_path) -> None:
    run = tmp_path / "old"
    shutil.copytree(tiny_run, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["network"]["name"], config["network"]["size"]
    del config["method"]["teacher_network"], config["method"]["student_network"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    _, method = load_run(run)
    assert {type(method.pair.teacher), type(method.pair.student)} == {VNet}
