"""MCF: who is better, what the other learns, and where they disagree."""

import math

import pytest
import torch
from torch import Tensor

from dcamt.losses.overlap import dice_ce, soft_dice
from dcamt.methods.mcf import MCF
from dcamt.types import IGNORE, Progress

ROLES = pytest.mark.parametrize("better", ["vnet", "resnet"])


def make_better(method: MCF, better: str, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Let one of the two heads speak for the foreground; returns both logits."""
    with torch.no_grad():
        for name in ("vnet", "resnet"):
            head = getattr(method, name).head
            head.bias.copy_(torch.tensor([0.0, 0.3 if name == better else -3.0]))
        logits = method.vnet(image), method.resnet(image)
    found = [soft_dice(x[:2], label).item() for x in logits]
    assert (found[0] < found[1]) == (better == "vnet"), "the set-up does not make it better"
    return logits


@ROLES
def test_terms_are_the_equations(better, build, plain_update, batch) -> None:
    method = build(MCF, weight=0.7, temperature=0.2).train()
    image = torch.cat([batch.image_l, batch.image_u])
    logits = dict(zip(("vnet", "resnet"), make_better(method, better, image, batch.label_l),
                      strict=True))  # fmt: skip
    p = {name: x.softmax(1) for name, x in logits.items()}
    update = plain_update(method)
    terms = method.step(batch, Progress(50, 100), update)
    assert terms["vnet_is_better"] == (better == "vnet")
    # Where the two disagree, the squared error to the label.
    errors, count = {"vnet": 0.0, "resnet": 0.0}, 0
    for b, x, y, z in (batch.label_l != IGNORE).nonzero().tolist():
        if p["vnet"][b, :, x, y, z].argmax() != p["resnet"][b, :, x, y, z].argmax():
            count += 1
            for name in errors:
                truth = float(batch.label_l[b, x, y, z])
                errors[name] += float(p[name][b, 1, x, y, z] - truth) ** 2
    assert count > 0
    for name, error in errors.items():
        assert terms[f"disagreement_{name}"].item() == pytest.approx(error / count, rel=1e-3)
        expected = dice_ce(logits[name][:2], batch.label_l)
        torch.testing.assert_close(terms[f"supervised_{name}"].detach(), expected)
    # The better one's sharpened probabilities are the worse one's target.
    worse = "resnet" if better == "vnet" else "vnet"
    powers = p[better][2:] ** (1 / 0.2)
    sharp = powers / powers.sum(1, keepdim=True)
    squares = (p[worse][2:] - sharp).square().mean(1)[batch.inside_u]
    assert terms["consistency"].item() == pytest.approx(squares.mean().item(), rel=1e-4)
    total = sum(terms[f"supervised_{n}"] + 0.5 * terms[f"disagreement_{n}"] for n in errors)
    total = total + 0.7 * math.exp(-1.25) * terms["consistency"]
    assert update.losses == [pytest.approx(total.item(), rel=1e-5)]


@ROLES
def test_only_the_worse_network_learns_from_the_other(better, build, plain_update, batch) -> None:
    """The gradient of the unlabelled term alone."""
    method = build(MCF, disagreement=0.0).train()
    image = torch.cat([batch.image_l, batch.image_u])
    make_better(method, better, image, batch.label_l)

    terms = method.step(batch, Progress(1, 1), lambda loss: None)
    terms["consistency"].backward()
    for name in ("vnet", "resnet"):
        moved = [p.grad for p in getattr(method, name).parameters()]
        assert any(g is not None and g.abs().max() > 0 for g in moved) == (name != better)


@torch.no_grad()
def test_prediction_is_the_mean_of_both(build, batch) -> None:
    method = build(MCF).eval()
    expected = [n(batch.image_u).softmax(1) for n in (method.vnet, method.resnet)]
    torch.testing.assert_close(method.predict(batch.image_u), (expected[0] + expected[1]) / 2)


def test_defaults_are_the_published_ones() -> None:
    c = MCF.Config()
    assert (c.disagreement, c.weight, c.ramp, c.temperature) == (0.5, 0.1, 1.0, 0.1)
