"""Pseudo-label: the network's own guess, voxel by voxel."""

import math

import pytest
import torch

from dcamt.methods.pseudo_label import PseudoLabel
from dcamt.types import Progress


def test_the_loss_is_minus_the_log_of_the_highest_probability(build, plain_update, batch) -> None:
    method = build(PseudoLabel, weight=0.7).train()
    with torch.no_grad():
        image = torch.cat([batch.image_l, batch.image_u])
        highest = method.network(image)[2:].softmax(1).max(1).values
    update = plain_update(method)
    terms = method.step(batch, Progress(50, 100), update)
    expected = -highest[batch.inside_u].log().mean()
    torch.testing.assert_close(terms["pseudo"].detach(), expected)
    total = terms["supervised"] + 0.7 * math.exp(-1.25) * expected
    assert update.losses == [pytest.approx(total.item(), rel=1e-5)]
