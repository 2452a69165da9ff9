"""DCA-MT: its terms, its weights, its teacher and its items."""

import math
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcamt.losses.alignment import intra_inter, items, mmd
from dcamt.losses.consistency import distillation
from dcamt.losses.overlap import dice_ce, one_hot
from dcamt.methods import dca_mt
from dcamt.methods.dca_mt import DCAMT
from dcamt.networks.backbone import Backbone
from dcamt.networks.segresnet import SegResNet
from dcamt.networks.vnet import STRIDE, VNet
from dcamt.ops.mix import random_box
from dcamt.types import IGNORE, Batch, Progress

SUPERVISED = {"supervised_teacher", "supervised_student"}
ALIGNMENT = {"mmd", "intra", "inter"}
DISTILLATION = {"to_student", "to_teacher", "review"}
WEIGHTS = {
    "mmd": 1.1,
    "intra": 0.6,
    "inter": 0.2,
    "to_student": 0.9,
    "to_teacher": 0.4,
    "review": 0.7,
}


def test_defaults_are_the_published_ones() -> None:
    c = DCAMT.Config()
    assert (c.mmd_weight, c.intra_weight, c.inter_weight) == (1.0, 0.5, 0.1)
    assert (c.ema_early, c.ema_late) == (0.99, 0.999)


@pytest.mark.parametrize(
    ("components", "terms", "attention"),
    [
        ("base", SUPERVISED, False),
        ("loss", SUPERVISED | ALIGNMENT, False),
        ("cross-attention", SUPERVISED, True),
        ("mutual", SUPERVISED | DISTILLATION, False),
        ("all", SUPERVISED | ALIGNMENT | DISTILLATION, True),
    ],
)
def test_each_row_of_the_ablation_has_its_terms(
    components, terms, attention, build, plain_update, batch
) -> None:
    """The loss is the weighted sum of exactly these terms; the ramp holds the unlabelled ones."""
    at = Progress(100, 1000)  # a quarter of the way up a ramp over 0.4 of the run
    ramp = 2.718281828 ** (-5 * 0.75**2)
    options = {k if k in DISTILLATION else f"{k}_weight": w for k, w in WEIGHTS.items()}
    method = build(DCAMT, components=components, ramp=0.4, **options).train()
    assert (method.pair.exchange is not None) == attention
    names = [name for name, _ in method.named_parameters()]
    assert any(name.startswith("pair.exchange.") for name in names) == attention
    update = plain_update(method)
    found = method.step(batch, at, update)
    assert found.keys() == terms
    expected = sum(
        value.item() * (1 if name in SUPERVISED else ramp * WEIGHTS[name])
        for name, value in found.items()
    )
    assert update.losses == [pytest.approx(expected, rel=1e-5)]


def test_unlabelled_terms_hardly_count_at_the_start(build, plain_update, batch) -> None:
    method = build(DCAMT, ramp=0.4).train()
    update = plain_update(method)
    terms = method.step(batch, Progress(0, 1000), update)
    supervised = sum(terms[name].item() for name in SUPERVISED)
    rest = sum(abs(terms[name].item()) for name in ALIGNMENT | DISTILLATION)
    assert rest > 0
    assert abs(update.losses[0] - supervised) <= 0.007 * rest


@pytest.mark.parametrize(("units", "compare"), [("tokens", "means"), ("samples", "pairs")])
def test_terms_are_the_equations_on_both_branches(
    units, compare, build, plain_update, batch
) -> None:
    options = {
        "units": units,
        "compare": compare,
        "targets": "soft",
        "paste": 0,
        "review": 0,
        "foreground_share": 0.2,
        "temperature": 2.0,
        "bandwidths": [0.5, 2.0],
    }
    method = build(DCAMT, **options).train()
    image = torch.cat([batch.image_l, batch.image_u])
    with torch.no_grad():
        logits_t, logits_s, features_t, features_s = method.pair(image, image)
    guess = logits_t[2:].argmax(1).masked_fill(~batch.inside_u, IGNORE)
    classes = torch.cat([batch.label_l, guess])
    t, s, classes = items(features_t, features_s, one_hot(classes, 2), (16, 16, 16), units, 0.2)
    intra, inter = intra_inter(t, s, classes, compare == "means")
    expected = {
        "supervised_teacher": dice_ce(logits_t[:2], batch.label_l),
        "supervised_student": dice_ce(logits_s[:2], batch.label_l),
        "mmd": mmd(t, s, (0.5, 2.0)),
        "intra": intra,
        "inter": inter,
        "to_student": distillation(logits_s[2:], logits_t[2:], batch.inside_u, 2.0),
        "to_teacher": distillation(logits_t[2:], logits_s[2:], batch.inside_u, 2.0),
    }
    found = method.step(batch, Progress(0, 1000), plain_update(method))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].detach(), value, rtol=1e-4, atol=1e-6)
    assert expected["to_student"] > 0


def test_the_label_is_used_where_there_is_one(
    build, plain_update, batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Class of a voxel: the label of a labelled patch, the teacher's guess in the others."""
    seen: list[Tensor] = []

    def spy(teacher: Tensor, student: Tensor, voxels: Tensor, *rest: object) -> object:
        seen.append(voxels)
        return items(teacher, student, voxels, *rest)

    monkeypatch.setattr(dca_mt, "items", spy)
    method = build(DCAMT, components="loss").train()
    with torch.no_grad():
        method.pair.teacher.head.bias.copy_(torch.tensor([0.0, 1e4]))  # foreground everywhere
        method.pair.student.head.bias.copy_(torch.tensor([1e4, 0.0]))
    method.step(batch, Progress(0, 10), plain_update(method))
    (voxels,) = seen
    assert torch.equal(voxels[:2], one_hot(batch.label_l, 2))
    assert torch.equal(voxels[2:, 1], batch.inside_u.float())
    assert not voxels[2:, 0].any()
    assert (~batch.inside_u).any()


@pytest.mark.parametrize("boxes", [1, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_mixed_patches_lie_within_labelled_ones_and_learn_from_the_unmixed(
    seed, boxes, build, plain_update, batch
) -> None:
    batch.inside_u[0, 0, :4, 0] = False
    options = {"components": "mutual", "paste": 0.5, "boxes": boxes, "targets": "soft", "review": 0}
    method = build(DCAMT, **options).train()
    torch.manual_seed(seed)
    drawn = [random_box((32, 16, 16), 0.5, torch.device("cpu")) for _ in range(2)]
    assert not torch.equal(*drawn)
    # Both places of unlabelled patches lie within a labelled patch; with two boxes a patch, both
    # show the first one.
    shown = [0, 1] if boxes == 1 else [0, 0]
    image = torch.cat([batch.image_l, batch.image_l])
    label = torch.cat([batch.label_l, batch.label_l])
    learnt = torch.zeros_like(batch.inside_u)
    for place, (of, box) in enumerate(zip(shown, drawn, strict=True)):
        for x, y, z in (box & batch.inside_u[of]).nonzero().tolist():  # no padding is mixed in
            image[2 + place, 0, x, y, z] = batch.image_u[of, 0, x, y, z]
            label[2 + place, x, y, z] = IGNORE
            learnt[place, x, y, z] = True
    with torch.no_grad():
        seen = batch.image_u[: 2 // boxes]
        clean_t, clean_s, _, _ = method.pair(seen, seen)
        logits_t, logits_s, _, _ = method.pair(image, image)
    expected = {
        "supervised_teacher": dice_ce(logits_t, label),
        "supervised_student": dice_ce(logits_s, label),
        "to_student": distillation(logits_s[2:], clean_t[shown], learnt, 1.0),
        "to_teacher": distillation(logits_t[2:], clean_s[shown], learnt, 1.0),
    }
    torch.manual_seed(seed)
    found = method.step(batch, Progress(0, 1000), plain_update(method))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].detach(), value, rtol=1e-4, atol=1e-6)
    assert expected["to_student"] > 0


@pytest.mark.parametrize("paste", [0.0, 0.67])
def test_where_the_branches_differ_each_has_a_second_look(
    paste, build, plain_update, batch
) -> None:
    """Voxel by voxel: the label where one is known, else what both say of the unmixed patch."""
    method = build(DCAMT, components="mutual", paste=paste).train()
    with torch.no_grad():  # so that they differ in many places, not in all
        method.pair.teacher.head.weight.neg_()
    torch.manual_seed(2)
    taken = method._patches(batch)
    with torch.no_grad():
        logits_t, logits_s, _, _ = method.pair(taken.image_t, taken.image_s)
    said_t, said_s = (z.argmax(1) for z in taken.clean or (logits_t[2:], logits_s[2:]))
    expected, guessed = 0.0, 0
    for logits in (logits_t, logits_s):
        p, errors = logits.softmax(1), []
        for b, x, y, z in (logits_t.argmax(1) != logits_s.argmax(1)).nonzero().tolist():
            label = int(taken.label[b, x, y, z])
            place = (b - 2, x, y, z)
            if label == IGNORE and b >= 2 and taken.learn[place] and said_t[place] == said_s[place]:
                label, guessed = int(said_t[place]), guessed + 1
            if label != IGNORE:
                errors.append((1 - float(p[b, label, x, y, z])) ** 2)  # both classes are off alike
        expected += sum(errors) / len(errors)
        assert 0 < len(errors) < taken.label.numel()
    assert (guessed > 0) == (paste > 0)  # without mixing they see nothing but the plain patch
    torch.manual_seed(2)
    found = method.step(batch, Progress(5, 10), plain_update(method))
    assert found["review"].item() == pytest.approx(expected, rel=1e-3)


def test_branches_that_agree_have_nothing_to_review(build, plain_update, batch) -> None:
    method = build(DCAMT, components="mutual").train()
    with torch.no_grad():
        for branch in (method.pair.teacher, method.pair.student):
            branch.head.bias.copy_(torch.tensor([1e4, 0.0]))
    assert method.step(batch, Progress(5, 10), plain_update(method))["review"].item() == 0


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "boxes", "pairs"),
    [
        (2, 2, 2, [(0, 0), (0, 1)]),
        (2, 2, 1, [(0, 0), (1, 1)]),
        (2, 4, 2, [(0, 0), (1, 1), (0, 1), (1, 0)]),
        (3, 4, 3, [(0, 0), (1, 1), (0, 1), (1, 2)]),
        (1, 3, 2, [(0, 0), (1, 0), (0, 0)]),
        (3, 1, 2, [(0, 0)]),
    ],
)
def test_views_of_one_patch_lie_within_different_labelled_patches(
    labeled, unlabeled, boxes, pairs, build, plain_update
) -> None:
    size = (32, 16, 16)
    constant = torch.arange(max(labeled, unlabeled)).view(-1, 1, 1, 1, 1).expand(-1, 1, *size)
    batch = Batch(
        constant[:labeled].float(),
        torch.zeros(labeled, *size, dtype=torch.int64),
        constant[:unlabeled] + 100.0,
        torch.ones(unlabeled, *size, dtype=torch.bool),
        ("",) * (labeled + unlabeled),
    )
    method = build(DCAMT, boxes=boxes).train()
    seen: list[Tensor] = []
    method.pair.register_forward_pre_hook(lambda pair, inputs: seen.append(inputs[0]))
    method.step(batch, Progress(0, 10), plain_update(method))
    clean, mixed = seen
    assert len(clean) == math.ceil(unlabeled / boxes)
    assert torch.equal(mixed[:labeled], batch.image_l)
    found = [(int(patch.max()) - 100, int(patch.min())) for patch in mixed[labeled:]]
    assert found == pairs


def looked_at(method: DCAMT, batch: Batch, update: Any) -> tuple[list[Any], Any]:
    """What the pair was shown, pass by pass, and what the step took from it."""
    seen: list[Any] = []
    method.pair.register_forward_pre_hook(lambda pair, inputs: seen.append(inputs))
    method.train().step(batch, Progress(5, 10), update(method))
    torch.manual_seed(3)
    return seen, method._patches(batch)


@pytest.mark.parametrize("paste", [0.0, 0.67])
@pytest.mark.parametrize("strong", [1, 2])
def test_branches_learn_from_strong_views_what_was_said_of_the_patch(
    strong, paste, build, plain_update, batch
) -> None:
    batch = replace(batch, strong_u=tuple(v + 100 for v in batch.strong_u[:strong]))
    method = build(DCAMT, strong=strong, paste=paste)
    assert method.views == strong
    seen, taken = looked_at(method, batch, plain_update)
    (clean_t, clean_s), (mixed_t, mixed_s) = seen[:2]
    assert torch.equal(clean_t, batch.image_u) and clean_s is clean_t
    own = taken.learn.unsqueeze(1)
    for image, view in ((taken.image_t, batch.strong_u[0]), (taken.image_s, batch.strong_u[-1])):
        assert torch.equal(image[:2], batch.image_l)
        assert torch.equal(image[2:][own], view[own])
        assert (image[2:][~own] < 50).all() or not paste
    assert torch.equal(mixed_t, mixed_s) == (strong == 1)


@pytest.mark.parametrize(("around", "labels"), [("unlabeled", False), ("labeled", True)])
def test_what_lies_around_a_box(around, labels, build, plain_update, batch) -> None:
    batch = replace(batch, image_u=batch.image_u + 100, strong_u=())
    _, taken = looked_at(build(DCAMT, around=around), batch, plain_update)
    surrounded = taken.image_t[2:, 0]
    assert bool((taken.label[2:] != IGNORE).any()) == labels
    assert bool((surrounded < 50).any()) == labels
    if around == "unlabeled":  # the other unlabelled patch, and what the branches say of it
        other = batch.image_u[:, 0].roll(1, 0)
        own = surrounded == batch.image_u[:, 0]
        assert torch.equal(surrounded[~own], other[~own]) and not own.all()
        inside = torch.where(own, batch.inside_u, batch.inside_u.roll(1, 0))
        assert torch.equal(taken.learn, inside)
        with torch.no_grad():
            method = build(DCAMT, around=around).train()
            torch.manual_seed(3)
            said = method._patches(batch).clean[0]
            whole = method.pair(batch.image_u, batch.image_u)[0]
        place = own.unsqueeze(1).expand_as(said)
        torch.testing.assert_close(said[place], whole[place], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(said[~place], whole.roll(1, 0)[~place], rtol=1e-3, atol=1e-3)


def test_either_kind_of_surrounding_comes_up(build, batch) -> None:
    method = build(DCAMT, around="either").train()
    kinds = set()
    for seed in range(12):
        torch.manual_seed(seed)
        taken = method._patches(batch)
        kinds |= {bool((label != IGNORE).any()) for label in taken.label[2:]}
    assert kinds == {True, False}


@pytest.mark.parametrize("targets", ["soft", "hard"])
def test_branches_teach_only_where_they_are_confident(targets, build, plain_update, batch) -> None:
    sure = build(DCAMT, confidence=1.0, targets=targets).train()
    terms = sure.step(batch, Progress(5, 10), plain_update(sure))
    assert terms["to_student"].item() == pytest.approx(0, abs=1e-6)
    says = torch.randn(2, 2, *batch.image_u.shape[2:])
    half = build(DCAMT, confidence=0.7)
    found = half._sure(says, batch.inside_u)
    expected = batch.inside_u & (says.softmax(1).max(1).values >= 0.7)
    assert torch.equal(found, expected) and found.any() and (found != batch.inside_u).any()


def test_without_a_known_token_nothing_is_aligned() -> None:
    """As at a site without labels, where no voxel is sure."""
    teacher, student = (torch.empty(0, 8, requires_grad=True) for _ in range(2))
    loss = mmd(teacher, student)
    loss.backward()
    assert loss.item() == 0
    nothing = torch.empty(0, dtype=torch.int64)
    assert [term.item() for term in intra_inter(teacher, student, nothing)] == [0, 0]


def test_one_unlabelled_patch_of_one_bottleneck_voxel_suffices_for_group_norm(plain_update) -> None:
    method = DCAMT(DCAMT.Config(), partial(SegResNet, 1, 2, 8))
    image, label = torch.randn(1, 1, 8, 8, 8), torch.randint(0, 2, (1, 8, 8, 8))
    inside = torch.ones(1, 8, 8, 8, dtype=torch.bool)
    batch = Batch(image, label, image + 1, inside, ("",) * 2 * len(image))
    terms = method.step(batch, Progress(5, 10), plain_update(method))
    assert all(term.isfinite() for term in terms.values())


def test_the_larger_stride_of_two_networks_decides_how_many_patches_are_seen(plain_update) -> None:
    """A V-Net has one bottleneck voxel in a patch of 16 voxels, a SegResNet eight."""

    def network(name: str = "segresnet", **sizes: object) -> Backbone:
        return VNet(1, 2, 2) if name == "vnet" else SegResNet(1, 2, 8)

    config = DCAMT.Config(components="mutual", teacher_network={"name": "vnet"}, boxes=2)
    method = DCAMT(config, network).train()
    image, label = torch.randn(2, 1, 16, 16, 16), torch.randint(0, 2, (2, 16, 16, 16))
    inside = torch.ones(2, 16, 16, 16, dtype=torch.bool)
    batch = Batch(image, label, image + 1, inside, ("",) * 2 * len(image))
    terms = method.step(batch, Progress(5, 10), plain_update(method))
    assert all(term.isfinite() for term in terms.values())


def test_patches_of_one_bottleneck_voxel_are_looked_at_in_pairs(build, plain_update) -> None:
    """Batch norm takes the variance of the batch: of one value there is none."""
    size = (STRIDE,) * 3
    image, inside = torch.randn(2, 1, *size), torch.ones(2, *size, dtype=torch.bool)
    batch = Batch(image, inside.long(), image.clone(), inside, ("",) * 4)
    method = build(DCAMT, boxes=2).train()
    terms = method.step(batch, Progress(0, 10), plain_update(method))
    assert all(term.isfinite() for term in terms.values())


# The teacher


def teacher_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        k.removeprefix("pair.teacher."): v
        for k, v in state.items()
        if k.startswith("pair.teacher.")
    }


def student_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        k.removeprefix("pair.student."): v
        for k, v in state.items()
        if k.startswith("pair.student.")
    }


@pytest.mark.parametrize("components", ["base", "all"])
@pytest.mark.parametrize("teacher", ["gradient", "ema", "both"])
@pytest.mark.parametrize(("iteration", "decay"), [(49, 0.99), (50, 0.999)])
def test_how_the_teacher_moves(
    teacher, components, iteration, decay, build, plain_update, weights, batch
) -> None:
    """By its gradient, by the average of the student, or by the first and then the second."""
    method = build(DCAMT, teacher=teacher, components=components).train()
    with torch.no_grad():  # apart from the student, or an average would show nothing
        for p in method.pair.teacher.parameters():
            p.add_(0.05)
    before, update = weights(method), plain_update(method)
    method.step(batch, Progress(iteration, 100), update)
    (stepped,), after = update.states, weights(method)
    by_gradient = teacher != "ema"
    assert all(p.requires_grad == by_gradient for p in method.pair.teacher.parameters())
    assert all((p.grad is not None) == by_gradient for p in method.pair.teacher.parameters())
    assert (not equal(teacher_of(before), teacher_of(stepped))) == by_gradient
    assert not equal(student_of(before), student_of(stepped))
    assert equal(student_of(stepped), student_of(after)), "the student follows nobody"
    student = student_of(after)
    for key, value in teacher_of(stepped).items():
        pulled = decay * value + (1 - decay) * student[key]
        expected = value if teacher == "gradient" else pulled
        torch.testing.assert_close(teacher_of(after)[key], expected, rtol=1e-5, atol=1e-7)
    assert equal(teacher_of(stepped), teacher_of(after)) == (teacher == "gradient")


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def test_an_averaged_teacher_starts_as_the_student(build, weights) -> None:
    state = weights(build(DCAMT, teacher="ema"))
    assert equal(teacher_of(state), student_of(state))
    state = weights(build(DCAMT, teacher="gradient"))
    assert not equal(teacher_of(state), student_of(state))


@pytest.mark.parametrize("to_student", [True, False])
def test_each_direction_of_distillation_moves_its_learner_only(
    to_student, build, plain_update, weights, batch
) -> None:
    weight = {"to_student": float(to_student), "to_teacher": float(not to_student)}
    method = build(DCAMT, components="mutual", review=0, **weight).train()
    batch.label_l.fill_(IGNORE)  # no supervision: only distillation is left
    before, update = weights(method), plain_update(method)
    method.step(batch, Progress(900, 1000), update)
    after = weights(method)
    assert equal(teacher_of(before), teacher_of(after)) == to_student
    assert equal(student_of(before), student_of(after)) != to_student


# Prediction


@torch.no_grad()
def test_prediction_is_the_mean_of_teacher_and_student(build, batch) -> None:
    method = build(DCAMT, components="base").eval()
    teacher = method.pair.teacher(batch.image_u).softmax(1)
    student = method.pair.student(batch.image_u).softmax(1)
    branches = method.branches(batch.image_u)
    torch.testing.assert_close(branches, torch.stack([teacher, student]))
    torch.testing.assert_close(method.predict(batch.image_u), (teacher + student) / 2)


@torch.no_grad()
def test_prediction_exchanges_features(build, batch) -> None:
    method = build(DCAMT, components="cross-attention").train()
    teacher = method.pair.teacher(batch.image_u).softmax(1)
    assert not torch.allclose(method.branches(batch.image_u)[0], teacher, atol=1e-3)
    method.pair.exchange.to_teacher.out.weight.zero_()
    method.pair.exchange.to_teacher.out.bias.zero_()
    torch.testing.assert_close(method.branches(batch.image_u)[0], teacher)


# Items


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    shape = (2, 5, 2, 1, 2)
    return torch.randn(shape, generator=random), torch.randn(shape, generator=random)


@pytest.fixture
def classes() -> Tensor:
    """Blocks of mixed classes; one of patch 0 is padding, one of patch 1 background."""
    random = torch.Generator().manual_seed(1)
    shares = torch.tensor([[5, 3, 2], [2, 5, 3], [1, 2, 6], [95, 3, 2]], dtype=torch.float)
    out = torch.empty(2, 2 * STRIDE, STRIDE, 2 * STRIDE, dtype=torch.long)
    for b in range(2):
        for n, (x, z) in enumerate((x, z) for x in range(2) for z in range(2)):
            drawn = torch.multinomial(shares[(n + b) % 4], STRIDE**3, True, generator=random)
            place = (slice(x * STRIDE, (x + 1) * STRIDE), slice(None))
            out[(b, *place, slice(z * STRIDE, (z + 1) * STRIDE))] = drawn.reshape(3 * (STRIDE,))
    out[0, STRIDE:, :, STRIDE:] = IGNORE
    out[1, :STRIDE, :, STRIDE:] = 0
    out[1, :STRIDE, :, :STRIDE].masked_fill_(out[1, :STRIDE, :, :STRIDE] == 1, IGNORE)
    return out


def test_one_hot_has_no_class_for_what_is_ignored(classes) -> None:
    hot = one_hot(classes, 3)
    assert hot.shape == (2, 3, *classes.shape[1:])
    for k in range(3):
        assert torch.equal(hot[:, k], (classes == k).float())


def class_of_token(below: list[int], share: float) -> int | None:
    """The rule for one bottleneck voxel, in words."""
    known = [value for value in below if value != IGNORE]
    if not known:
        return None
    foreground = Counter(value for value in known if value > 0).most_common(1)
    if foreground and foreground[0][1] >= share * len(known):
        return foreground[0][0]
    return 0


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, [1, 1, 2, 2, 0, 1, 1]),
        (0.1, [1, 1, 2, 2, 0, 0, 1]),
        (0.4, [0, 1, 2, 2, 0, 0, 0]),
        (1.0, [0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_tokens_are_bottleneck_voxels_classed_by_what_lies_below(
    share, expected, pair, classes
) -> None:
    """Foreground from ``share`` of the known voxels on; nothing known, no item."""
    teacher, student, found = items(*pair, one_hot(classes, 3), (16, 16, 16), "tokens", share)
    rows_t, rows_s, labels = [], [], []
    for b in range(2):
        for x in range(2):
            for z in range(2):
                below = classes[b, x * STRIDE : (x + 1) * STRIDE, :, z * STRIDE : (z + 1) * STRIDE]
                label = class_of_token(below.flatten().tolist(), share)
                if label is not None:
                    rows_t.append(pair[0][b, :, x, 0, z])
                    rows_s.append(pair[1][b, :, x, 0, z])
                    labels.append(label)
    assert found.tolist() == labels == expected
    assert torch.equal(teacher, torch.stack(rows_t))
    assert torch.equal(student, torch.stack(rows_s))


def test_samples_are_pooled_patches_with_their_main_foreground(pair, classes) -> None:
    classes = classes.clone()
    classes[0][classes[0] == 1] = 0  # background is most of patch 0, and 2 its foreground
    teacher, student, found = items(*pair, one_hot(classes, 3), (16, 16, 16), "samples", 0.1)
    for rows, features in ((teacher, pair[0]), (student, pair[1])):
        assert rows.shape == (2, 5)
        for b in range(2):
            for d in range(5):
                mean = sum(features[b, d].flatten().tolist()) / 4
                assert rows[b, d].item() == pytest.approx(mean, abs=1e-6)
    labels = []
    for patch in classes:
        votes = Counter(v for v in patch.flatten().tolist() if v > 0)
        labels.append(votes.most_common(1)[0][0])
    assert found.tolist() == labels
    assert labels[0] == 2
    nothing = torch.zeros_like(classes)
    assert items(*pair, one_hot(nothing, 3), (16, 16, 16), "samples", 0.1)[2].tolist() == [0, 0]


def test_items_keep_the_gradient(pair, classes) -> None:
    for units in ("tokens", "samples"):
        teacher = pair[0].clone().requires_grad_()
        items(teacher, pair[1], one_hot(classes, 3), (16, 16, 16), units, 0.1)[0].sum().backward()
        assert teacher.grad.abs().max() > 0


def test_five_rows_share_their_start(build, weights) -> None:
    """The networks of every row of the ablation start from the same weights."""
    rows = [
        weights(build(DCAMT, components=row, seed=3))
        for row in ("base", "loss", "cross-attention", "mutual", "all")
    ]
    for row in rows[1:]:
        assert equal(rows[0], row)


def test_attention_has_the_configured_heads(build) -> None:
    method = build(DCAMT, heads=2, head_size=8, shared_attention=True)
    assert method.pair.exchange.to_teacher is method.pair.exchange.to_student
    assert method.pair.exchange.to_teacher.heads == 2
    assert isinstance(method.pair.exchange.to_teacher.query, nn.Linear)
    assert method.pair.exchange.to_teacher.query.out_features == 16


def test_hard_targets_are_the_other_branch_s_classes(build, plain_update, batch) -> None:
    """Each branch learns the other's most probable class where, and only where, no label is."""
    method = build(DCAMT, paste=0).train()
    seen = {}
    method.pair.register_forward_hook(
        lambda _, inputs, output: seen.update(logits=[o.detach() for o in output[:2]])
    )
    terms = method.step(batch, Progress(900, 1000), plain_update(method))
    logits_t, logits_s = seen["logits"]
    for name, learner, source in (
        ("to_student", logits_s, logits_t),
        ("to_teacher", logits_t, logits_s),
    ):
        target = source.argmax(1)
        target[: len(batch.image_l)] = IGNORE
        target[len(batch.image_l) :][~batch.inside_u] = IGNORE
        torch.testing.assert_close(terms[name].detach(), dice_ce(learner, target))


def test_every_weight_learns_under_autocast(build, plain_update, batch, monkeypatch) -> None:
    """Though unmixed patches go through the same weights without gradients first.

    Today's PyTorch keeps casts with and without gradients apart; for older ones they are dropped.
    """
    dropped = []
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: dropped.append(True))
    method = build(DCAMT, heads=1, head_size=4).train()
    update = plain_update(method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        method.step(batch, Progress(9, 10), update)
        assert dropped == [True]
    assert [name for name, p in method.named_parameters() if p.grad is None] == []
