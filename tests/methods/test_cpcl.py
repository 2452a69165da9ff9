"""CPCL: what the prototypes are, what they say, and who learns from it."""

import math

import pytest
import torch
from torch import Tensor

from dcamt.losses.overlap import dice_ce
from dcamt.methods.cpcl import CPCL, by_prototypes, read
from dcamt.types import IGNORE, Progress

HALF = Progress(50, 100)


def other_teacher(method: CPCL, image: Tensor) -> None:
    """A teacher that differs from the student, and gives half of the voxels to each class."""
    with torch.no_grad():
        for p in method.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
        logits = method.teacher(image)
        method.teacher.head.bias[0] += (logits[:, 1] - logits[:, 0]).median()


def means(features: Tensor, p: Tensor, classes: Tensor) -> list[Tensor]:
    """The mean feature of the voxels of each class, weighted by its probability."""
    found = []
    for k in range(p.shape[1]):
        rows, weight = features.movedim(1, -1)[classes == k], p[:, k][classes == k]
        found.append((rows * weight[:, None]).sum(0) / weight.sum())
    return found


def says(features: Tensor, prototypes: list[Tensor]) -> Tensor:
    """Softmax of 20 times the cosine with each prototype, ``(B, X, Y, Z, K)``."""
    cosines = [
        torch.nn.functional.cosine_similarity(features.movedim(1, -1), c, dim=-1)
        for c in prototypes
    ]
    powers = torch.stack(cosines, -1).mul(20).exp()
    return powers / powers.sum(-1, keepdim=True)


def test_terms_are_the_equations(build, plain_update, batch) -> None:
    method = build(CPCL, forward_weight=0.7, backward_weight=0.4, ramp=1.0).train()
    other_teacher(method, batch.image_u)
    with torch.no_grad():
        f_l, logits_l = read(method.student, batch.image_l)
        f_u, logits_u = read(method.teacher, batch.image_u)
    torch.testing.assert_close(method.student(batch.image_l).detach(), logits_l)
    p_l, p_u = logits_l.softmax(1), logits_u.softmax(1)
    guess = p_u.argmax(1).masked_fill(~batch.inside_u, IGNORE)
    assert 0.2 < guess[batch.inside_u].float().mean() < 0.8
    q_u = says(f_u, means(f_l, p_l, batch.label_l))
    q_l = says(f_l, means(f_u, p_u, guess))
    squares = (q_u - p_u.movedim(1, -1)).square().mean(-1)[batch.inside_u].mean()
    known = batch.label_l != IGNORE
    of_label = q_l[known].gather(1, batch.label_l[known][:, None])
    expected = {
        "supervised": dice_ce(logits_l, batch.label_l),
        "forward": squares,
        "backward": -of_label.log().mean(),
    }
    update = plain_update(method)
    terms = method.step(batch, HALF, update)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name].detach(), value, rtol=1e-4, atol=1e-6)
    cycle = 0.7 * expected["forward"] + 0.4 * expected["backward"]
    total = expected["supervised"] + math.exp(-1.25) * cycle
    assert update.losses == [pytest.approx(total.item(), rel=1e-4)]


@pytest.mark.parametrize("term", ["forward", "backward"])
def test_both_directions_train_the_student_and_need_the_unlabelled_patches(
    term, build, batch
) -> None:
    """The authors' script detaches the features: there neither does."""
    values = []
    for factor in (1.0, -1.0):
        method = build(CPCL).train()
        batch.image_u.mul_(factor)
        other_teacher(method, batch.image_u)
        terms = method.step(batch, HALF, lambda loss: None)
        terms[term].backward()
        student = [p.grad for p in method.student.decoder.parameters()]
        assert all(g is not None for g in student)
        assert any(g.abs().max() > 1e-6 for g in student)
        assert all(p.grad is None for p in method.teacher.parameters())
        values.append(terms[term].item())
    assert abs(values[0] - values[1]) > 1e-4


def test_a_class_without_prototype_scores_least_and_its_voxels_do_not_count() -> None:
    torch.manual_seed(0)
    features, source = torch.randn(2, 3, 2, 2, 2), torch.randn(1, 3, 2, 2, 2)
    weight = torch.zeros(1, 3, 2, 2, 2)
    weight[:, 0, 0], weight[:, 2, 1] = 0.5, 0.7  # nothing of class 1
    label = torch.tensor([0, 1, 2, IGNORE] * 4).view(2, 2, 2, 2)
    logits, known = by_prototypes(features, label, source, weight, 20.0)
    assert (logits[:, 1] == -20).all()
    assert (logits[:, [0, 2]] > -20).all()
    assert torch.equal(known, torch.where(label == 1, IGNORE, label))


@pytest.mark.parametrize("side", ["labelled", "unlabelled"])
def test_a_side_that_holds_background_alone_breaks_nothing(
    side, build, plain_update, batch
) -> None:
    method = build(CPCL).train()
    if side == "labelled":
        batch.label_l.clamp_(max=0)
    else:
        with torch.no_grad():
            method.teacher.head.bias.copy_(torch.tensor([50.0, -50.0]))
    terms = method.step(batch, HALF, plain_update(method))
    assert all(torch.isfinite(term) for term in terms.values())
    if side == "unlabelled":  # one prototype says background of every background voxel
        assert terms["backward"] < 1e-6
    batch.inside_u.fill_(False)
    terms = method.step(batch, HALF, plain_update(method))
    assert terms["forward"] == terms["backward"] == 0


@pytest.mark.parametrize(("iteration", "decay"), [(0, 0.0), (3, 0.75), (500, 0.99)])
def test_the_teacher_follows_the_student(
    iteration, decay, build, plain_update, weights, batch
) -> None:
    method = build(CPCL).train()
    other_teacher(method, batch.image_u)
    before = weights(method)
    method.step(batch, Progress(iteration, 1000), plain_update(method))
    after = weights(method)
    for key in (k for k in after if k.startswith("teacher.")):
        student = after[key.replace("teacher.", "student.", 1)]
        torch.testing.assert_close(after[key], decay * before[key] + (1 - decay) * student)


@torch.no_grad()
def test_prediction_is_the_student(build, batch) -> None:
    method = build(CPCL).eval()
    expected = method.student(batch.image_u).softmax(1)
    for p in method.teacher.parameters():
        p.zero_()
    assert torch.equal(method.predict(batch.image_u), expected)


def test_defaults_are_the_published_ones() -> None:
    c = CPCL.Config()
    assert (c.forward_weight, c.backward_weight, c.scale, c.decay) == (0.1, 1.0, 20.0, 0.99)
    assert c.ramp == 6000 / 10000
