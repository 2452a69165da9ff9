"""CrossMatch: what is decoded how, which answers are compared, and when one is certain enough."""

import math

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW

from dcamt.config import TrainConfig
from dcamt.losses.overlap import dice_ce, one_hot
from dcamt.methods import crossmatch
from dcamt.methods.crossmatch import CrossMatch, agreement, certain_label, sides
from dcamt.networks.vnet import VNet
from dcamt.types import IGNORE, Progress

HALFWAY = Progress(500, 1000)
NAMES = ("l", "w", "w weak", "w strong", "s1", "s2", "s2 weak", "s2 strong")


def test_features_are_decoded_clean_and_with_less_and_more_of_them(build) -> None:
    """Of all five levels a channel is dropped whole or scaled up; the labelled ones are not."""
    method = build(CrossMatch, dropout=0.0)
    with torch.no_grad():
        for block in (*method.network.encoder, *method.network.down):
            for module in block.modules():
                if isinstance(module, torch.nn.BatchNorm3d):
                    module.bias.fill_(0.5)  # or many channels are 0 anyway
    plain, dropped = torch.randn(2, 1, 32, 16, 16), torch.randn(3, 1, 32, 16, 16)
    seen: list[list[Tensor]] = []
    real = method.network.upsample

    def note(features: Tensor, skips: list[Tensor]) -> Tensor:
        seen.append([features, *skips])
        return real(features, skips)

    method.network.upsample = note
    zeros: dict[str, list[bool]] = {"less": [], "more": []}
    for seed in range(20):
        torch.manual_seed(seed)
        with torch.no_grad():
            logits = method._decode(plain, dropped)
            features, skips = method.network.encode(torch.cat([plain, dropped]))
        assert [len(x) for x in logits] == [2, 3, 3, 3]
        for level, clean in zip(seen.pop(), (features, *skips), strict=True):
            found, less, more = level.split([5, 3, 3])
            torch.testing.assert_close(found, clean)
            for name, rate, each in (("less", 0.25, less), ("more", 0.75, more)):
                gone = (each == 0).flatten(2).all(2)
                scaled = torch.where(gone[:, :, None, None, None], 0, clean[2:] / (1 - rate))
                torch.testing.assert_close(each, scaled)
                zeros[name] += gone.flatten().tolist()
    share = {name: sum(found) / len(found) for name, found in zeros.items()}
    assert share == pytest.approx({"less": 0.25, "more": 0.75}, abs=0.03)


def test_the_networks_own_dropout_is_one_for_all_decodings(build) -> None:
    method = build(CrossMatch, weak=0.0, strong=0.0).train()
    image = torch.randn(2, 1, 32, 16, 16)
    with torch.no_grad():
        _, clean, less, more = method._decode(image, image)
        torch.testing.assert_close(clean, less)
        torch.testing.assert_close(clean, more)
        assert not torch.allclose(clean, method._decode(image, image)[1])


def dice(logits: Tensor, label: Tensor) -> float:
    """1 - Dice of the foreground with squared denominators, voxel by voxel."""
    overlap, squares, positives = 0.0, 0.0, 0
    for p, y in zip(logits.softmax(1)[:, 1].flatten().tolist(), label.flatten().tolist(),
                    strict=True):  # fmt: skip
        if y != IGNORE:
            overlap += p * y
            squares += p * p
            positives += y
    return 1 - (2 * overlap + 1e-5) / (squares + positives + 1e-5)


def answers(
    method: CrossMatch, batch: object, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Tensor]:
    """Fixed logits for all that is decoded, by name, and what was decoded, and the boxes."""
    shape = (2, 2, *batch.inside_u.shape[1:])
    seen = {name: torch.randn(shape, requires_grad=True) for name in NAMES}
    calls: list[tuple[Tensor, Tensor]] = []

    def decode(plain: Tensor, dropped: Tensor) -> tuple[Tensor, ...]:
        calls.append((plain, dropped))
        return tuple(seen[n] for n in (NAMES[:4] if len(calls) == 1 else NAMES[4:]))

    real = crossmatch.cutmix

    def boxes(inside: Tensor, drawn: Tensor) -> Tensor:
        name = "taken 2" if "taken 1" in seen else "taken 1"
        seen[name] = real(inside, torch.tensor([0.7, 0.8]))
        return seen[name]

    monkeypatch.setattr(crossmatch, "cutmix", boxes)
    monkeypatch.setattr(method, "_decode", decode)
    seen["decoded"] = calls
    return seen


def mixed(values: Tensor, taken: Tensor) -> Tensor:
    result = values.clone()
    for b, x, y, z in taken.nonzero().tolist():
        result[b, ..., x, y, z] = values[1 - b, ..., x, y, z]
    return result


def test_terms_are_the_equations(build, batch, monkeypatch) -> None:
    method = build(CrossMatch, image=0.2, alike=0.4, threshold=0.9)
    seen = answers(method, batch, monkeypatch)
    losses: list[Tensor] = []
    terms = method.step(batch, HALFWAY, losses.append)
    box_1, box_2 = seen["taken 1"], seen["taken 2"]
    assert box_1.any() and box_2.any() and not torch.equal(box_1, box_2)
    expected = [
        (batch.image_l, batch.image_u),
        (mixed(batch.strong_u[0], box_1), mixed(batch.strong_u[1], box_2)),
    ]
    for found, views in zip(seen["decoded"], expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, views, strict=True))
    threshold = (0.9 + 0.1 * math.exp(-1.25)) * math.log(2)

    def told(name: str) -> Tensor:
        p = seen[name].detach().softmax(1)
        label = (p[:, 1] > p[:, 0]).long()
        return label.masked_fill((p.amax(1) < threshold) | ~batch.inside_u, IGNORE)

    clean, weak, strong = told("w"), told("w weak"), told("w strong")
    voxels = int(batch.inside_u.sum())
    assert 0.1 < int((clean != IGNORE).sum()) / voxels < 0.95
    image = dice(seen["s1"], mixed(clean, box_1)) + dice(seen["s2"], mixed(clean, box_2))
    by_clean = [
        dice(seen["w weak"], clean),
        dice(seen["w strong"], clean),
        dice(seen["s2 weak"], mixed(clean, box_2)),
        dice(seen["s2 strong"], mixed(clean, box_2)),
    ]
    alike = [
        dice(seen["s2 weak"], mixed(weak, box_2)),
        dice(seen["s2 strong"], mixed(strong, box_2)),
    ]
    supervised = dice_ce(seen["l"], batch.label_l).item()
    values = {
        "supervised": supervised,
        "image": image,
        "clean": sum(by_clean) / 4,
        "alike": sum(alike) / 2,
        "certain": int((clean != IGNORE).sum()) / voxels,
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(values, rel=1e-4)
    distilled = 0.6 * sum(by_clean) / 4 + 0.4 * sum(alike) / 2
    total = 0.5 * (supervised + 0.2 * image + distilled)
    assert [loss.item() for loss in losses] == [pytest.approx(total, rel=1e-4)]


def test_a_clean_answer_to_the_weak_view_teaches_and_learns_nothing(
    build, batch, monkeypatch
) -> None:
    method = build(CrossMatch)
    seen = answers(method, batch, monkeypatch)
    losses: list[Tensor] = []
    method.step(batch, HALFWAY, losses.append)
    losses[0].backward()
    moved = {name for name in NAMES if seen[name].grad is not None and seen[name].grad.any()}
    assert moved == set(NAMES) - {"w"}


def test_answers_are_certain_from_the_threshold_on() -> None:
    p = torch.tensor([[0.4, 0.6], [0.41, 0.59], [0.6, 0.4], [0.1, 0.9], [0.1, 0.9]])
    inside = torch.tensor([True, True, True, True, False]).view(1, 5, 1, 1)
    found = certain_label(p.log().T.reshape(1, 2, 5, 1, 1), inside, 0.595)
    assert found.flatten().tolist() == [1, IGNORE, 0, 1, IGNORE]


@pytest.mark.parametrize(("iteration", "expected"), [(0, 0.5210), (1000, math.log(2))])
def test_the_threshold_rises(iteration, expected, build, batch, monkeypatch) -> None:
    method, seen = build(CrossMatch), []
    real = crossmatch.certain_label

    def note(logits: Tensor, inside: Tensor, threshold: float) -> Tensor:
        seen.append(threshold)
        return real(logits, inside, threshold)

    monkeypatch.setattr(crossmatch, "certain_label", note)
    with torch.no_grad():
        method.step(batch, Progress(iteration, 1000), lambda loss: None)
    assert seen == 3 * [pytest.approx(expected, abs=2e-3)]


def test_half_of_the_views_have_a_box_of_2_to_40_percent() -> None:
    torch.manual_seed(0)
    drawn = sides(1000, 0.5)
    volume = drawn[drawn > 0] ** 3
    assert 450 < len(volume) < 550
    assert 0.019 < volume.min() < 0.03
    assert 0.39 < volume.max() < 0.401
    assert volume.mean() == pytest.approx(0.21, abs=0.01)
    assert not sides(50, 0.0).any()


def test_the_optimiser_is_adamw_from_its_own_rate(build) -> None:
    method = build(CrossMatch, learning_rate=3e-3)
    train = TrainConfig(learning_rate=0.05, weight_decay=2e-4)
    optimizer = method.optimizer("all", list(method.parameters()), train)
    assert type(optimizer) is AdamW
    (group,) = optimizer.param_groups
    assert (group["lr"], group["initial_lr"], group["weight_decay"]) == (3e-3, 3e-3, 2e-4)


@torch.no_grad()
def test_prediction_decodes_clean_without_dropout(build, batch) -> None:
    method = build(CrossMatch).eval()
    network = VNet(1, 2, 2)
    network.load_state_dict(method.network.state_dict())
    assert torch.equal(method.predict(batch.image_u), network.eval()(batch.image_u).softmax(1))


def test_three_classes_and_a_single_unlabelled_patch(plain_update, make_batch) -> None:
    torch.manual_seed(0)
    method = CrossMatch(
        CrossMatch.Config(threshold=0.0), lambda dropout: VNet(1, 3, 2, dropout)
    ).train()
    terms = method.step(make_batch(2, 1), HALFWAY, plain_update(method))
    assert all(torch.isfinite(term) for term in terms.values())
    assert terms["certain"] > 0


def test_dice_is_of_the_foreground_of_two_classes_and_of_each_of_three() -> None:
    torch.manual_seed(0)
    label = torch.tensor([0, 1, 1, IGNORE]).view(1, 4, 1, 1)
    for classes in (2, 3):
        logits = torch.randn(1, classes, 4, 1, 1)
        p = logits.softmax(1)[0, :, :3, 0, 0]
        y = one_hot(label, classes)[0, :, :3, 0, 0]
        scores = 2 * (p * y).sum(1) / ((p * p).sum(1) + y.sum(1))
        expected = 1 - (scores[1] if classes == 2 else scores.mean())
        assert agreement(logits, label).item() == pytest.approx(expected.item(), abs=1e-4)


def test_defaults_are_the_published_ones() -> None:
    c = CrossMatch.Config()
    assert (c.image, c.alike, c.threshold, c.dropout) == (0.25, 0.3, 0.75, 0.5)
    assert (c.weak, c.strong, c.boxes, c.learning_rate) == (0.25, 0.75, 0.5, 1e-3)
