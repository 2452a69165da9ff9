"""Pi-model: two passes that differ, and what is asked of them."""

import math

import pytest
import torch

from dcamt.methods.pi_model import PiModel
from dcamt.types import Progress


def test_two_passes_differ_and_both_learn(build, plain_update, batch) -> None:
    method = build(PiModel, weight=0.7).train()
    images, answers = [], []
    method.network.register_forward_hook(lambda _, i, o: images.append(i[0]))
    method.network.register_forward_hook(lambda _, i, o: answers.append(o))
    update = plain_update(method)
    terms = method.step(batch, Progress(50, 100), update)
    first, second = images
    assert torch.equal(first[:2], batch.image_l), "labelled patches stay as they are"
    for image in (first[2:], second):
        noise = image - batch.image_u
        assert 0.08 < noise.std() < 0.1
        assert noise.abs().max() <= 0.2 + 1e-5
    assert not torch.equal(first[2:], second)
    p, q = answers[0][2:].softmax(1), answers[1].softmax(1)
    expected = (p - q).square().mean(1)[batch.inside_u].mean()
    torch.testing.assert_close(terms["consistency"], expected)
    assert expected > 0
    assert answers[1].requires_grad, "gradients flow through both passes"
    total = terms["supervised"] + 0.7 * math.exp(-1.25) * expected
    assert update.losses == [pytest.approx(total.item(), rel=1e-5)]


@torch.no_grad()
def test_prediction_has_no_noise_and_no_dropout(build, batch) -> None:
    method = build(PiModel).eval()
    expected = method.network(batch.image_u).softmax(1)
    assert torch.equal(method.predict(batch.image_u), expected)
