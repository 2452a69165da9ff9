"""UA-MT: which voxels count, and how the uncertainty is found."""

import math

import pytest
import torch
from torch import Tensor

from dcamt.methods.ua_mt import UAMT, entropy
from dcamt.types import Progress


@pytest.mark.parametrize("iteration", [0, 40, 100])
def test_the_mask_and_the_loss_against_a_slow_computation(
    iteration, build, plain_update, batch
) -> None:
    method = build(UAMT, passes=3, weight=0.7).train()
    with torch.no_grad():  # a teacher that is sure of some voxels and not of others
        method.teacher.head.weight.mul_(8)
    seen: list[Tensor] = []
    method.teacher.register_forward_hook(lambda _, i, o: seen.append(o.softmax(1)))
    method.student.register_forward_hook(lambda _, i, o: seen.append(o.detach().softmax(1)))
    update = plain_update(method)
    terms = method.step(batch, Progress(iteration, 100), update)
    student, target, *passes = seen
    assert len(passes) == 3
    ramp = math.exp(-5 * (1 - iteration / 100) ** 2)
    limit = (0.75 + 0.25 * ramp) * math.log(2)
    errors, counted = 0.0, 0
    for b, x, y, z in batch.inside_u.nonzero().tolist():
        mean = [sum(float(p[b, k, x, y, z]) for p in passes) / 3 for k in (0, 1)]
        if -sum(m * math.log(m) for m in mean if m > 0) < limit:
            counted += 1
            pairs = ((student[2 + b, k, x, y, z], target[b, k, x, y, z]) for k in (0, 1))
            errors += sum(float(s - t) ** 2 for s, t in pairs) / 2
    assert counted > 0
    assert iteration == 100 or counted < int(batch.inside_u.sum())
    # At the end the limit is the largest entropy there is: rounding decides on single voxels, and
    # processors round differently.
    rel = 1e-3 if iteration == 100 else 1e-4
    assert terms["consistency"].item() == pytest.approx(errors / counted, rel=rel)
    share = counted / int(batch.inside_u.sum())
    assert terms["certain"].item() == pytest.approx(share, abs=1e-3)  # rounding, at ln 2
    total = terms["supervised"].item() + 0.7 * ramp * errors / counted
    assert update.losses == [pytest.approx(total, rel=rel)]


def test_teacher_passes_differ_by_noise_and_by_dropout(build, plain_update, batch) -> None:
    method = build(UAMT).train()
    images: list[Tensor] = []
    method.teacher.register_forward_hook(lambda _, i, o: images.append(i[0]))
    method.step(batch, Progress(0, 100), plain_update(method))
    assert len(images) == 1 + 8
    for image in images:
        noise = image - batch.image_u
        assert 0.08 < noise.std() < 0.1
        assert noise.abs().max() <= 0.2 + 1e-5
    assert not torch.equal(images[0], images[1])
    with torch.no_grad():  # the same input twice: dropout alone
        assert not torch.equal(method.teacher(images[0]), method.teacher(images[0]))


@torch.no_grad()
def test_prediction_is_the_student_without_dropout(build, batch) -> None:
    method = build(UAMT).eval()
    expected = method.student(batch.image_u).softmax(1)
    assert torch.equal(method.predict(batch.image_u), expected)
    assert torch.equal(method.predict(batch.image_u), expected)
    for p in method.teacher.parameters():
        p.zero_()
    assert torch.equal(method.predict(batch.image_u), expected)


def test_entropy_of_known_distributions() -> None:
    p = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]]).reshape(3, 4, 1, 1, 1)
    found = entropy(p).flatten().tolist()
    assert found == pytest.approx([math.log(4), 0, math.log(2)], abs=1e-6)


def test_defaults_are_the_published_ones() -> None:
    c = UAMT.Config()
    assert (c.weight, c.ramp, c.decay, c.passes, c.dropout) == (0.1, 1.0, 0.99, 8, 0.5)
