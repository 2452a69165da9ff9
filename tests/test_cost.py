"""Counted cost against the paper's Table 4 and against a count by hand."""

from math import prod

import pytest

from dcamt import cost
from dcamt.cost import method_cost
from dcamt.errors import InputError
from dcamt.methods import METHODS

PATCH = (112, 112, 80)


def vnet_by_hand(patch: tuple[int, int, int], channels: int, classes: int, width: int) -> int:
    """Multiply-accumulates of convolutions, plus two per normalised value."""
    widths = [width * 2**level for level in range(5)]
    sizes = [prod(side // 2**level for side in patch) for level in range(5)]
    total = 0
    for level, convolutions in enumerate((1, 2, 3, 3, 3)):
        w, n = widths[level], sizes[level]
        first = channels if level == 0 else w
        total += n * 27 * w * (first + (convolutions - 1) * w) + 2 * n * w * convolutions
        if level > 0:  # down: 2x2x2 from the level above
            total += n * 8 * widths[level - 1] * w + 2 * n * w
    for level, convolutions in ((3, 3), (2, 3), (1, 2), (0, 1)):
        w, n = widths[level], sizes[level]
        total += sizes[level + 1] * 8 * widths[level + 1] * w + 2 * n * w  # up
        total += n * 27 * w * w * convolutions + 2 * n * w * convolutions
    return total + sizes[0] * width * classes


def test_vnet_costs_what_the_paper_says() -> None:
    found = method_cost("vnet", PATCH)
    assert found["parameters"] == 9_448_866
    assert found["macs"] == vnet_by_hand(PATCH, 1, 2, 16)
    assert round(found["macs"] / 1e9, 2) == 40.27


def test_the_share_of_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unknown:
        """No layer is one of these, so nothing is counted as batch norm."""

    whole = method_cost("vnet", PATCH)["macs"]
    monkeypatch.setattr(cost.nn, "BatchNorm3d", cost.nn.BatchNorm3d)
    convolutions = vnet_by_hand(PATCH, 1, 2, 16) - normalised_by_hand(PATCH, 16)
    assert round(convolutions / 1e9, 3) == 40.109
    assert round((whole - convolutions) / 1e9, 3) == 0.165


def normalised_by_hand(patch: tuple[int, int, int], width: int) -> int:
    layers = (3, 6, 8, 8, 4)  # norms at each level: encoder, down, up and decoder
    layers = (1 + 1 + 1, 1 + 2 + 1 + 2, 1 + 3 + 1 + 3, 1 + 3 + 1 + 3, 1 + 3)
    return sum(
        2 * n * width * 2**level * prod(side // 2**level for side in patch)
        for level, n in enumerate(layers)
    )


@pytest.mark.parametrize(
    ("patch", "channels", "classes", "width"),
    [((32, 16, 48), 1, 2, 4), ((16, 16, 16), 4, 5, 3)],
)
def test_other_sizes(patch, channels: int, classes: int, width: int) -> None:
    found = method_cost("vnet", patch, channels, classes, width)
    assert found["macs"] == vnet_by_hand(patch, channels, classes, width)
