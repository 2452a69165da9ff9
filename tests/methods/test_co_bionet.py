"""Co-BioNet: who trusts whom, what the critics are told, and who trains whom."""

import math

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW

from dcamt.config import TrainConfig
from dcamt.losses.overlap import dice_ce
from dcamt.methods.co_bionet import CoBioNet
from dcamt.types import IGNORE, Progress

HALF = Progress(50, 100)


def picky(method: CoBioNet, image: Tensor) -> None:
    """Critics that take some of the voxels for labelled, each others."""
    with torch.no_grad():
        networks = ((method.first, method.critic_1, 1), (method.second, method.critic_2, -1))
        for network, critic, sign in networks:
            p, head = network(image).softmax(1)[:, 1:], critic.layers[-1]
            head.weight.mul_(sign / critic(p).std())
            head.bias.sub_(critic(p).mean())


def test_terms_are_the_equations(build, plain_update, batch) -> None:
    method = build(CoBioNet, weight=0.7, ramp=1.0, adversarial=0.2, threshold=0.6).train()
    image = torch.cat([batch.image_l, batch.image_u])
    picky(method, image)
    real = torch.cat([batch.label_l != IGNORE, batch.inside_u])
    annotated = batch.label_l != IGNORE
    networks = {
        "first": (method.first, method.critic_1),
        "second": (method.second, method.critic_2),
    }
    p, verdict, of_labels, expected = {}, {}, {}, {}
    with torch.no_grad():
        for name, (network, critic) in networks.items():
            logits = network(image)
            expected[f"supervised_{name}"] = dice_ce(logits[:2], batch.label_l)
            p[name] = logits.softmax(1)
            verdict[name] = critic(p[name][:, 1:]).double()
            labels = (batch.label_l == 1).float().unsqueeze(1)
            of_labels[name] = critic(labels).double()
    inside, adversarial, judgement = int(batch.inside_u.sum()), 0.0, 0.0
    for learner, source in (("first", "second"), ("second", "first")):
        trusted = batch.inside_u & (1 / (1 + (-verdict[source][2:]).exp()) > 0.6)
        share = trusted.sum() / inside
        assert 0.1 < share < 0.9, "the set-up does not tell voxels apart"
        theirs, ours = (p[name][2:].movedim(1, -1)[trusted] for name in (source, learner))
        expected[f"learned_{learner}"] = (theirs * (theirs / ours).log()).sum() / inside
        expected[f"trusted_{source}"] = share
        # ln(1 + e^-v) is -ln D for the logit v of D, and ln(1 + e^v) is -ln(1 - D).
        adversarial += (1 + (-verdict[learner][real]).exp()).log().mean()
        judgement += 0.5 * (1 + (-of_labels[learner][annotated]).exp()).log().mean()
        judgement += 0.5 * (1 + verdict[learner][real].exp()).log().mean()
    expected |= {"adversarial": adversarial, "critics": judgement}
    update = plain_update(method, learning_rate=1e-12)
    terms = method.step(batch, HALF, update)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name].detach(), value.float(), rtol=1e-3, atol=1e-5)
    learned = expected["learned_first"] + expected["learned_second"]
    total = expected["supervised_first"] + expected["supervised_second"]
    total = total + 0.7 * math.exp(-1.25) * (learned + 0.2 * expected["adversarial"])
    assert update.losses == [
        pytest.approx(total.item(), rel=1e-3),
        pytest.approx(expected["critics"].item(), rel=1e-3),
    ]


def test_networks_and_critics_move_one_after_the_other(build, plain_update, weights, batch) -> None:
    method = build(CoBioNet).train()
    before, update = weights(method), plain_update(method)
    method.step(batch, HALF, update)
    first, second = update.states

    def moved(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
        return {key.split(".")[0] for key in a if not torch.equal(a[key], b[key])}

    assert moved(before, first) == {"first", "second"}
    assert moved(first, second) == {"critic_1", "critic_2"}


@pytest.mark.parametrize("learner", ["first", "second"])
def test_only_the_learner_learns(learner, build, batch) -> None:
    method = build(CoBioNet).train()
    terms = method.step(batch, HALF, lambda loss, *parts: None)
    terms[f"learned_{learner}"].backward()
    moved = {n.split(".")[0] for n, p in method.named_parameters() if p.grad is not None}
    assert moved == {learner}


def test_nothing_is_learned_where_no_critic_is_content(build, batch) -> None:
    method = build(CoBioNet, threshold=1.0).train()
    terms = method.step(batch, HALF, lambda loss, *parts: None)
    assert terms["learned_first"] == terms["learned_second"] == 0
    assert terms["trusted_first"] == terms["trusted_second"] == 0


def test_the_networks_learn_to_be_taken_for_labels(build, plain_update, batch) -> None:
    """Against fixed critics, the adversarial term alone makes D(p) rise."""
    method = build(CoBioNet, adversarial=30.0, threshold=1.0).train()
    picky(method, torch.cat([batch.image_l, batch.image_u]))
    batch.label_l.fill_(IGNORE)
    update = plain_update(method, learning_rate=0.01)
    update.optimizers["critics"] = SGD(method.critic_1.parameters(), lr=0.0)
    terms = [method.step(batch, Progress(1, 1), update)["adversarial"].item() for _ in range(8)]
    assert terms[-1] < terms[0] - 0.01


def test_the_critics_learn_to_tell_labels_from_predictions(build, plain_update, batch) -> None:
    method = build(CoBioNet, adversarial=0.0).train()
    update = plain_update(method, learning_rate=1e-6)
    critics = [*method.critic_1.parameters(), *method.critic_2.parameters()]
    update.optimizers["critics"] = Adam(critics, lr=0.1)
    terms = [method.step(batch, HALF, update)["critics"].item() for _ in range(12)]
    assert terms[-1] < 0.7 * terms[0]


@torch.no_grad()
def test_prediction_is_the_mean_of_both(build, batch) -> None:
    method = build(CoBioNet).eval()
    expected = [n(batch.image_u).softmax(1) for n in (method.first, method.second)]
    assert not torch.equal(*expected)
    torch.testing.assert_close(method.predict(batch.image_u), (expected[0] + expected[1]) / 2)


def test_optimisers_and_defaults_are_the_published_ones(build) -> None:
    method = build(CoBioNet)
    c = method.config
    assert (c.weight, c.adversarial, c.threshold) == (1.0, 0.01, 0.3)
    assert c.ramp == 6000 / 15000
    made = {n: method.optimizer(n, p, TrainConfig()) for n, p in method.parts().items()}
    assert isinstance(made["networks"], SGD)
    assert isinstance(made["critics"], AdamW)
    assert made["critics"].defaults["lr"] == 1e-4
