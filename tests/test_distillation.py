"""Distillation: what the learner sees, what teaches it, and what counts."""

from functools import partial

import pytest
import torch

from dcamt.distillation import Distilled
from dcamt.losses.consistency import distillation, soft_dice_between
from dcamt.losses.overlap import dice_ce
from dcamt.networks.vnet import VNet
from dcamt.types import IGNORE, Batch, Progress

AT = Progress(0, 10)
PATCH = (16, 16, 16)


@pytest.fixture
def batch():
    """One labelled and two unlabelled patches; the last four planes of axis 0 are padding."""
    random = torch.Generator().manual_seed(0)
    image = torch.randn(3, 1, *PATCH, generator=random)
    label = (image[:1, 0] > 1).long()
    inside = torch.ones(2, *PATCH).bool()
    label[:, -4:], inside[:, -4:] = IGNORE, False
    strong = image[1:] + torch.randn(2, 1, *PATCH, generator=random)
    return Batch(image[:1], label, image[1:], inside, ("a", "b", "c"), (strong,))


@pytest.fixture
def learner():
    """A method whose teacher says that bright voxels are foreground, and notes what it saw."""

    def make(**options):
        torch.manual_seed(0)
        method = Distilled(Distilled.Config(**options), partial(VNet, 1, 2, 2))
        method.seen = []

        def teacher(image):
            assert not torch.is_grad_enabled()
            method.seen.append(image)
            return torch.cat([-3 * image, 3 * image], 1).softmax(1)

        method.teacher = teacher
        return method

    return make


def step(method, batch):
    """The terms of one iteration and its loss."""
    losses = []
    terms = method.step(batch, AT, lambda loss, *parts: losses.append(loss))
    (loss,) = losses
    return terms, loss


def test_the_teacher_sees_the_weak_view_and_the_learner_both(learner, batch):
    method = learner()
    given = []
    method.network.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    terms, loss = step(method, batch)
    (taught_on,), (learnt_on,) = method.seen, given
    assert torch.equal(taught_on, batch.image_u)
    assert torch.equal(learnt_on, torch.cat([batch.image_u, batch.strong_u[0]]))
    assert terms == {"taught": loss}


def test_the_loss_is_that_of_the_file(learner, batch):
    method = learner(temperature=2.0, supervised=0.25)
    terms, loss = step(method, batch)
    logits = method.network(torch.cat([batch.image_u, batch.strong_u[0], batch.image_l]))
    own, labeled = logits[:-1], logits[-1:]
    with torch.no_grad():
        p = method.teacher(batch.image_u)
    log_p = p.clamp(min=1e-6).log()
    divergence = [distillation(part, log_p, batch.inside_u, 2.0) for part in own.split(2)]
    both = soft_dice_between(own, p.repeat(2, 1, 1, 1, 1), batch.inside_u.repeat(2, 1, 1, 1))
    taught = 0.5 * (sum(divergence) / 2 + both)
    torch.testing.assert_close(terms["taught"], taught)
    torch.testing.assert_close(loss, 0.25 * dice_ce(labeled, batch.label_l) + taught)


def test_padding_teaches_nothing(learner, batch):
    method = learner()
    teacher = method.teacher

    def wrong_there(image):
        said = teacher(image).clone()
        said[:, :, -4:] = said[:, :, -4:].flip(1)
        return said

    before = step(method, batch)[0]["taught"]
    method.teacher = wrong_there
    assert torch.equal(step(method, batch)[0]["taught"], before)


def test_only_the_learner_learns_and_only_it_is_saved(learner, batch):
    method = learner()
    _, loss = step(method, batch)
    loss.backward()
    assert all(p.grad is not None for p in method.parameters())
    assert {name.partition(".")[0] for name in method.state_dict()} == {"network"}


def test_training_makes_the_learner_say_what_the_teacher_says(learner, batch):
    method = learner().train()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9)

    def update(loss, *parts):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    terms = [method.step(batch, AT, update)["taught"].item() for _ in range(15)]
    assert terms[-1] < 0.9 * terms[0]
