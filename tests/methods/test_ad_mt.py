"""AD-MT: whose turn it is, who follows whom, what is mixed, and who is believed."""

import math
from itertools import groupby

import pytest
import torch
from torch import Tensor, nn

from dcamt.losses.overlap import dice_ce
from dcamt.methods import ad_mt
from dcamt.methods.ad_mt import ADMT, choose, ensemble, turns
from dcamt.networks.vnet import VNet
from dcamt.types import IGNORE, Batch, Progress

FIRST, SECOND = (
    next(Progress(i, 1000) for i in range(500, 1000) if turns(19, 1000)[i][0] == number)
    for number in (0, 1)
)


def statistics(module: nn.Module) -> list[Tensor]:
    return [b.clone() for name, b in module.named_buffers() if "running" in name]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def speaks(network: nn.Module, answer: Tensor) -> None:
    network.register_forward_hook(lambda *_: answer)


def test_turns_alternate_and_have_every_length_up_to_the_longest() -> None:
    found = [number for number, _ in turns(19, 15000)]
    lengths = [len(list(group)) for _, group in groupby(found)]
    assert len(found) == 15000
    assert set(found) == {0, 1}
    assert found[0] == 0
    assert set(lengths) == set(range(1, 20))
    assert 9.3 < sum(lengths) / len(lengths) < 10.7  # 10 on average
    assert [number for number, _ in turns(1, 6)] == [0, 1, 0, 1, 0, 1]


def test_turns_are_the_same_in_every_run_and_whatever_was_drawn_before() -> None:
    torch.manual_seed(3)
    expected = list(turns(7, 300))
    turns.cache_clear()
    torch.manual_seed(4)
    torch.rand(10)
    state = torch.get_rng_state()
    assert turns(7, 300) == expected
    assert torch.equal(torch.get_rng_state(), state)
    for i, (number, before) in enumerate(expected):
        assert before == sum(other == number for other, _ in expected[:i])


def test_only_the_teacher_on_duty_follows_and_looks_at_the_batch(
    build, plain_update, weights, batch
) -> None:
    """The idle one keeps its weights and its batch statistics, and uses those."""
    method = build(ADMT, turn=3).train()
    update = plain_update(method, learning_rate=0.05)
    modes: list[tuple[int, bool]] = []
    for number, teacher in enumerate(method.teachers):
        teacher.register_forward_hook(lambda m, *_, n=number: modes.append((n, m.training)))
    for iteration, (on_duty, since) in enumerate(turns(3, 12)):
        before, seen = weights(method), [statistics(t) for t in method.teachers]
        modes.clear()
        method.train()
        method.step(batch, Progress(iteration, 12), update)
        after = weights(method)
        assert modes == [(0, on_duty == 0), (1, on_duty == 1)]
        assert not same(statistics(method.teachers[on_duty]), seen[on_duty])
        assert same(statistics(method.teachers[1 - on_duty]), seen[1 - on_duty])
        decay = since / (since + 1)
        for key in (k for k in after if k.startswith("teachers.")):
            _, number, name = key.split(".", 2)
            if int(number) == on_duty:
                expected = decay * before[key] + (1 - decay) * after[f"student.{name}"]
                torch.testing.assert_close(after[key], expected)
            else:
                assert torch.equal(after[key], before[key])


def test_late_the_decay_is_the_configured_one(build, plain_update, weights, batch) -> None:
    method = build(ADMT, decay=0.9).train()
    before = weights(method)
    method.step(batch, FIRST, plain_update(method))
    after = weights(method)
    for name, student in method.student.named_parameters():
        key = f"teachers.0.{name}"
        torch.testing.assert_close(after[key], 0.9 * before[key] + 0.1 * student.detach())


def test_the_ensemble_trusts_the_teacher_of_less_entropy() -> None:
    p_1, p_2 = [0.9, 0.1], [0.4, 0.6]
    bits = [-sum(x * math.log2(x) for x in p) for p in (p_1, p_2)]
    weight = [math.exp(-h) for h in bits]
    expected = [
        (weight[0] * a + weight[1] * b) / sum(weight) for a, b in zip(p_1, p_2, strict=True)
    ]
    one, two = (torch.tensor(p).view(1, 2, 1, 1, 1) for p in (p_1, p_2))
    assert ensemble(one, two).flatten().tolist() == pytest.approx(expected)
    assert expected[0] > 0.65, "nearer to the first"
    certain = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1, 1)  # no entropy at all
    assert ensemble(certain, certain).flatten().tolist() == [0, 1]


def test_the_student_is_asked_where_teachers_differ_and_it_is_surer() -> None:
    teachers = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.6, 0.4], [0.6, 0.4]])
    student = torch.tensor([[0.2, 0.8], [0.2, 0.8], [0.9, 0.1], [0.45, 0.55]])
    differ = torch.tensor([True, False, True, True])
    # Another class and surer; agreed on by the teachers; the same class; less sure.
    expected = [[0.2, 0.8], [0.6, 0.4], [0.6, 0.4], [0.6, 0.4]]
    found = choose(
        teachers.T.reshape(1, 2, 4, 1, 1), student.T.reshape(1, 2, 4, 1, 1), differ.view(1, 4, 1, 1)
    )
    assert found.view(2, 4).T.tolist() == torch.tensor(expected).tolist()


def told(teachers: list[list[float]], student: list[float]) -> tuple[int, float, bool]:
    """Class and confidence at a voxel, and whether they are the student's."""
    weight = [math.exp(sum(q * math.log2(q) for q in p)) for p in teachers]
    mean = [(weight[0] * i + weight[1] * j) / sum(weight) for i, j in zip(*teachers, strict=True)]
    guess, own = mean.index(max(mean)), student.index(max(student))
    differ = teachers[0].index(max(teachers[0])) != teachers[1].index(max(teachers[1]))
    if differ and own != guess and max(student) > max(mean):
        return own, max(student), True
    return guess, max(mean), False


@pytest.mark.parametrize("at", [FIRST, SECOND], ids=["strong", "cutmix"])
def test_terms_are_the_equations(at, build, plain_update, batch, monkeypatch) -> None:
    method = build(ADMT, weight=0.7, threshold=0.75, ramp=1.0).train()
    shape = (2, 2, *batch.inside_u.shape[1:])
    p_1, p_2 = torch.randn(shape), torch.randn(shape)
    for teacher, answer in zip(method.teachers, (p_1, p_2), strict=True):
        speaks(teacher, answer)
    with torch.no_grad():
        method.student.head.weight.mul_(4)  # a student that is sure of something
    seen: dict[str, Tensor] = {}
    method.student.register_forward_hook(lambda _, i, o: seen.update(image=i[0], logits=o.detach()))
    real = ad_mt.cutmix
    monkeypatch.setattr(ad_mt, "cutmix", lambda *a: seen.setdefault("taken", real(*a)))
    update = plain_update(method)
    terms = method.step(batch, at, update)
    labelled, weak, view = seen["image"].split([2, 2, 2])
    assert torch.equal(labelled, batch.image_l)
    assert torch.equal(weak, batch.image_u)
    if at is FIRST:
        assert torch.equal(view, batch.strong_u[0])
        assert "taken" not in seen
    taken = seen.get("taken", torch.zeros_like(batch.inside_u))
    assert bool(taken.any()) == (at is SECOND)
    said, log_p = [p_1.softmax(1), p_2.softmax(1)], seen["logits"].log_softmax(1)
    student = log_p[2:4].exp()
    loss, count, certain, differing, asked = 0.0, 0, 0, 0, 0
    for b, x, y, z in batch.inside_u.nonzero().tolist():
        pairs = {}
        for source in {b, 1 - b}:
            each = [p[source, :, x, y, z].tolist() for p in said]
            pairs[source] = told(each, student[source, :, x, y, z].tolist())
        classes = {int(p[b, 1, x, y, z] > 0.5) for p in said}
        differing += len(classes) == 2
        certain += pairs[b][1] >= 0.75
        asked += pairs[b][2]
        source = 1 - b if taken[b, x, y, z] else b
        if at is SECOND:
            assert view[b, 0, x, y, z] == batch.image_u[source, 0, x, y, z]
        if pairs[source][1] >= 0.75:
            count += 1
            loss -= float(log_p[4 + b, pairs[source][0], x, y, z])
    voxels = int(batch.inside_u.sum())
    assert asked > 0
    assert 0.05 < certain / voxels < 0.95
    expected = {
        "supervised": dice_ce(seen["logits"][:2], batch.label_l),
        "pseudo": torch.tensor(loss / count),
        "certain": torch.tensor(certain / voxels),
        "differ": torch.tensor(differing / voxels),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name].detach(), value, rtol=1e-4, atol=1e-6)
    total = expected["supervised"] + 0.7 * at.ramp(1.0) * expected["pseudo"]
    assert update.losses == [pytest.approx(total.item(), rel=1e-4)]


def test_boxes_have_sides_of_every_size_around_seven_tenths(build, batch, monkeypatch) -> None:
    method, sides = build(ADMT), []
    real = ad_mt.cutmix

    def note(inside: Tensor, drawn: Tensor) -> Tensor:
        sides.extend(drawn.tolist())
        return real(inside, drawn)

    monkeypatch.setattr(ad_mt, "cutmix", note)
    monkeypatch.setattr(ad_mt, "follow_", lambda *_: None)
    for seed in range(20):
        torch.manual_seed(seed)
        with torch.no_grad():
            method.step(batch, SECOND, lambda loss: None)
    squares = torch.tensor(sides) ** 2
    assert len(sides) == 40
    assert 0.4 < squares.mean() < 0.6
    assert 0.1 < squares.std() < 0.25  # of Beta(4, 4): 1/6


def test_three_classes_and_a_single_unlabelled_patch(plain_update, make_batch) -> None:
    torch.manual_seed(0)
    method = ADMT(ADMT.Config(threshold=0.3), lambda: VNet(1, 3, 2)).train()
    for at in (FIRST, SECOND):
        batch: Batch = make_batch(2, 1)
        batch.label_l[0, 0] = IGNORE
        terms = method.step(batch, at, plain_update(method))
        assert all(torch.isfinite(term) for term in terms.values())
        assert terms["pseudo"] > 0


def test_defaults_are_the_published_ones() -> None:
    c = ADMT.Config()
    assert (c.weight, c.threshold, c.decay, c.turn) == (2.0, 0.8, 0.99, 19)
    assert c.ramp == pytest.approx(40 * 150 / 15000)
