"""Evidential losses against known Dirichlet distributions and torch.distributions."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from dcamt.losses.evidential import (
    concentration,
    evidential_cross_entropy,
    misleading_evidence,
    uncertainty,
)
from dcamt.types import IGNORE

SHAPE = (2, 3, 2, 3, 2)  # B, K, X, Y, Z


@pytest.fixture
def a() -> Tensor:
    return 1 + 9 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def label() -> Tensor:
    label = torch.randint(0, 3, (2, 2, 3, 2), generator=torch.Generator().manual_seed(2))
    label[0, 0, 0] = IGNORE
    return label


def test_uncertainty_of_known_distributions() -> None:
    """Dir(1, 1, 1) knows nothing; nine pieces of evidence among three classes leave 3 / 12."""
    a = torch.tensor([[1.0, 1, 1], [10, 1, 1], [4, 4, 4], [298, 1, 1]]).reshape(4, 3, 1, 1, 1)
    assert uncertainty(a).flatten().tolist() == pytest.approx([1, 0.25, 0.25, 0.01])


def test_no_evidence_is_a_concentration_of_one() -> None:
    found = concentration(torch.tensor([-100.0, 0, 10]).bfloat16())
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([1, 1 + math.log(2), 11], abs=1e-3)


def test_cross_entropy_is_the_expected_one(a: Tensor, label: Tensor) -> None:
    """Against the mean of -ln p_y over draws, and for whole numbers by harmonic sums."""
    torch.manual_seed(0)
    drawn = Dirichlet(a.movedim(1, -1)).sample((20_000,)).log().mean(0)
    values = [-float(drawn[v][label[v]]) for v in map(tuple, (label != IGNORE).nonzero().tolist())]
    found = evidential_cross_entropy(a, label)
    assert found.item() == pytest.approx(sum(values) / len(values), rel=0.01)
    whole = torch.tensor([2.0, 3.0]).reshape(1, 2, 1, 1, 1)
    one = evidential_cross_entropy(whole, torch.ones(1, 1, 1, 1, dtype=torch.long))
    assert one.item() == pytest.approx(1 / 3 + 1 / 4)  # digamma(5) - digamma(3)


def test_misleading_evidence_is_the_divergence_to_uniform(a: Tensor, label: Tensor) -> None:
    values = []
    for b, x, y, z in (label != IGNORE).nonzero().tolist():
        others = a[b, :, x, y, z].clone()
        others[label[b, x, y, z]] = 1
        values.append(kl_divergence(Dirichlet(others), Dirichlet(torch.ones(3))).item())
    assert misleading_evidence(a, label).item() == pytest.approx(
        sum(values) / len(values), rel=1e-4
    )


def test_evidence_for_the_truth_misleads_nobody(label: Tensor) -> None:
    a = torch.ones(SHAPE).scatter(1, label.clamp(min=0).unsqueeze(1), 50.0)
    assert misleading_evidence(a, label).item() == pytest.approx(0, abs=1e-5)
    assert evidential_cross_entropy(a, label).item() < 0.05


@pytest.mark.parametrize("loss", [evidential_cross_entropy, misleading_evidence])
def test_an_ignored_voxel_changes_nothing(loss, a: Tensor, label: Tensor) -> None:
    changed = torch.where((label == IGNORE)[:, None], 3 * a, a)
    torch.testing.assert_close(loss(changed, label), loss(a, label))
    assert loss(a, torch.full_like(label, IGNORE)) == 0
