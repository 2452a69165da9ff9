"""CPS: each network learns the other's guess."""

import pytest
import torch
from torch import Tensor

from dcamt.losses.overlap import cross_entropy, dice_ce
from dcamt.methods.cps import CPS
from dcamt.types import IGNORE, Progress


def test_each_network_is_told_the_class_the_other_gives(build, plain_update, batch) -> None:
    """Term by term, and the total, against guesses taken voxel by voxel."""
    method = build(CPS, weight=0.7, ramp=0.5).train()
    image = torch.cat([batch.image_l, batch.image_u])
    with torch.no_grad():
        logits = {"first": method.first(image), "second": method.second(image)}

    def guess(scores: Tensor) -> Tensor:
        label = torch.full(batch.inside_u.shape, IGNORE)
        for b, x, y, z in batch.inside_u.nonzero().tolist():
            label[b, x, y, z] = max((0, 1), key=lambda k: scores[b, k, x, y, z])
        return label

    update = plain_update(method)
    terms = method.step(batch, Progress(25, 100), update)
    for one, other in (("first", "second"), ("second", "first")):
        expected = cross_entropy(logits[one][2:], guess(logits[other][2:]))
        torch.testing.assert_close(terms[f"cross_{one}"].detach(), expected)
        supervised = dice_ce(logits[one][:2], batch.label_l)
        torch.testing.assert_close(terms[f"supervised_{one}"].detach(), supervised)
    supervised = terms["supervised_first"] + terms["supervised_second"]
    cross = terms["cross_first"] + terms["cross_second"]
    total = supervised + 0.7 * 2.718281828 ** (-5 * 0.5**2) * cross
    assert update.losses == [pytest.approx(total.item(), rel=1e-5)]


@pytest.mark.parametrize("learner", ["first", "second"])
def test_a_network_learns_from_the_other_not_from_itself(
    learner, build, plain_update, weights, batch
) -> None:
    """One leans towards foreground; the other, sure of background, pulls it there."""
    method = build(CPS).train()
    batch.label_l.fill_(IGNORE)  # no supervision: only the other's guess is left
    with torch.no_grad():
        for network in (method.first, method.second):
            network.head.weight.zero_()
            network.head.bias.copy_(torch.tensor([100.0, 0.0]))
        getattr(method, learner).head.bias.copy_(torch.tensor([0.0, 0.1]))
    before = weights(method)
    method.step(batch, Progress(900, 1000), plain_update(method))
    change = weights(method)[f"{learner}.head.bias"] - before[f"{learner}.head.bias"]
    assert change[0] > 0 > change[1]


def test_prediction_is_the_first_network(build, batch) -> None:
    method = build(CPS).eval()
    with torch.no_grad():
        expected = method.first(batch.image_u).softmax(1)
        torch.testing.assert_close(method.predict(batch.image_u), expected)
        assert not torch.allclose(method.second(batch.image_u).softmax(1), expected, atol=1e-3)
