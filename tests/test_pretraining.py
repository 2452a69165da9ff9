"""Masked reconstruction: what is hidden, and what counts."""

import pytest
import torch

from dcamt.config import load_config
from dcamt.engine.device import make_fabric
from dcamt.engine.trainer import Update, make_optimizers
from dcamt.networks import BACKBONES
from dcamt.networks.swin_unetr import SwinUNETR
from dcamt.pretraining import MaskedReconstruction, block_side
from dcamt.runs.build import make_network
from dcamt.runs.complexity import with_plan
from dcamt.types import IGNORE, Batch, Progress
from smallest import smallest

AT = Progress(0, 10)


def built(backbone="vnet", channels=2, **options):
    width, patch = smallest(backbone)
    settings = [f"network.name={backbone}", f"network.width={width}"]
    config = with_plan(load_config(None, settings), patch, channels, 2, None)
    torch.manual_seed(0)
    network = make_network(config.network, config.plan)
    return MaskedReconstruction(MaskedReconstruction.Config(**options), network), patch


def batch_of(patch, channels=2):
    image = torch.randn(2, channels, *patch, generator=torch.Generator().manual_seed(0))
    label, inside = torch.zeros(1, *patch).long(), torch.ones(1, *patch).bool()
    label[:, :4], inside[:, :4] = IGNORE, False
    return Batch(image[:1], label, image[1:], inside, ("a", "b"))


def loss_of(method, batch):
    losses = []
    torch.manual_seed(1)
    terms = method.step(batch, AT, lambda loss, *parts: losses.append(loss))
    assert list(terms) == ["reconstruction"]
    assert losses == [terms["reconstruction"]]
    return losses[0]


@pytest.mark.parametrize(("side", "block", "found"),
                         [(16, 8, 8), (48, 8, 8), (8, 8, 4), (12, 8, 4), (20, 6, 2), (3, 8, 1),
                          (1, 8, 1), (2, 8, 1)])  # fmt: skip
def test_blocks_divide_the_patch(side, block, found) -> None:
    assert block_side(side, block) == found


def test_hidden_voxels_are_not_seen_and_alone_count(monkeypatch) -> None:
    method, patch = built()
    batch = batch_of(patch)
    hidden = torch.zeros(2, *patch).bool()
    hidden[:, :8] = True
    monkeypatch.setattr("dcamt.pretraining.random_blocks", lambda *given: hidden)
    seen = []
    encode = method.network.encode
    monkeypatch.setattr(method.network, "encode", lambda x: (seen.append(x), encode(x))[1])
    loss = loss_of(method, batch)
    (x,) = seen
    image = torch.cat([batch.image_l, batch.image_u])
    assert torch.equal(x[:, :, 8:], image[:, :, 8:])
    assert not x[:, :, :8].any()
    with torch.no_grad():
        said = method.reconstruction(method.network.decode_features(*encode(x)))
    expected = (said - image)[:, :, 4:8].square().mean()  # the planes before are padding
    torch.testing.assert_close(loss.detach(), expected)


def test_labels_are_not_looked_at() -> None:
    method, patch = built()
    batch = batch_of(patch)
    other = Batch(batch.image_l, batch.label_l.clone(), batch.image_u, batch.inside_u, batch.cases)
    other.label_l[:, 4:] = 1
    assert torch.equal(loss_of(method.eval(), batch), loss_of(method, other))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_learns_with_all_of_its_layers(backbone, monkeypatch) -> None:
    monkeypatch.setattr(SwinUNETR, "window", 2)
    method, patch = built(backbone)
    settings = load_config(None, ["train.learning_rate=0.02"]).train
    update = Update(make_fabric("cpu", "32-true"), make_optimizers(method, settings))
    losses = []
    for _ in range(3):
        torch.manual_seed(1)
        terms = method.train().step(batch_of(patch), AT, update)
        losses.append(terms["reconstruction"].item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for p in method.parameters())
    assert not [name for name in method.state_dict() if "head" in name]
