"""Dual Teacher: whose turn it is, what is mixed, and what the student is told."""

import math

import pytest
import torch
from torch import Tensor

from dcamt.losses.overlap import dice_ce
from dcamt.methods import dual_teacher
from dcamt.methods.dual_teacher import DualTeacher
from dcamt.networks.vnet import VNet
from dcamt.ops.mix import both_inside, paste
from dcamt.types import IGNORE, Progress

EVEN, ODD = Progress(500, 1000), Progress(505, 1000)  # epochs 100 and 101 of 200


def speaks(method: DualTeacher, answers: list[Tensor]) -> list[int]:
    """Teachers that give fixed logits; returns where the number of who was asked is noted."""
    asked: list[int] = []

    def answer(number: int) -> object:
        def hook(*_: object) -> Tensor:
            asked.append(number)
            return answers[number]

        return hook

    for number, teacher in enumerate(method.teachers):
        teacher.register_forward_hook(answer(number))
    return asked


def test_teachers_take_turns_and_only_the_one_on_duty_follows(
    build, plain_update, weights, batch
) -> None:
    """Twelve iterations in four epochs of three, and who moves where in each of them."""
    method = build(DualTeacher, epoch=0.25).train()
    update = plain_update(method, learning_rate=0.05)
    asked: list[int] = []
    for number, teacher in enumerate(method.teachers):
        teacher.register_forward_hook(lambda *_, n=number: asked.append(n))
    for iteration in range(12):
        before = weights(method)
        method.step(batch, Progress(iteration, 12), update)
        after = weights(method)
        duty, since = (iteration // 3) % 2, iteration % 3
        decay = [0.0, 1 / 2, 2 / 3][since]
        for key in (k for k in after if k.startswith("teachers.")):
            _, number, name = key.split(".", 2)
            if int(number) == duty:
                expected = decay * before[key] + (1 - decay) * after[f"student.{name}"]
                torch.testing.assert_close(after[key], expected)
            else:
                assert torch.equal(after[key], before[key])
    assert asked == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]


def test_late_in_a_turn_the_decay_is_the_configured_one(
    build, plain_update, weights, batch
) -> None:
    method = build(DualTeacher, epoch=1.0, decay=0.9).train()
    before = weights(method)
    method.step(batch, Progress(40, 1000), plain_update(method))
    after = weights(method)
    for name, student in method.student.named_parameters():
        key = f"teachers.0.{name}"
        torch.testing.assert_close(after[key], 0.9 * before[key] + 0.1 * student.detach())


@pytest.mark.parametrize("at", [EVEN, ODD], ids=["box", "classes"])
def test_terms_are_the_equations(at, build, plain_update, batch, monkeypatch) -> None:
    method = build(DualTeacher, weight=0.7, implicit=0.3, threshold=0.8).train()
    shape = (2, 2, *batch.inside_u.shape[1:])
    answers = [torch.randn(shape), torch.randn(shape)]
    asked = speaks(method, answers)
    duty = 0 if at is EVEN else 1
    seen: dict[str, Tensor] = {}
    method.student.register_forward_hook(lambda _, i, o: seen.update(image=i[0], logits=o.detach()))
    for name in ("random_box", "random_classes"):
        real = getattr(dual_teacher, name)
        monkeypatch.setattr(
            dual_teacher, name, lambda *a, r=real, n=name: seen.setdefault(n, r(*a))
        )
    update = plain_update(method)
    terms = method.step(batch, at, update)
    assert asked == [duty]
    assert ("random_box" in seen) == (at is EVEN)
    assert ("random_classes" in seen) == (at is ODD)
    taken = (
        seen["random_box"].expand(2, -1, -1, -1) if at is EVEN else seen["random_classes"].flip(0)
    )
    labelled, mixed, strong = seen["image"].split([2, 2, 2])
    assert torch.equal(labelled, batch.image_l)
    p, log_p = answers[duty].softmax(1), seen["logits"].log_softmax(1)
    pseudo = implicit = 0.0
    certain, voxels = 0, batch.inside_u.nonzero().tolist()
    for b, x, y, z in batch.inside_u.logical_not().nonzero().tolist():
        assert torch.equal(mixed[b, :, x, y, z], strong[b, :, x, y, z])
    for b, x, y, z in voxels:
        other = 1 - b
        pasted = bool(taken[b, x, y, z]) and bool(batch.inside_u[other, x, y, z])
        origin = other if pasted else b
        assert mixed[b, 0, x, y, z] == strong[origin, 0, x, y, z]
        told = int(p[origin, 1, x, y, z] > 0.5)
        pseudo -= float(log_p[2 + b, told, x, y, z])
        if p[b, :, x, y, z].max() >= 0.8:
            certain += 1
            own = int(p[b, 1, x, y, z] > 0.5)
            implicit -= float(log_p[4 + b, own, x, y, z])
    share = certain / len(voxels)
    assert 0.05 < share < 0.95
    expected = {
        "supervised": dice_ce(seen["logits"][:2], batch.label_l),
        "pseudo": torch.tensor(share * pseudo / len(voxels)),
        "implicit": torch.tensor(implicit / len(voxels)),
        "certain": torch.tensor(share),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name].detach(), value, rtol=1e-4, atol=1e-6)
    total = expected["supervised"] + 0.7 * expected["pseudo"] + 0.3 * expected["implicit"]
    assert update.losses == [pytest.approx(total.item(), rel=1e-4)]


def test_mixing_by_hand() -> None:
    image = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]).view(2, 1, 4, 1, 1)
    guess = torch.tensor([[0, 1, IGNORE, 1], [1, 1, 0, IGNORE]]).view(2, 4, 1, 1)
    taken = torch.tensor([[True, False, True, True], [True, True, True, True]]).view(2, 4, 1, 1)
    taken &= both_inside(guess != IGNORE)
    mixed, label = paste(image, taken), paste(guess, taken)
    # The padding of either patch, third and fourth, is neither taken nor painted over.
    assert mixed.flatten(1).tolist() == [[5, 2, 3, 4], [1, 2, 7, 8]]
    assert label.flatten(1).tolist() == [[1, 1, IGNORE, 1], [0, 1, 0, IGNORE]]


def test_boxes_vary_in_volume_around_a_half(build, batch, monkeypatch) -> None:
    method = build(DualTeacher).train()
    sides: list[float] = []
    real = dual_teacher.random_box

    def note(shape: object, side: float, device: object) -> Tensor:
        sides.append(side)
        return real(shape, side, device)

    monkeypatch.setattr(dual_teacher, "random_box", note)
    monkeypatch.setattr(dual_teacher, "follow_", lambda *_: None)
    for seed in range(25):
        torch.manual_seed(seed)
        with torch.no_grad():
            method.step(batch, EVEN, lambda loss: None)
    volumes = torch.tensor(sides) ** 3
    assert 0.4 < volumes.mean() < 0.6
    assert 0.1 < volumes.std() < 0.25  # of Beta(4, 4): 1/6


def test_the_strong_view_is_the_patch_in_other_intensity(build, batch) -> None:
    method = build(DualTeacher, intensity=0.4).train()
    seen: list[Tensor] = []
    method.student.register_forward_hook(lambda _, i, o: seen.append(i[0]))
    teacher_saw: list[Tensor] = []
    method.teachers[0].register_forward_hook(lambda _, i, o: teacher_saw.append(i[0]))
    method.step(batch, EVEN, lambda loss: None)
    assert torch.equal(teacher_saw[0], batch.image_u)
    for before, after in zip(batch.image_u, seen[0][4:], strict=True):
        contrast = after.std() / before.std()
        assert 0.6 <= contrast <= 1.4
        brightness = after.mean() - contrast * before.mean()
        assert brightness.abs() <= 0.4
        torch.testing.assert_close(after, contrast * before + brightness, atol=1e-4, rtol=1e-4)


def test_the_student_is_many_networks_and_its_teachers_are_one_each(build, batch) -> None:
    method = build(DualTeacher, dropout=0.5).train()
    with torch.no_grad():
        image = batch.image_u[:1].expand(8, -1, -1, -1, -1)
        outputs = method.student(image)
        assert any(not torch.equal(outputs[0], other) for other in outputs[1:])
        for teacher in method.teachers:
            assert torch.equal(teacher(image), teacher(image))
        method.eval()
        assert torch.equal(method.student(image), method.student(image))


def test_three_classes_and_a_single_unlabelled_patch(plain_update, make_batch) -> None:
    torch.manual_seed(0)
    method = DualTeacher(
        DualTeacher.Config(threshold=0.3), lambda dropout=0.0: VNet(1, 3, 2, dropout)
    ).train()
    for at in (EVEN, ODD):
        terms = method.step(make_batch(2, 1), at, plain_update(method))
        assert all(torch.isfinite(term) for term in terms.values())
        assert terms["pseudo"] > 0
        assert terms["implicit"] > 0


def test_defaults_are_the_published_ones() -> None:
    c = DualTeacher.Config()
    assert (c.weight, c.implicit, c.threshold, c.decay) == (1.0, 0.2, 0.95, 0.99)
    assert (c.intensity, c.dropout) == (0.5, 0.1)
    assert math.isclose(c.epoch, 1 / 200)
