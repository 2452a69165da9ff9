"""DualFete: what the student reports of a trial, who hears of it, and who learns what."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from dcamt.engine.precision import use_float32_where_needed
from dcamt.losses.overlap import cross_entropy, dice_ce
from dcamt.methods import dualfete
from dcamt.methods.dualfete import DualFete
from dcamt.networks.vnet import VNet
from dcamt.types import IGNORE, Batch, Progress

HALFWAY = Progress(100, 1000)  # of the ramp


def report(method: DualFete, batch: Batch, guess: Tensor, *regions: Tensor) -> list[float]:
    logits = method.student(batch.image_u)
    return [d.item() for d in method._feedback(logits, guess, regions, batch)]


def everywhere(batch: Batch) -> Batch:
    """The labelled patches as the unlabelled ones, too: what is right there is right here."""
    label = batch.label_l.clamp(min=0)
    inside = torch.ones_like(label, dtype=torch.bool)
    return replace(batch, label_l=label, image_u=batch.image_l, inside_u=inside)


def test_feedback_is_positive_for_right_labels_and_negative_for_wrong_ones(build, batch) -> None:
    method, batch = build(DualFete, trial=0.01).train(), everywhere(batch)
    right = batch.label_l
    (helped,) = report(method, batch, right, batch.inside_u)
    (harmed,) = report(method, batch, 1 - right, batch.inside_u)
    assert helped > 0.001
    assert harmed < -0.001
    half = torch.zeros_like(batch.inside_u)
    half[:, :, 8:] = True
    mixed = torch.where(half, right, 1 - right)
    on_half, on_other = report(method, batch, mixed, half, ~half)
    assert on_half > 0 > on_other


def test_feedback_against_a_step_that_is_really_taken(build, batch) -> None:
    method = build(DualFete, trial=0.02).train()
    guess = torch.randint(0, 2, batch.inside_u.shape)
    region = batch.inside_u & (torch.rand(batch.inside_u.shape) < 0.3)
    student = deepcopy(method.student)
    before = cross_entropy(student(batch.image_l), batch.label_l)
    dice_ce(student(batch.image_u), guess.masked_fill(~region, IGNORE)).backward()
    with torch.no_grad():
        for p in student.parameters():
            p.sub_(0.02 * p.grad / p.grad.norm())
    after = cross_entropy(student(batch.image_l), batch.label_l)
    assert abs(before - after) > 1e-4
    expected = [(before - after).item()]
    assert report(method, batch, guess, region) == pytest.approx(expected, abs=2e-5)


def test_a_trial_leaves_the_student_as_it_was(build, batch) -> None:
    """Weights and batch statistics, to the last bit, but for what the student itself has seen."""
    method = build(DualFete, trial=1.0).train()
    logits = method.student(batch.image_u)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    guess = torch.ones_like(batch.inside_u, dtype=torch.long)
    found = method._feedback(logits, guess, (batch.inside_u, ~batch.inside_u), batch)
    assert all(d.item() != 0 for d in found)
    after = method.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.grad is None for p in method.parameters())
    assert not any(d.requires_grad for d in found)


def test_without_voxels_there_is_no_step_and_nothing_to_report(build, batch) -> None:
    method = build(DualFete).train()
    guess = torch.zeros_like(batch.inside_u, dtype=torch.long)
    assert report(method, batch, guess, torch.zeros_like(batch.inside_u)) == [0.0]


class Heard:
    """Fixed logits of the teachers, fixed feedback, and what was told to whom."""

    def __init__(self, method: DualFete, batch: Batch, monkeypatch: pytest.MonkeyPatch):
        shape = (8, 2, *batch.inside_u.shape[1:])
        self.logits = [(2 * torch.randn(shape)).requires_grad_() for _ in range(2)]
        self.images: list[Tensor] = [torch.empty(0)] * 2
        self.boxes: list[Tensor] = []
        self.losses: dict[str, Tensor] = {}
        for i, teacher in enumerate(method.teachers):
            teacher.register_forward_hook(lambda _, x, y, i=i: self.answer(i, x[0]))
        method.student.register_forward_hook(lambda _, x, y: self.learn(x[0], y))
        monkeypatch.setattr(method, "_feedback", self.feedback)
        real = dualfete.cutmix
        monkeypatch.setattr(dualfete, "cutmix", lambda *a: self.box(real(*a)))

    def answer(self, number: int, image: Tensor) -> Tensor:
        self.images[number] = image
        return self.logits[number]

    def learn(self, image: Tensor, logits: Tensor) -> None:
        self.image, self.answered = image, logits

    def box(self, taken: Tensor) -> Tensor:
        self.boxes.append(taken)
        return taken

    def feedback(
        self, logits: Tensor, guess: Tensor, regions: tuple[Tensor, ...], batch: Batch
    ) -> list[Tensor]:
        self.guess, (self.agree, self.differ) = guess, regions
        return [torch.tensor(0.3), torch.tensor(-0.2)]

    def update(self, loss: Tensor, *parts: str) -> None:
        (part,) = parts
        self.losses[part] = loss


@pytest.fixture
def method(build) -> DualFete:
    return build(DualFete, weight=0.7, ramp=0.2, threshold=0.8, boxes=1.0).train()


def test_the_student_learns_what_the_surer_teacher_says_of_the_patch_itself(
    method, batch, monkeypatch
) -> None:
    heard = Heard(method, batch, monkeypatch)
    terms = method.step(batch, HALFWAY, heard.update)
    assert torch.equal(heard.image, batch.image_u)
    p = [x[2:4].softmax(1) for x in heard.logits]
    differing = 0
    for b, x, y, z in torch.ones_like(batch.inside_u).nonzero().tolist():
        each = [q[b, :, x, y, z].tolist() for q in p]
        best = max(each, key=max)
        inside = bool(batch.inside_u[b, x, y, z])
        assert heard.guess[b, x, y, z] == (best.index(max(best)) if inside else IGNORE)
        alike = (each[0][1] > 0.5) == (each[1][1] > 0.5)
        assert bool(heard.agree[b, x, y, z]) == (inside and alike)
        assert bool(heard.differ[b, x, y, z]) == (inside and not alike)
        differing += inside and not alike
    share = differing / int(batch.inside_u.sum())
    assert 0.2 < share < 0.8
    assert terms["differ"].item() == pytest.approx(share)
    torch.testing.assert_close(heard.losses["student"], dice_ce(heard.answered, heard.guess))
    torch.testing.assert_close(terms["student"], heard.losses["student"])


def test_each_teacher_looks_at_a_view_of_its_own(method, batch, monkeypatch) -> None:
    heard = Heard(method, batch, monkeypatch)
    method.step(batch, HALFWAY, heard.update)
    for image, strong, box in zip(heard.images, batch.strong_u, heard.boxes, strict=True):
        labelled, weak, view, mixed = image.split(2)
        assert torch.equal(labelled, batch.image_l)
        assert torch.equal(weak, batch.image_u)
        assert torch.equal(view, strong)
        assert box.any()
        assert not (box & ~(batch.inside_u & batch.inside_u.flip(0))).any()
        where = box.unsqueeze(1)
        assert torch.equal(mixed[where], strong.flip(0)[where])
        assert torch.equal(mixed[~where], strong[~where])


def test_the_teachers_loss_is_the_equations(method, batch, monkeypatch) -> None:
    heard = Heard(method, batch, monkeypatch)
    terms = method.step(batch, HALFWAY, heard.update)
    total = 0.0
    parts = [x.detach().split(2) for x in heard.logits]
    p = [x[1].softmax(1) for x in parts]
    for i, name in enumerate(("first", "second")):
        of_labelled, _, of_view, of_mixed = parts[i]
        sums, counts = {"agree": 0.0, "differ": 0.0}, {"agree": 0, "differ": 0}
        told = torch.full(batch.inside_u.shape, IGNORE)
        for b, x, y, z in batch.inside_u.nonzero().tolist():
            own, other = p[i][b, :, x, y, z].tolist(), p[1 - i][b, :, x, y, z].tolist()
            alike = (own[1] > 0.5) == (other[1] > 0.5)
            if alike != (max(own) > max(other)):  # the less sure where both agree, else the surer
                region = "agree" if alike else "differ"
                sums[region] -= of_view[b, :, x, y, z].log_softmax(0).max().item()
                counts[region] += 1
            source = 1 - b if heard.boxes[i][b, x, y, z] else b
            q = p[1 - i][source, :, x, y, z].tolist()
            if max(q) >= 0.8:
                told[b, x, y, z] = int(q[1] > 0.5)
        assert min(counts.values()) > 100
        supervised, cross = dice_ce(of_labelled, batch.label_l), dice_ce(of_mixed, told)
        torch.testing.assert_close(terms[f"supervised_{name}"].detach(), supervised)
        torch.testing.assert_close(terms[f"cross_{name}"].detach(), cross)
        fed = 0.3 * sums["agree"] / counts["agree"] - 0.2 * sums["differ"] / counts["differ"]
        total += fed + supervised.item() + 0.7 * math.exp(-1.25) * cross.item()
    assert heard.losses["teachers"].item() == pytest.approx(total, rel=1e-4)
    assert (terms["helped_agree"].item(), terms["helped_differ"].item()) == pytest.approx(
        (0.3, -0.2)
    )


def test_what_helped_is_said_more_surely_and_what_harmed_less_so(
    method, batch, monkeypatch
) -> None:
    heard = Heard(method, batch, monkeypatch)
    method.step(batch, HALFWAY, heard.update)
    heard.losses["teachers"].backward()
    first = heard.logits[0][2:4].softmax(1).amax(1) > heard.logits[1][2:4].softmax(1).amax(1)
    for logits, surer in zip(heard.logits, (first, ~first), strict=True):
        view = logits.detach()[4:6]
        of_own = logits.grad[4:6].gather(1, view.argmax(1, keepdim=True)).squeeze(1)
        assert (of_own[heard.agree & ~surer] < 0).all()  # d_A = 0.3: descent raises the own class
        assert (of_own[heard.differ & surer] > 0).all()  # d_D = -0.2
        heard_of = (heard.agree & ~surer) | (heard.differ & surer)
        assert not logits.grad[4:6].movedim(1, -1)[~heard_of].any()
        assert not logits.grad[2:4].any()  # what they say of the patch itself teaches


def test_student_and_teachers_are_stepped_apart(build, plain_update, weights, batch) -> None:
    method = build(DualFete).train()
    before, update = weights(method), plain_update(method)
    method.step(batch, HALFWAY, update)
    middle, after = update.states
    for name, value in before.items():
        changed_first = not torch.equal(middle[name], value)
        changed_then = not torch.equal(after[name], middle[name])
        if value.ndim > 1:
            assert changed_first == name.startswith("student.")
            assert changed_then == name.startswith("teachers.")


def test_teachers_start_apart(build) -> None:
    method = build(DualFete)
    one, two = (next(teacher.parameters()) for teacher in method.teachers)
    assert not torch.equal(one, two)


def test_trials_work_in_bfloat16_too(build, batch) -> None:
    """Weights that autocast keeps must not stand in for those of a trial."""
    method, batch = build(DualFete, trial=0.05).train(), everywhere(batch)
    fabric = Fabric(accelerator="cpu", precision="bf16-mixed")
    use_float32_where_needed(method, lambda: batch, fabric)  # as training: some kernels are wrong
    with fabric.autocast():
        (helped,) = report(method, batch, batch.label_l, batch.inside_u)
        (harmed,) = report(method, batch, 1 - batch.label_l, batch.inside_u)
    assert helped > 0.001
    assert harmed < -0.001


def test_three_classes_and_a_single_unlabelled_patch(plain_update, make_batch) -> None:
    torch.manual_seed(0)
    method = DualFete(DualFete.Config(threshold=0.3), lambda: VNet(1, 3, 2)).train()
    terms = method.step(make_batch(2, 1), HALFWAY, plain_update(method))
    assert all(torch.isfinite(term) for term in terms.values())
    assert terms["cross_first"] > 0


def test_defaults_are_the_published_ones() -> None:
    c = DualFete.Config()
    assert (c.weight, c.threshold, c.trial, c.boxes) == (1.0, 0.7, 5 * 0.01, 0.5)
    assert c.ramp == pytest.approx(20 * 150 / 15000)
