"""Counted cost against the paper's Table 4 and against a count by hand."""

from itertools import pairwise
from math import prod

import pytest

from dcamt.errors import InputError
from dcamt.methods import METHODS
from dcamt.runs.complexity import method_cost

PATCH = (112, 112, 80)
ENCODER, DECODER = (1, 2, 3, 3, 3), (1, 2, 3, 3)  # 3x3x3 convolutions at levels 0, 1, ...

Sizes = tuple[int, int, int]


def convolutions_by_hand(patch: Sizes, channels: int, classes: int, width: int) -> int:
    """Multiply-accumulates of every convolution of a V-Net."""
    widths = [width * 2**level for level in range(5)]
    voxels = [prod(side // 2**level for side in patch) for level in range(5)]
    inputs = [channels, *widths[1:]]
    total = voxels[0] * width * classes
    for n, w, c, count in zip(voxels, widths, inputs, ENCODER, strict=True):
        total += n * 27 * (c * w + (count - 1) * w * w)
    for n, w, count in zip(voxels, widths, DECODER, strict=False):
        total += n * 27 * w * w * count
    for fine, coarse in pairwise(range(5)):  # down, and up again
        total += 2 * voxels[coarse] * 8 * widths[fine] * widths[coarse]
    return total


def batch_norm_by_hand(patch: Sizes, width: int) -> int:
    """Two for each value of the output of 29 layers."""
    layers = (1 + 1 + 1, 2 + 1 + 1 + 2, 3 + 1 + 1 + 3, 3 + 1 + 1 + 3, 3 + 1)
    return sum(
        2 * count * width * 2**level * prod(side // 2**level for side in patch)
        for level, count in enumerate(layers)
    )


def test_vnet_costs_what_the_paper_says() -> None:
    convolutions, norm = convolutions_by_hand(PATCH, 1, 2, 16), batch_norm_by_hand(PATCH, 16)
    assert (round(convolutions / 1e9, 3), round(norm / 1e9, 3)) == (40.109, 0.165)
    found = method_cost("vnet", PATCH)
    assert found == {"parameters": 9_448_866, "macs": convolutions + norm}
    assert round(found["macs"] / 1e9, 2) == 40.27


@pytest.mark.parametrize(
    ("patch", "channels", "classes", "width"),
    [((32, 16, 48), 1, 2, 4), ((16, 16, 16), 4, 5, 3)],
)
def test_other_sizes(patch: Sizes, channels: int, classes: int, width: int) -> None:
    found = method_cost("vnet", patch, channels, classes, width)
    expected = convolutions_by_hand(patch, channels, classes, width)
    assert found["macs"] == expected + batch_norm_by_hand(patch, width)


def test_dca_mt_is_two_vnets_and_an_exchange() -> None:
    one, both = method_cost("vnet", PATCH), method_cost("dca-mt", PATCH)
    assert 255_000 < both["parameters"] - 2 * one["parameters"] < 275_000
    # Per direction and head size 4 x 32: four projections of each token and two products.
    tokens = prod(side // 16 for side in PATCH)
    exchange = 2 * (4 * tokens * 256 * 128 + 2 * tokens * tokens * 128)
    assert both["macs"] - 2 * one["macs"] == exchange


def test_mean_teacher_predicts_with_one_of_its_two_networks() -> None:
    one, teacher = method_cost("vnet", PATCH), method_cost("mean-teacher", PATCH)
    assert teacher == {"parameters": 2 * one["parameters"], "macs": one["macs"]}


def test_a_patch_that_is_too_small_for_the_backbone_is_refused() -> None:
    with pytest.raises(InputError, match="one voxel at the bottleneck of swin-unetr"):
        method_cost("vnet", (32, 32, 32), set=["network.name=swin-unetr"])
    with pytest.raises(InputError, match=r"sassnet: .* at least 16 voxels"):
        method_cost("sassnet", (8, 8, 8), set=["network.name=segresnet"])


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_can_be_counted(name: str) -> None:
    found = method_cost(name, (32, 16, 16), width=2)
    assert found["parameters"] > 0
    assert found["macs"] > 0


def test_an_unknown_method_is_named_with_those_that_exist() -> None:
    with pytest.raises(InputError, match=r"'no-such' is unknown.*dca-mt"):
        method_cost("no-such", PATCH)


@pytest.mark.parametrize("sizes", [{"channels": 0}, {"classes": 1}, {"classes": 129}, {"width": 0}])
def test_sizes_of_no_network_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"--{next(iter(sizes))}.*ask for at (least|most)"):
        method_cost("vnet", PATCH, **sizes)


@pytest.mark.parametrize(
    "patch", [(112, 112, 81), (8, 16, 16), (0, 16, 16), (-16, 16, 16), (112, 112), (16,) * 4]
)
def test_a_patch_the_network_cannot_take_is_refused(patch: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="multiple of 16"):
        method_cost("vnet", patch)
