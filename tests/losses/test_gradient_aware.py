"""GA's losses against loops over voxels, and their gradients by hand."""

import math

import pytest
import torch
from torch import Tensor

from dcamt.losses.gradient_aware import ga_cross_entropy, ga_dice
from dcamt.losses.overlap import cross_entropy, soft_dice
from dcamt.types import IGNORE

SHAPE = (2, 3, 2, 3, 2)  # B, K, X, Y, Z


@pytest.fixture
def logits() -> Tensor:
    return 2 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def label() -> Tensor:
    label = torch.randint(0, 3, (2, 2, 3, 2), generator=torch.Generator().manual_seed(2))
    label[0, 0, 0] = IGNORE
    return label


def test_with_every_class_present_it_is_dice(logits: Tensor, label: Tensor) -> None:
    assert {0, 1, 2} <= set(label.flatten().tolist())
    expected = soft_dice(logits, label, background=True)
    torch.testing.assert_close(ga_dice(logits, label), expected)


def test_an_absent_class_costs_its_weighted_false_positives(logits: Tensor, label: Tensor) -> None:
    """Class 2 is absent: the mean of p^2 over all voxels, beside the Dice of the others."""
    label = label.masked_fill(label == 2, 0)
    p = logits.softmax(1)[:, 2][label != IGNORE].tolist()
    absent = sum(v * v for v in p) / len(p)
    present = 0.0
    for k in (0, 1):
        p, y = logits.softmax(1)[:, k][label != IGNORE], (label == k)[label != IGNORE].float()
        present += 1 - 2 * (p * y).sum().item() / (p.square().sum() + y.sum()).item()
    assert ga_dice(logits, label).item() == pytest.approx((present + absent) / 3, abs=1e-5)


def test_the_gradient_of_an_absent_class_is_in_proportion_to_its_probability() -> None:
    """With respect to p: p_i / N; softmax turns it into that of the logits.

    The other class is there, with a Dice and a gradient of its own, which are taken away.
    """
    p = torch.tensor([0.1, 0.6, 0.3]).reshape(1, 1, 3, 1, 1)
    logits = torch.cat([1 - p, p], 1).log().requires_grad_()
    q = 1 - logits.softmax(1)[:, 1]
    dice = 2 * q.sum() / (q.square().sum() + 3)
    loss = 2 * ga_dice(logits, torch.zeros(1, 3, 1, 1, dtype=torch.long)) - (1 - dice)
    assert loss.item() == pytest.approx((0.01 + 0.36 + 0.09) / 3, rel=1e-4)
    loss.backward()
    for i, q in enumerate((0.1, 0.6, 0.3)):
        by_p = q / 3
        assert logits.grad[0, 1, i].item() == pytest.approx(by_p * q * (1 - q), rel=1e-4)


@pytest.mark.parametrize(("share", "gamma"), [(1.0, 1.0), (1.0, 0.5), (0.4, 0.5), (0.4, 0.0)])
def test_cross_entropy_of_the_hardest_voxels_in_balance(
    share: float, gamma: float, logits: Tensor, label: Tensor
) -> None:
    losses = []
    for b, x, y, z in (label != IGNORE).nonzero().tolist():
        k = int(label[b, x, y, z])
        losses.append((-float(logits[b, :, x, y, z].log_softmax(0)[k]), k))
    hardest = sorted(losses, reverse=True)[: math.ceil(share * len(losses))]
    expected = 0.0
    for k in range(3):
        mine = [loss for loss, of in hardest if of == k]
        if mine:
            expected += (len(mine) / len(hardest)) ** gamma * sum(mine) / len(mine)
    found = ga_cross_entropy(logits, label, share, gamma)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    if (share, gamma) == (1.0, 1.0):
        torch.testing.assert_close(found, cross_entropy(logits, label))


def test_an_ignored_voxel_changes_nothing(logits: Tensor, label: Tensor) -> None:
    changed = torch.where((label == IGNORE)[:, None], -7 * logits + 3, logits)
    torch.testing.assert_close(ga_dice(changed, label), ga_dice(logits, label))
    for share in (0.3, 1.0):
        a, b = (ga_cross_entropy(x, label, share, 0.5) for x in (changed, logits))
        torch.testing.assert_close(a, b)
    nothing = torch.full_like(label, IGNORE)
    assert ga_dice(logits, nothing) == ga_cross_entropy(logits, nothing, 0.3, 0.5) == 0
