"""Every loss against a slow reference: Python loops over voxels, items and pairs."""

import math
import statistics
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dcamt.losses.alignment import intra_inter, mmd, squared_distances
from dcamt.losses.consistency import distillation, masked_mean, soft_dice_between, softmax_mse
from dcamt.losses.overlap import cross_entropy, dice_ce, one_hot, soft_dice
from dcamt.types import IGNORE

SHAPE = (2, 3, 2, 3, 2)  # B, K, X, Y, Z


def voxels(mask: Tensor) -> Iterator[tuple[int, ...]]:
    """(b, x, y, z) of every true voxel."""
    return (tuple(where) for where in mask.nonzero().tolist())


def softmax(logits: Tensor, at: tuple[int, ...], tau: float = 1.0) -> list[float]:
    b, x, y, z = at
    powers = [math.exp(float(value) / tau) for value in logits.detach()[b, :, x, y, z]]
    return [power / sum(powers) for power in powers]


@pytest.fixture
def logits() -> Tensor:
    return 2 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def other() -> Tensor:
    return 2 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def label() -> Tensor:
    """All three classes and some voxels that do not count."""
    random = torch.Generator().manual_seed(3)
    label = torch.randint(0, 3, (2, 2, 3, 2), generator=random)
    label[0, 1] = IGNORE
    label[1, 0, 2, 1] = IGNORE
    return label


@pytest.fixture
def inside(label: Tensor) -> Tensor:
    return label != IGNORE


def slow_cross_entropy(logits: Tensor, label: Tensor) -> float:
    losses = [-math.log(softmax(logits, at)[label[at]]) for at in voxels(label != IGNORE)]
    return statistics.fmean(losses)


def slow_dice(logits: Tensor, label: Tensor, smooth: float) -> float:
    losses = []
    for k in range(1, logits.shape[1]):
        overlap = size = 0.0
        for at in voxels(label != IGNORE):
            p, y = softmax(logits, at)[k], float(label[at] == k)
            overlap += p * y
            size += p * p + y * y
        losses.append(1 - (2 * overlap + smooth) / (size + smooth))
    return statistics.fmean(losses)


def test_cross_entropy(logits: Tensor, label: Tensor) -> None:
    expected = slow_cross_entropy(logits, label)
    assert cross_entropy(logits, label).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smooth", [1e-5, 1.0])
def test_soft_dice(logits: Tensor, label: Tensor, smooth: float) -> None:
    expected = slow_dice(logits, label, smooth)
    assert soft_dice(logits, label, smooth).item() == pytest.approx(expected, rel=1e-5)


def test_soft_dice_counts_a_class_that_is_absent(logits: Tensor, label: Tensor) -> None:
    label = label.masked_fill(label == 2, 0)
    expected = slow_dice(logits, label, 1e-5)
    assert expected > 0.5
    assert soft_dice(logits, label).item() == pytest.approx(expected, rel=1e-5)


def test_dice_ce_is_half_of_each(logits: Tensor, label: Tensor) -> None:
    expected = 0.5 * slow_cross_entropy(logits, label) + 0.5 * slow_dice(logits, label, 1e-5)
    assert dice_ce(logits, label).item() == pytest.approx(expected, rel=1e-5)


def test_a_perfect_prediction_costs_nothing(label: Tensor) -> None:
    one_hot = torch.nn.functional.one_hot(label.clamp(min=0), 3).movedim(-1, 1)
    assert dice_ce(100.0 * one_hot, label).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", [cross_entropy, soft_dice, dice_ce])
def test_an_ignored_voxel_changes_nothing(loss, logits: Tensor, label: Tensor) -> None:
    changed = torch.where((label == IGNORE)[:, None], -7 * logits + 3, logits)
    assert not torch.equal(changed, logits)
    torch.testing.assert_close(loss(changed, label), loss(logits, label))
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits, label), logits)
    ignored = (label == IGNORE)[:, None].expand_as(gradient)
    assert (gradient[ignored] == 0).all()
    assert (gradient[~ignored] != 0).any()


@pytest.mark.parametrize("loss", [cross_entropy, dice_ce])
def test_a_batch_without_any_label_costs_nothing(loss, logits: Tensor) -> None:
    logits.requires_grad_()
    value = loss(logits, torch.full((2, 2, 3, 2), IGNORE))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert (logits.grad == 0).all()


def test_masked_mean(inside: Tensor) -> None:
    value = torch.rand(inside.shape)
    expected = statistics.fmean(float(value[at]) for at in voxels(inside))
    assert masked_mean(value, inside).item() == pytest.approx(expected, rel=1e-5)
    assert masked_mean(value, torch.zeros_like(inside)).item() == 0


def test_softmax_mse(logits: Tensor, other: Tensor, inside: Tensor) -> None:
    errors = [
        (p - q) ** 2
        for at in voxels(inside)
        for p, q in zip(softmax(logits, at), softmax(other, at), strict=True)
    ]
    found = softmax_mse(logits, other.softmax(1), inside)
    assert found.item() == pytest.approx(statistics.fmean(errors), rel=1e-5)


@pytest.mark.parametrize("tau", [1.0, 2.5])
def test_distillation(tau: float, logits: Tensor, other: Tensor, inside: Tensor) -> None:
    divergences = []
    for at in voxels(inside):
        p_source, p_learner = softmax(other, at, tau), softmax(logits, at, tau)
        pairs = zip(p_source, p_learner, strict=True)
        divergences.append(sum(p * math.log(p / q) for p, q in pairs))
    expected = tau**2 * statistics.fmean(divergences)
    found = distillation(logits, other, inside, tau)
    assert found.item() == pytest.approx(expected, rel=1e-4)
    swapped = distillation(other, logits, inside, tau)
    assert abs(swapped.item() - expected) > 1e-3, "KL must not be symmetric"


def test_distillation_teaches_the_learner_only(
    logits: Tensor, other: Tensor, inside: Tensor
) -> None:
    logits.requires_grad_()
    other.requires_grad_()
    distillation(logits, other, inside, 2.0).backward()
    assert other.grad is None
    # tau^2 KL has the gradient tau (q - p) per voxel: no smaller for a larger tau.
    at = next(voxels(inside))
    b, x, y, z = at
    for k, (q, p) in enumerate(zip(softmax(logits, at, 2.0), softmax(other, at, 2.0), strict=True)):
        expected = 2.0 * (q - p) / int(inside.sum())
        assert logits.grad[b, k, x, y, z].item() == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_distillation_of_equal_outputs_is_zero(logits: Tensor, inside: Tensor) -> None:
    assert distillation(logits, logits + 5, inside, 1.0).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", ["softmax_mse", "distillation"])
def test_padding_changes_no_consistency(
    loss: str, logits: Tensor, other: Tensor, inside: Tensor
) -> None:
    def value(a: Tensor, b: Tensor) -> Tensor:
        if loss == "softmax_mse":
            return softmax_mse(a, b.softmax(1), inside)
        return distillation(a, b, inside, 1.0)

    padding = ~inside[:, None]
    changed = value(torch.where(padding, 9.0, logits), torch.where(padding, -other, other))
    torch.testing.assert_close(changed, value(logits, other))


def squared(x: Tensor, y: Tensor) -> float:
    return sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True))


def slow_mmd(teacher: Tensor, student: Tensor, factors: tuple[float, ...]) -> float:
    both = [*teacher, *student]
    pairs = [(i, j) for i in range(len(both)) for j in range(i)]
    median = statistics.median_low(math.sqrt(squared(both[i], both[j])) for i, j in pairs)

    def mean_kernel(a: Tensor, b: Tensor, s: float) -> float:
        return statistics.fmean(math.exp(-squared(x, y) / (2 * s**2)) for x in a for y in b)

    return statistics.fmean(
        mean_kernel(teacher, teacher, s)
        + mean_kernel(student, student, s)
        - 2 * mean_kernel(teacher, student, s)
        for s in (factor * median for factor in factors)
    )


@pytest.fixture
def features() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(4)
    teacher = torch.randn(5, 3, generator=random)
    return teacher, 1.5 * torch.randn(5, 3, generator=random) + 0.7


@pytest.mark.parametrize("factors", [(1.0,), (0.5,), (0.5, 1.0, 2.0)])
def test_mmd(features: tuple[Tensor, Tensor], factors: tuple[float, ...]) -> None:
    expected = slow_mmd(*features, factors)
    assert expected > 0.01
    assert mmd(*features, factors).item() == pytest.approx(expected, rel=1e-4)


def test_mmd_of_equal_sets_is_zero_in_any_order(features: tuple[Tensor, Tensor]) -> None:
    teacher, _ = features
    assert mmd(teacher, teacher.flip(0)).item() == pytest.approx(0, abs=1e-6)
    constant = torch.ones(4, 3)
    assert mmd(constant, constant).item() == pytest.approx(0, abs=1e-6)


def test_mmd_ignores_the_scale_of_the_features(features: tuple[Tensor, Tensor]) -> None:
    """The median heuristic adapts the bandwidth."""
    teacher, student = features
    torch.testing.assert_close(
        mmd(30 * teacher, 30 * student), mmd(teacher, student), rtol=1e-3, atol=1e-5
    )


def test_following_the_gradient_of_mmd_brings_the_sets_together(
    features: tuple[Tensor, Tensor],
) -> None:
    teacher, student = (f.clone().requires_grad_() for f in features)
    before = mmd(teacher, student)
    before.backward()
    for side in (teacher, student):
        assert torch.isfinite(side.grad).all()
        assert side.grad.abs().max() > 0
    with torch.no_grad():
        after = mmd(teacher - 0.5 * teacher.grad, student - 0.5 * student.grad)
    assert after < before


def test_the_bandwidth_gets_no_gradient(features: tuple[Tensor, Tensor]) -> None:
    """The gradient is that of the same kernel with its bandwidth written in as a number."""
    teacher, student = features
    both = [*teacher, *student]
    pairs = [(i, j) for i in range(len(both)) for j in range(i)]
    median = statistics.median_low(squared(both[i], both[j]) for i, j in pairs)
    teacher.requires_grad_()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        distances = (a[:, None] - b[None]).square().sum(2)
        return torch.exp(-distances / (2 * median)).mean()

    held = kernel(teacher, teacher) - 2 * kernel(teacher, student)
    (expected,) = torch.autograd.grad(held, teacher)
    (gradient,) = torch.autograd.grad(mmd(teacher, student), teacher)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def slow_intra_inter(
    teacher: Tensor, student: Tensor, classes: list[int], means: bool
) -> tuple[float, float]:
    same, different = [], []
    centre = sum([*teacher, *student]) / (len(teacher) + len(student))
    units = [[(x - centre) / (x - centre).norm() for x in branch] for branch in (teacher, student)]
    if means:
        units = [
            [sum(own) / len(own) for k in sorted(set(classes)) if (own := of(k, items, classes))]
            for items in units
        ]
        classes = sorted(set(classes))
    for i, t in enumerate(units[0]):
        for j, s in enumerate(units[1]):
            (same if classes[i] == classes[j] else different).append(squared(t, s))
    return statistics.fmean(same or [0.0]), -statistics.fmean(different or [0.0])


def of(wanted: int, items: list[Tensor], classes: list[int]) -> list[Tensor]:
    return [item for item, k in zip(items, classes, strict=True) if k == wanted]


@pytest.mark.parametrize("means", [True, False])
@pytest.mark.parametrize("classes", [[0, 0, 1, 2, 1], [0, 1, 2, 3, 4], [2, 2, 2, 2, 2]])
def test_intra_inter(features: tuple[Tensor, Tensor], classes: list[int], means: bool) -> None:
    found = intra_inter(*features, torch.tensor(classes), means)
    expected = slow_intra_inter(*features, classes, means)
    assert [value.item() for value in found] == pytest.approx(expected, rel=1e-4)


def test_means_leave_the_items_of_a_class_apart() -> None:
    """Items of one class that differ cost nothing where their means agree; as pairs they do."""
    across = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    classes = torch.tensor([0, 0, 1, 1])
    assert intra_inter(across, across, classes)[0].item() == pytest.approx(0, abs=1e-6)
    assert intra_inter(across, across, classes, means=False)[0].item() == pytest.approx(1)


def test_features_that_differ_little_are_not_taken_for_equal() -> None:
    """A large common part hides nothing: it is what all features would share in a collapse."""
    apart = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    classes = torch.tensor([0, 1, 2, 3])
    _, inter = intra_inter(100 + apart, 100 + apart, classes)
    assert inter.item() == pytest.approx(intra_inter(apart, apart, classes)[1].item(), rel=1e-3)


def test_the_push_is_zero_when_all_items_are_of_one_class(
    features: tuple[Tensor, Tensor],
) -> None:
    _, inter = intra_inter(*features, torch.ones(5, dtype=torch.long))
    assert inter.item() == 0


def test_pull_and_push_are_bounded(features: tuple[Tensor, Tensor]) -> None:
    teacher, student = features
    classes = torch.tensor([0, 0, 1, 1, 2])
    for scale in (1.0, 1e4):
        intra, inter = intra_inter(scale * teacher, -scale * student, classes)
        assert 0 <= intra.item() <= 4
        assert -4 <= inter.item() <= 0
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    intra, inter = intra_inter(opposite, opposite, torch.tensor([0, 1]))
    assert (intra.item(), inter.item()) == pytest.approx((0, -4), abs=1e-5)


def test_gradients_of_intra_inter_move_both_branches(features: tuple[Tensor, Tensor]) -> None:
    teacher, student = (f.clone().requires_grad_() for f in features)
    intra, inter = intra_inter(teacher, student, torch.tensor([0, 0, 1, 2, 1]))
    (intra + inter).backward()
    assert teacher.grad.abs().max() > 0
    assert student.grad.abs().max() > 0


def test_distances_keep_their_digits_under_autocast() -> None:
    """Products of bfloat16 would drown the distance of two nearby features of large norm."""
    random = torch.Generator().manual_seed(5)
    x = 10 + torch.randn(6, 32, generator=random)
    y = x + 0.05 * torch.randn(6, 32, generator=random)
    expected = torch.tensor([[squared(a, b) for b in y] for a in x])
    with torch.autocast("cpu", torch.bfloat16):
        found = squared_distances(x, y)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


def test_soft_dice_between_is_that_of_labels_where_the_target_is_sure() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, 4, generator=random)
    label = torch.randint(0, 3, (2, 4, 4, 4), generator=random)
    label[:, 0] = IGNORE
    target = one_hot(label.clamp(min=0), 3)
    found = soft_dice_between(logits, target, label != IGNORE)
    torch.testing.assert_close(found, soft_dice(logits, label))


def test_soft_dice_between_by_hand() -> None:
    """Two voxels, q = (0.5, 0.5) and p = (1, 0.5): 2 * 0.75 / (0.5 + 1.25)."""
    target = torch.tensor([[0.0, 0.5], [1.0, 0.5]]).reshape(1, 2, 2, 1, 1)
    logits, inside = torch.zeros(1, 2, 2, 1, 1), torch.ones(1, 2, 1, 1).bool()
    found = soft_dice_between(logits, target, inside)
    assert found.item() == pytest.approx(1 - 1.5 / 1.75, abs=1e-4)
