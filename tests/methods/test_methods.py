"""What every method promises, whatever it computes."""

import math
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn

from dcamt.losses.consistency import softmax_mse
from dcamt.losses.overlap import dice_ce
from dcamt.methods import METHODS, mcf, sdcl
from dcamt.methods.mean_teacher import MeanTeacher
from dcamt.methods.method import Method, ema_, frozen_copy
from dcamt.methods.vnet import Supervised
from dcamt.networks.vnet import STRIDE, VNet
from dcamt.section import Section
from dcamt.types import IGNORE, Batch, Progress

LATE = Progress(900, 1000)

# Every method as it comes, and every way to switch DCA-MT and Dual Teacher.
VARIANTS: list[tuple[str, dict[str, object]]] = [(name, {}) for name in METHODS]
VARIANTS += [
    ("dca-mt", {"components": c}) for c in ("base", "loss", "cross-attention", "mutual", "all")
]
VARIANTS += [("dca-mt", {"teacher": t}) for t in ("ema", "both")]
VARIANTS += [
    ("dca-mt", {"units": "samples"}),
    ("dca-mt", {"paste": 0}),
    ("dca-mt", {"shared_attention": True, "heads": 8}),
    ("dca-mt", {"targets": "soft", "paste": 0.6}),
    ("dca-mt", {"temperature": 2.0, "bandwidths": [0.5, 1, 2]}),
    ("dual-teacher", {"threshold": 0.5}),
    ("dual-teacher", {"threshold": 0.5, "epoch": 0.9}),  # LATE is in the second one's turn
    ("ad-mt", {"threshold": 0.5, "turn": 1}),  # LATE is in the first one's turn
    ("ad-mt", {"threshold": 0.5}),  # and here in the second one's
]
every_variant = pytest.mark.parametrize(
    ("name", "options"),
    VARIANTS,
    ids=["-".join([name, *map(str, options.values())]) for name, options in VARIANTS],
)
every_method = pytest.mark.parametrize("name", list(METHODS))


def supervised_loss(method: Method, batch: Batch) -> float:
    """The protocol's loss of ``predict`` on the labelled patches, by the batch's statistics."""
    with torch.no_grad():
        p = method.predict(batch.image_l)
        return float(dice_ce(p.clamp(min=1e-6).log(), batch.label_l))


# The contract


def test_a_batch_has_no_labels_of_unlabelled_patches() -> None:
    names = [field.name for field in fields(Batch)]
    assert names == ["image_l", "label_l", "image_u", "inside_u", "cases", "strong_u"]


@pytest.mark.parametrize("name", ["ad-mt", "dual-teacher", "dualfete"])
@torch.no_grad()
def test_the_student_alone_predicts_where_there_are_teachers(name, build, batch) -> None:
    method = build(METHODS[name]).eval()
    expected = method.student(batch.image_u).softmax(1)
    for p in method.teachers.parameters():
        p.zero_()
    assert torch.equal(method.predict(batch.image_u), expected)


@every_variant
def test_a_step_returns_finite_terms_and_trains_what_it_should(
    name, options, build, plain_update, weights, batch
) -> None:
    method = build(METHODS[name], **options).train()
    batch = replace(batch, strong_u=batch.strong_u[: method.views])  # as the engine hands them out
    trained = {id(p) for part in method.parts().values() for p in part}
    assert trained == {id(p) for p in method.parameters() if p.requires_grad}
    before, update = weights(method), plain_update(method)
    terms = method.step(batch, LATE, update)
    assert terms, "nothing to log"
    assert all(term.ndim == 0 and torch.isfinite(term) for term in terms.values())
    assert update.losses, "the step never called update"
    for key, parameter in method.named_parameters():
        if id(parameter) not in trained:
            assert parameter.grad is None, key
            continue
        assert parameter.grad is not None, f"{key} gets no gradient"
        # A bias before a norm, or of a key, has no effect; weights do.
        if parameter.ndim > 1:
            assert not torch.equal(parameter, before[key]), f"{key} does not move"


@every_variant
@torch.no_grad()
def test_predictions_are_distributions(name, options, build) -> None:
    method = build(METHODS[name], **options).eval()
    image = torch.randn(2, 1, 32, 16, 16)
    p = method.predict(image)
    assert p.shape == (2, 2, 32, 16, 16)
    assert p.dtype == torch.float32
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(1), torch.ones(2, 32, 16, 16))
    branches = method.branches(image)
    assert branches.ndim == 6
    torch.testing.assert_close(branches.sum(2), torch.ones(len(branches), 2, 32, 16, 16))
    torch.testing.assert_close(branches.mean(0), p)
    torch.testing.assert_close(method.predict(image), p, rtol=0, atol=0)


@every_variant
@torch.no_grad()
def test_the_state_is_all_there_is(name, options, build, plain_update, batch) -> None:
    """Weights moved to a fresh method give the same prediction, bit for bit."""
    method = build(METHODS[name], **options).train()
    with torch.enable_grad():
        method.step(batch, LATE, plain_update(method))
    fresh = build(METHODS[name], seed=1, **options)
    before = fresh.eval().predict(batch.image_u)
    fresh.load_state_dict(method.state_dict())
    after = fresh.eval().predict(batch.image_u)
    assert torch.equal(after, method.eval().predict(batch.image_u))
    assert not torch.equal(after, before)


@every_method
def test_a_step_is_reproducible(name, build, plain_update, weights, batch) -> None:
    states = []
    for _ in range(2):
        method = build(METHODS[name]).train()
        torch.manual_seed(5)
        method.step(batch, LATE, plain_update(method))
        states.append(weights(method))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@every_method
def test_uneven_batches_are_fine(name, build, plain_update, make_batch) -> None:
    method = build(METHODS[name]).train()
    terms = method.step(make_batch(labeled=1, unlabeled=2), LATE, plain_update(method))
    assert all(torch.isfinite(term) for term in terms.values())


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n not in ("bcp", "dca-mt"))) for n in METHODS],
)
def test_thirty_iterations_lower_the_supervised_loss(name, build, plain_update, batch) -> None:
    # Adam's rate is a method's own, and too low for so few iterations.
    own_rate = "learning_rate" in METHODS[name].Config.model_fields
    method = build(METHODS[name], **({"learning_rate": 0.02} if own_rate else {})).train()
    # The student of DualFete hears of labels at second hand, when its teachers know them.
    rate, iterations = (0.1, 120) if name == "dualfete" else (0.05, 30)
    update = plain_update(method, learning_rate=rate)
    start = supervised_loss(method, batch)
    for iteration in range(iterations):
        method.step(batch, Progress(iteration, iterations), update)
    assert supervised_loss(method, batch) < 0.8 * start


# Padding


class Pointwise(nn.Module):
    """A stand-in for V-Net in which no voxel, and no bottleneck voxel, sees its neighbours."""

    channels, classes, width, features, stride = 1, 2, 8, 8, (STRIDE,) * 3

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout3d(dropout)
        self.widen = nn.Conv3d(1, 8, 1)
        self.head = nn.Conv3d(8, 2, 1)

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.widen(image).tanh()
        return nn.functional.avg_pool3d(x, STRIDE), [x]

    def upsample(self, features: Tensor, skips: list[Tensor]) -> Tensor:
        return skips[0] + nn.functional.interpolate(features, skips[0].shape[2:])

    def decode_features(self, features: Tensor, skips: list[Tensor]) -> Tensor:
        return self.dropout(self.upsample(features, skips))

    def decode(self, features: Tensor, skips: list[Tensor]) -> Tensor:
        return self.head(self.decode_features(features, skips))

    def forward(self, image: Tensor) -> Tensor:
        return self.decode(*self.encode(image))


# Options with which an untrained network learns from unlabelled patches: low thresholds, say.
PADDED: dict[str, list[dict[str, object]]] = {
    "dtc": [{"steepness": 5.0}],
    "mcf": [{"temperature": 0.5}],
    "dual-teacher": [{"threshold": 0.5}, {"threshold": 0.5, "epoch": 0.9}],
    "ad-mt": [{"threshold": 0.5, "turn": 1}, {"threshold": 0.5}],  # whose turn it is, as above
    "dualfete": [{"threshold": 0.5, "boxes": 1}],
    "dca-mt": [
        {"components": "base"},
        {"components": "loss"},
        {"components": "mutual"},
        {"components": "mutual", "paste": 0},
        {"components": "mutual", "targets": "soft"},
    ],
}


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name in METHODS for options in PADDED.get(name, [{}])]
)
@pytest.mark.parametrize("side", ["labelled", "unlabelled"])
def test_what_lies_in_the_padding_teaches_nothing(
    name, options, side, plain_update, weights, batch, monkeypatch
) -> None:
    """Whatever fills the padded half of a patch, terms and trained weights are the same."""
    kind = METHODS[name]
    reads_unlabelled = name != "vnet" and options != {"components": "base"}
    for module in (mcf, sdcl):
        monkeypatch.setattr(module, "ResNet34", lambda *_: Pointwise())
    batch.inside_u[0, STRIDE:] = False
    batch.inside_u[1] = True
    batch.label_l[0, STRIDE:] = IGNORE
    batch.label_l[1] = batch.label_l[1].clamp(min=0)
    images = [batch.image_l] if side == "labelled" else [batch.image_u, *batch.strong_u]

    def outcome() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        torch.manual_seed(0)
        method = kind(kind.Config.model_validate(options), Pointwise)
        torch.manual_seed(1)
        terms = method.step(batch, LATE, plain_update(method))
        return {name: term.detach() for name, term in terms.items()}, weights(method)

    for image in images:
        image[0, :, STRIDE:] = 0.0
    terms, trained = outcome()
    for image in images:
        image[0, :, STRIDE:] = 3.0
    again = outcome()
    for key in terms:
        torch.testing.assert_close(again[0][key], terms[key])
    for key in trained:
        torch.testing.assert_close(again[1][key], trained[key], atol=1e-6, rtol=1e-5)
    # That says something only where real voxels do count.
    for image in images:
        image[0, :, :STRIDE] += 1.0
    other_terms, other_weights = outcome()
    for what, before, after in (("logs", terms, other_terms), ("learns", trained, other_weights)):
        counts = any(not torch.equal(after[key], before[key]) for key in before)
        assert counts == (side == "labelled" or reads_unlabelled), (
            f"{name} {what} {'something' if counts else 'nothing'} of {side} voxels; if it should, "
            "give it options in PADDED with which it does from the first iteration"
        )


# Supervised and Mean Teacher


def test_vnet_is_the_supervised_loss_alone(build, plain_update, weights, batch) -> None:
    method = build(Supervised).train()
    expected = dice_ce(method.network(batch.image_l), batch.label_l).item()
    update = plain_update(method)
    terms = method.step(batch, LATE, update)
    assert terms.keys() == {"supervised"}
    assert update.losses == [pytest.approx(expected)]
    unlabeled = batch.image_u.clone()
    batch.image_u.copy_(100 * unlabeled)
    again = build(Supervised).train()
    again.step(batch, LATE, plain_update(again))
    assert all(torch.equal(weights(again)[k], v) for k, v in weights(method).items())


@pytest.mark.parametrize(
    ("iteration", "ramp"), [(0, math.exp(-5)), (50, math.exp(-1.25)), (100, 1)]
)
def test_mean_teacher_weighs_consistency(iteration, ramp, build, plain_update, batch) -> None:
    method = build(MeanTeacher, weight=0.7).train()
    update = plain_update(method)
    terms = method.step(batch, Progress(iteration, 100), update)
    assert terms.keys() == {"supervised", "consistency"}
    expected = terms["supervised"] + 0.7 * ramp * terms["consistency"]
    assert update.losses == [pytest.approx(expected.item(), rel=1e-5)]


def test_mean_teacher_defaults_are_the_published_ones() -> None:
    config = MeanTeacher.Config()
    assert (config.weight, config.ramp, config.decay) == (0.1, 1.0, 0.99)


def test_mean_teacher_compares_with_the_teacher_on_noisy_input(build, plain_update, batch) -> None:
    method = build(MeanTeacher).train()
    with torch.no_grad():  # a teacher that differs, so that the term is not noise alone
        for p in method.teacher.parameters():
            p.add_(0.1)
    seen = {}
    method.teacher.register_forward_hook(lambda _, i, o: seen.update(image=i[0], target=o))
    method.student.register_forward_hook(lambda _, i, o: seen.update(logits=o.detach()))
    terms = method.step(batch, LATE, plain_update(method))
    noise = seen["image"] - batch.image_u
    assert noise.abs().max() <= 0.2 + 1e-5
    assert 0.08 < noise.std() < 0.1  # std 0.1, a little less by clipping at two of them
    expected = softmax_mse(seen["logits"][2:], seen["target"].softmax(1), batch.inside_u)
    torch.testing.assert_close(terms["consistency"], expected)


@pytest.mark.parametrize(("iteration", "decay"), [(0, 0.0), (1, 0.5), (3, 0.75), (500, 0.99)])
def test_mean_teacher_follows_the_student(
    iteration, decay, build, plain_update, weights, batch
) -> None:
    """The average of all students so far at first, the moving average later."""
    method = build(MeanTeacher).train()
    with torch.no_grad():
        for p in method.teacher.parameters():
            p.add_(0.1)
    before = weights(method)
    method.step(batch, Progress(iteration, 1000), plain_update(method))
    after = weights(method)
    for key in (k for k in after if k.startswith("teacher.")):
        student = after[key.replace("teacher.", "student.", 1)]
        torch.testing.assert_close(after[key], decay * before[key] + (1 - decay) * student)


def test_mean_teacher_predicts_with_the_student(build, batch) -> None:
    method = build(MeanTeacher).eval()
    with torch.no_grad():
        before = method.predict(batch.image_u)
        for p in method.teacher.parameters():
            p.zero_()
        assert torch.equal(method.predict(batch.image_u), before)


# What the methods share


def test_ema_against_the_formula() -> None:
    torch.manual_seed(0)
    target, source = nn.Linear(3, 2), nn.Linear(3, 2)
    expected = [
        [0.9 * t + 0.1 * s for t, s in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)]
        for a, b in zip(target.parameters(), source.parameters(), strict=True)
    ]
    kept = [p.clone() for p in source.parameters()]
    ema_(target, source, 0.9)
    for parameter, values in zip(target.parameters(), expected, strict=True):
        assert parameter.flatten().tolist() == pytest.approx(values, rel=1e-6)
    assert all(torch.equal(p, k) for p, k in zip(source.parameters(), kept, strict=True))


def test_a_frozen_copy_is_equal_apart_and_frozen() -> None:
    network = VNet(1, 2, 1)
    copy = frozen_copy(network)
    assert not any(p.requires_grad for p in copy.parameters())
    assert all(p.requires_grad for p in network.parameters())
    for a, b in zip(network.parameters(), copy.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr()


@pytest.mark.parametrize("length", [0.25, 0.4, 1.0])
def test_the_ramp(length: float) -> None:
    end = length * 200
    values = [Progress(i, 200).ramp(length) for i in range(201)]
    for i, value in enumerate(values):
        assert value == pytest.approx(math.exp(-5 * (1 - min(i, end) / end) ** 2))
    assert values[0] == pytest.approx(0.0067, abs=1e-4)
    assert values[-1] == 1
    assert values == sorted(values)
    assert Progress(0, 200).ramp(0) == 1


def test_moving_a_batch_keeps_it() -> None:
    images = torch.arange(2 * 3 * 8, dtype=torch.float32).reshape(2, 3, 2, 2, 2)
    label, inside = torch.arange(16).reshape(2, 2, 2, 2), torch.rand(2, 2, 2, 2) > 0.5
    batch = Batch(images, label, images + 1, inside, ("a", "b", "c", "d"))
    moved = batch.to(torch.device("cpu"))
    assert moved.cases == batch.cases
    for field in ("image_l", "label_l", "image_u", "inside_u"):
        assert torch.equal(getattr(moved, field), getattr(batch, field))
        assert getattr(moved, field).dtype == getattr(batch, field).dtype


@every_method
def test_options_are_closed(name) -> None:
    assert issubclass(METHODS[name].Config, Section)
    with pytest.raises(ValueError, match="extra"):
        METHODS[name].Config.model_validate({"no_such_option": 1})
