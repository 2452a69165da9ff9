"""SASSNet: its terms, its discriminator and who trains whom."""

import math

import pytest
import torch
from torch.optim import SGD, Adam

from dcamt.config import TrainConfig
from dcamt.losses.consistency import masked_mse
from dcamt.losses.overlap import soft_dice
from dcamt.methods.sassnet import SASSNet
from dcamt.ops.distance import signed_distances
from dcamt.types import IGNORE, Progress

HALF = Progress(50, 100)


def test_terms_are_the_equations(build, plain_update, batch) -> None:
    method = build(SASSNet, weight=0.7).train()
    method.discriminator.dropout.p = 0.0
    image = torch.cat([batch.image_l, batch.image_u])
    real = torch.cat([batch.label_l != IGNORE, batch.inside_u]).unsqueeze(1)
    with torch.no_grad():
        logits, z = method.network(image)
        labelled = method.discriminator(z * real, image * real).sigmoid()
    target = signed_distances(batch.label_l, 2)
    distance = masked_mse(z[:2], target, batch.label_l != IGNORE)
    adversarial = -(labelled[2].log() + labelled[3].log()) / 2
    supervised = soft_dice(logits[:2], batch.label_l)
    update = plain_update(method, learning_rate=1e-12)
    terms = method.step(batch, HALF, update)
    judgement = (
        -(labelled[0].log() + labelled[1].log() + (1 - labelled[2]).log() + (1 - labelled[3]).log())
        / 4
    )
    expected = {"supervised": supervised, "distance": distance, "adversarial": adversarial,
                "discriminator": judgement}  # fmt: skip
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name].detach(), value, rtol=1e-4, atol=1e-6)
    total = supervised + 0.3 * distance + 0.7 * math.exp(-1.25) * adversarial
    assert update.losses == [
        pytest.approx(total.item(), rel=1e-4),
        pytest.approx(judgement.item(), rel=1e-4),
    ]


def test_network_and_discriminator_move_one_after_the_other(
    build, plain_update, weights, batch
) -> None:
    method = build(SASSNet).train()
    before, update = weights(method), plain_update(method)
    method.step(batch, HALF, update)
    first, second = update.states

    def moved(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
        return {key.split(".")[0] for key in a if not torch.equal(a[key], b[key])}

    assert moved(before, first) == {"network"}
    assert moved(first, second) == {"discriminator"}


def test_the_network_learns_to_be_taken_for_labelled(build, plain_update, batch) -> None:
    """Against a fixed discriminator, the adversarial term alone makes D(z_u) rise."""
    method = build(SASSNet, weight=300.0, sdm_weight=0.0).train()
    batch.label_l.fill_(IGNORE)
    update = plain_update(method, learning_rate=0.01)
    update.optimizers["discriminator"] = SGD(method.discriminator.parameters(), lr=0.0)
    terms = [method.step(batch, Progress(1, 1), update)["adversarial"].item() for _ in range(15)]
    assert terms[-1] < terms[0] - 0.01


def test_the_discriminator_learns_to_tell_them_apart(build, plain_update, batch) -> None:
    method = build(SASSNet).train()
    batch.image_u.neg_()
    update = plain_update(method)
    update.optimizers["discriminator"] = Adam(method.discriminator.parameters(), lr=0.003)
    terms = [method.step(batch, HALF, update)["discriminator"].item() for _ in range(20)]
    assert terms[-1] < 0.5 * terms[0]


def test_optimisers_and_defaults_are_the_published_ones(build) -> None:
    method = build(SASSNet)
    c, train = method.config, TrainConfig(learning_rate=0.02, momentum=0.8, weight_decay=0.1)
    assert (c.sdm_weight, c.weight, c.ramp) == (0.3, 0.01, 1.0)
    made = {name: method.optimizer(name, p, train) for name, p in method.parts().items()}
    assert isinstance(made["network"], SGD)
    found = made["network"].defaults
    assert (found["lr"], found["momentum"], found["weight_decay"]) == (0.02, 0.8, 0.1)
    assert isinstance(made["discriminator"], Adam)
    assert made["discriminator"].defaults["lr"] == 1e-4
    assert made["discriminator"].defaults["betas"] == (0.9, 0.99)
