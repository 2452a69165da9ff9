"""EVIL: what each of its networks is told."""

import math

import pytest
import torch

from dcamt.losses.evidential import evidential_cross_entropy, misleading_evidence
from dcamt.losses.overlap import dice_ce, soft_dice
from dcamt.methods.evil import EVIL, evidence_loss
from dcamt.types import IGNORE, Progress


def test_the_s_net_is_told_where_the_e_net_is_sure(build, plain_update, batch) -> None:
    image = torch.cat([batch.image_l, batch.image_u])
    with torch.no_grad():
        first = build(EVIL).train()
        a = 1 + torch.nn.functional.softplus(first.e_net(image))
        logits = first.s_net(image)
    limit = float((2 / a.sum(1)).median())
    method = build(EVIL, weight=0.7, threshold=limit).train()
    told, heard = torch.full_like(batch.label_l, IGNORE), torch.full_like(batch.label_l, IGNORE)
    for b, x, y, z in batch.inside_u.nonzero().tolist():
        zero, one = (float(a[2 + b, k, x, y, z]) for k in (0, 1))
        if 2 / (zero + one) < limit:
            told[b, x, y, z] = int(one > zero)
        heard[b, x, y, z] = int(logits[2 + b, 1, x, y, z] > logits[2 + b, 0, x, y, z])
    ramp = math.exp(-1.25)
    expected = {
        "supervised_e": evidence_loss(a[:2], batch.label_l, ramp),
        "supervised_s": dice_ce(logits[:2], batch.label_l),
        "to_s": dice_ce(logits[2:], told),
        "to_e": evidence_loss(a[2:], heard, ramp),
        "certain": (told != IGNORE).sum() / batch.inside_u.sum(),
    }
    assert 0.1 < expected["certain"] < 0.9
    update = plain_update(method)
    terms = method.step(batch, Progress(50, 100), update)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name].detach(), value, rtol=1e-3, atol=1e-4)
    total = expected["supervised_e"] + expected["supervised_s"]
    total = total + 0.7 * ramp * (expected["to_s"] + expected["to_e"])
    assert update.losses == [pytest.approx(total.item(), rel=1e-3)]


def test_the_evidence_loss_is_half_of_its_three_parts() -> None:
    a = 1 + 5 * torch.rand(1, 3, 2, 2, 2)
    label = torch.randint(0, 3, (1, 2, 2, 2))
    dice = soft_dice((a / a.sum(1, keepdim=True)).log(), label)
    expected = evidential_cross_entropy(a, label) + 0.3 * misleading_evidence(a, label) + dice
    torch.testing.assert_close(evidence_loss(a, label, 0.3), 0.5 * expected)


@torch.no_grad()
def test_prediction_is_the_s_net(build, batch) -> None:
    method = build(EVIL).eval()
    torch.testing.assert_close(
        method.predict(batch.image_u), method.s_net(batch.image_u).softmax(1)
    )


def test_the_threshold_is_the_published_one() -> None:
    assert EVIL.Config().threshold == 0.2
