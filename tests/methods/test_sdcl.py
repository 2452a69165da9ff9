"""SDCL: where the students disagree, what corrects them there, and who follows whom."""

import math

import pytest
import torch
from torch import Tensor
from torch.optim import Adam

from dcamt.config import TrainConfig
from dcamt.losses.overlap import dice_ce
from dcamt.methods.sdcl import SDCL, corrections
from dcamt.networks.resnet import ResNet34
from dcamt.networks.vnet import VNet
from dcamt.ops.mix import copy_paste, random_box
from dcamt.types import IGNORE, Batch, Progress

SELF_TRAINING = Progress(500, 1000)


def test_corrections_by_hand() -> None:
    """Four voxels: right, wrong, wrong in a guessed label, wrong where both agree."""
    p = torch.tensor([[0.3, 0.7], [0.9, 0.1], [0.4, 0.6], [0.8, 0.2]])
    label = torch.tensor([1, 1, 0, 1]).view(1, 4, 1, 1)
    weight = torch.tensor([1.0, 1.0, 0.5, 1.0]).view(1, 4, 1, 1)
    differ = torch.tensor([True, True, True, False]).view(1, 4, 1, 1)
    mse, kl = corrections(p.log().T.reshape(1, 2, 4, 1, 1), label, weight, differ)
    assert mse.item() == pytest.approx((0.3**2 + 0.9**2 + 0.5 * 0.6**2) / 3)

    def from_uniform(a: float, b: float) -> float:
        return 0.5 * math.log(0.5 / a) + 0.5 * math.log(0.5 / b)

    expected = (from_uniform(0.9, 0.1) + 0.5 * from_uniform(0.4, 0.6)) / 2
    assert kl.item() == pytest.approx(expected, rel=1e-5)
    nothing = corrections(torch.randn(1, 2, 4, 1, 1), label, weight, torch.zeros_like(differ))
    assert nothing == (0, 0)


def test_to_give_up_what_is_wrong_is_to_doubt_it() -> None:
    """Descent on L_kl takes a wrong voxel towards equal probabilities, whatever they are."""
    logits = torch.tensor([[3.0, -1.0, 0.5]]).T.reshape(1, 3, 1, 1, 1).requires_grad_()
    here = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    for _ in range(2000):
        label = (logits.detach().argmax(1) + 1) % 3  # always another class
        _, kl = corrections(logits, label, here.float(), here)
        (gradient,) = torch.autograd.grad(kl, logits)
        logits = (logits.detach() - 0.5 * gradient).requires_grad_()
    assert kl.item() == pytest.approx(0, abs=1e-5)
    assert logits.softmax(1).flatten().tolist() == pytest.approx([1 / 3] * 3, abs=2e-3)


def known_answers(method: SDCL, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """A teacher that labels a block, and students that answer at random."""
    answer = torch.zeros(2, 2, *batch.inside_u.shape[1:])
    answer[:, 1] = -1
    answer[:, 1, 6:20, 3:12, 3:12] = 1
    method.teacher.register_forward_hook(lambda *_: answer)
    said = {name: torch.randn(4, 2, *batch.inside_u.shape[1:]) for name in ("vnet", "resnet")}
    said = {name: logits.requires_grad_() for name, logits in said.items()}
    for name, logits in said.items():
        getattr(method, name).register_forward_hook(lambda *_, x=logits: x)
    return answer.argmax(1), said


def test_terms_are_the_equations(build, batch) -> None:
    method = build(SDCL, mse=0.6, kl=0.07, weight=0.3).train()
    guess, said = known_answers(method, batch)
    guess = guess.masked_fill(~batch.inside_u, IGNORE)
    torch.manual_seed(3)
    mask = ~random_box(batch.inside_u.shape[1:], 2 / 3, torch.device("cpu"))
    _, known, guessed = copy_paste(batch, guess, mask)
    torch.manual_seed(3)
    losses: list[Tensor] = []
    terms = method.step(batch, SELF_TRAINING, losses.append)
    p = {name: logits.detach().softmax(1) for name, logits in said.items()}
    squares, doubts = dict.fromkeys(said, 0.0), dict.fromkeys(said, 0.0)
    wrongs, differing, voxels = dict.fromkeys(said, 0), 0, 0
    for b, x, y, z in torch.ones_like(known).nonzero().tolist():
        label, weight = int(known[b, x, y, z]), 1.0
        if label == IGNORE:
            label, weight = int(guessed[b, x, y, z]), 0.3
        if label == IGNORE:
            continue
        voxels += 1
        each = {name: q[b, :, x, y, z].tolist() for name, q in p.items()}
        if len({q[1] > q[0] for q in each.values()}) == 1:
            continue
        differing += 1
        for name, (background, foreground) in each.items():
            squares[name] += weight * (foreground - label) ** 2
            if (foreground > background) != label:
                wrongs[name] += 1
                doubts[name] -= weight * (math.log(background * foreground) / 2 + math.log(2))
    assert differing == sum(wrongs.values()), "of two that differ one is wrong"
    assert min(wrongs.values()) > 100
    assert terms["differ"].item() == pytest.approx(differing / voxels)
    total = 0.0
    for name, logits in said.items():
        expected = {
            "supervised": dice_ce(logits, known).item(),
            "pseudo": dice_ce(logits, guessed).item(),
            "mse": squares[name] / differing,
            "kl": doubts[name] / wrongs[name],
        }
        found = {key: terms[f"{key}_{name}"].item() for key in expected}
        assert found == pytest.approx(expected, rel=1e-4)
        total += expected["supervised"] + 0.3 * expected["pseudo"]
        total += 0.6 * expected["mse"] + 0.07 * expected["kl"]
    assert [loss.item() for loss in losses] == [pytest.approx(total, rel=1e-4)]


def test_both_students_see_the_same_mixed_patches(build, batch) -> None:
    method = build(SDCL).train()
    seen: dict[str, Tensor] = {}
    for name in ("vnet", "resnet", "teacher"):
        network = getattr(method, name)
        network.register_forward_hook(lambda _, i, o, n=name: seen.update({n: i[0]}))
    method.step(batch, SELF_TRAINING, lambda loss: None)
    assert torch.equal(seen["vnet"], seen["resnet"])
    assert torch.equal(seen["teacher"], batch.image_u)
    assert not torch.equal(seen["vnet"][:2], batch.image_l)
    assert not torch.equal(seen["vnet"][2:], batch.image_u)


def test_pretraining_mixes_labelled_patches_alone_and_corrects_nothing(
    build, plain_update, batch
) -> None:
    """2 of 17 parts of the run; the teacher is the first student until it ends."""
    method = build(SDCL).train()
    torch.manual_seed(3)
    mask = ~random_box(batch.inside_u.shape[1:], 2 / 3, torch.device("cpu"))
    image, label = batch.image_l.flip(0).clone(), batch.label_l.flip(0).clone()
    image[:, :, mask], label[:, mask] = batch.image_l[:, :, mask], batch.label_l[:, mask]
    with torch.no_grad():
        expected = [dice_ce(n(image), label).item() for n in (method.vnet, method.resnet)]
    batch.image_u.fill_(torch.nan)  # never looked at
    update = plain_update(method)
    torch.manual_seed(3)
    terms = method.step(batch, Progress(1, 17), update)
    assert [terms[f"supervised_{n}"].item() for n in ("vnet", "resnet")] == pytest.approx(expected)
    assert not any(terms[f"{t}_{n}"] for t in ("pseudo", "mse", "kl") for n in ("vnet", "resnet"))
    assert terms["differ"] > 0
    assert update.losses == [pytest.approx(sum(expected), rel=1e-5)]
    taught = zip(method.teacher.parameters(), method.vnet.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in taught)


def test_then_the_teacher_follows_the_first_student_slowly(
    build, plain_update, weights, batch
) -> None:
    method = build(SDCL).train()
    before = weights(method)
    method.step(batch, Progress(2, 17), plain_update(method))
    after = weights(method)
    for key in (k for k in after if k.startswith("teacher.")):
        student = after[key.replace("teacher.", "vnet.", 1)]
        torch.testing.assert_close(after[key], 0.99 * before[key] + 0.01 * student)


def test_the_second_student_is_a_resnet_of_the_same_width(build) -> None:
    method = build(SDCL)
    assert type(method.vnet) is VNet
    assert type(method.resnet) is ResNet34
    assert method.resnet.width == method.vnet.width == 2


def test_the_optimiser_is_adam_at_a_rate_of_its_own_that_stays(build) -> None:
    method = build(SDCL)
    train = TrainConfig(learning_rate=0.05, weight_decay=0.1)
    optimizer = method.optimizer("all", method.parts()["all"], train)
    assert type(optimizer) is Adam
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-3, 0)
    assert "initial_lr" not in group


@torch.no_grad()
def test_prediction_is_the_mean_of_both_students(build, batch) -> None:
    method = build(SDCL).eval()
    expected = [n(batch.image_u).softmax(1) for n in (method.vnet, method.resnet)]
    for p in method.teacher.parameters():
        p.zero_()
    torch.testing.assert_close(method.predict(batch.image_u), (expected[0] + expected[1]) / 2)


def test_three_classes_and_a_single_unlabelled_patch(plain_update, make_batch) -> None:
    torch.manual_seed(0)
    method = SDCL(SDCL.Config(), lambda: VNet(1, 3, 2)).train()
    for at in (Progress(1, 17), SELF_TRAINING):
        terms = method.step(make_batch(2, 1), at, plain_update(method))
        assert all(torch.isfinite(term) for term in terms.values())
    assert terms["mse_vnet"] > 0
    assert terms["kl_resnet"] > 0


def test_defaults_are_the_published_ones() -> None:
    c = SDCL.Config()
    assert (c.mse, c.kl, c.paste, c.weight) == (0.5, 0.05, 2 / 3, 0.5)
    assert (c.decay, c.learning_rate) == (0.99, 1e-3)
    assert c.pretrain == pytest.approx(2000 / 17000)
