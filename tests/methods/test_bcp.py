"""BCP: what is pasted where, with which label, and its two phases."""

import pytest
import torch

from dcamt.losses.overlap import dice_ce
from dcamt.methods.bcp import BCP
from dcamt.ops.components import keep_largest
from dcamt.ops.mix import copy_paste, random_box
from dcamt.types import IGNORE, Progress

SELF_TRAINING = Progress(500, 1000)


@pytest.mark.parametrize(("labeled", "unlabeled"), [(2, 2), (1, 3), (3, 1)])
def test_mixed_volumes_and_labels_voxel_by_voxel(labeled, unlabeled, make_batch) -> None:
    batch = make_batch(labeled, unlabeled)
    guess = torch.randint(0, 2, batch.inside_u.shape).masked_fill(~batch.inside_u, IGNORE)
    mask = ~random_box(batch.inside_u.shape[1:], 2 / 3, torch.device("cpu"))
    image, known, guessed = copy_paste(batch, guess, mask)
    assert len(image) == len(known) == len(guessed) == labeled + unlabeled
    images, labels = (batch.image_l, batch.image_u), (batch.label_l, guess)
    for i in range(labeled + unlabeled):
        own = int(i >= labeled)  # 0: a labelled patch, 1: an unlabelled one
        place = i - labeled * own
        for x, y, z in torch.ones_like(mask).nonzero().tolist()[::7]:
            inside_box = not mask[x, y, z]
            source = 1 - own if inside_box else own
            item = place % len(images[source])
            assert image[i, 0, x, y, z] == images[source][item, 0, x, y, z]
            label = labels[source][item, x, y, z]
            assert known[i, x, y, z] == (label if source == 0 else IGNORE)
            assert guessed[i, x, y, z] == (label if source == 1 else IGNORE)


def test_the_loss_weighs_the_teachers_largest_component(build, plain_update, batch) -> None:
    method = build(BCP, weight=0.3).train()
    answer = torch.zeros(2, 2, *batch.inside_u.shape[1:])
    answer[:, 1] = -1
    answer[0, 1, 3:9, 3:9, 3:9] = answer[0, 1, 20:22, 12:14, 4] = 1
    answer[1, 1, 0:4, 2:6, 7:9] = answer[1, 1, 8:20, 2:6, 7:9] = 1
    method.teacher.register_forward_hook(lambda *_: answer)
    with torch.no_grad():
        found = answer.argmax(1)
        guess = torch.stack([torch.from_numpy(keep_largest(v.numpy())) for v in found])
        assert guess.sum() == found.sum() - 4 - 32, "an island in each"
        guess = guess.masked_fill(~batch.inside_u, IGNORE)
        torch.manual_seed(3)
        mask = ~random_box(batch.inside_u.shape[1:], 2 / 3, torch.device("cpu"))
        image, known, guessed = copy_paste(batch, guess, mask)
        logits = method.student(image)
    torch.manual_seed(3)
    update = plain_update(method)
    terms = method.step(batch, SELF_TRAINING, update)
    expected = dice_ce(logits, known), dice_ce(logits, guessed)
    torch.testing.assert_close(terms["supervised"].detach(), expected[0])
    torch.testing.assert_close(terms["pseudo"].detach(), expected[1])
    assert update.losses == [pytest.approx(float(expected[0] + 0.3 * expected[1]), rel=1e-5)]


def test_pretraining_mixes_labelled_patches_alone(build, plain_update, weights, batch) -> None:
    """2 of 17 parts of the run; the teacher is the student until it ends."""
    method = build(BCP).train()
    with torch.no_grad():
        torch.manual_seed(3)
        mask = ~random_box(batch.inside_u.shape[1:], 2 / 3, torch.device("cpu"))
        image, label = batch.image_l.flip(0).clone(), batch.label_l.flip(0).clone()
        image[:, :, mask], label[:, mask] = batch.image_l[:, :, mask], batch.label_l[:, mask]
        expected = dice_ce(method.student(image), label)
    batch.image_u.fill_(torch.nan)  # never looked at
    update = plain_update(method)
    torch.manual_seed(3)
    terms = method.step(batch, Progress(1, 17), update)
    torch.testing.assert_close(terms["supervised"].detach(), expected)
    assert terms["pseudo"] == 0
    assert update.losses == [pytest.approx(expected.item(), rel=1e-5)]
    taught = zip(method.teacher.parameters(), method.student.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in taught)


def test_the_teacher_follows_after_pretraining(build, plain_update, weights, batch) -> None:
    method = build(BCP).train()
    before = weights(method)
    terms = method.step(batch, Progress(2, 17), plain_update(method))
    assert terms["pseudo"] > 0
    after = weights(method)
    for key in (k for k in after if k.startswith("teacher.")):
        student = after[key.replace("teacher.", "student.", 1)]
        torch.testing.assert_close(after[key], 0.99 * before[key] + 0.01 * student)


def test_defaults_are_the_published_ones() -> None:
    c = BCP.Config()
    assert (c.paste, c.weight, c.decay) == (2 / 3, 0.5, 0.99)
    assert c.pretrain == pytest.approx(2000 / 17000)
