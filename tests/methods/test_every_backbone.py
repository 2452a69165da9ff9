"""Every method on every backbone: one step, saved and loaded, and a prediction."""

import pytest
import torch

from dcamt.config import Config, load_config
from dcamt.engine import checkpoint
from dcamt.engine.device import make_fabric
from dcamt.engine.trainer import Update, make_optimizers
from dcamt.methods import METHODS
from dcamt.networks import BACKBONES
from dcamt.networks.folding import fold
from dcamt.networks.swin_unetr import SwinUNETR
from dcamt.runs.build import build_method, check_networks
from dcamt.runs.complexity import with_plan
from dcamt.types import IGNORE, Batch, Progress
from smallest import smallest

LATE = Progress(900, 1000)


def configured(method: str, backbone: str, *settings: str) -> Config:
    width, patch = smallest(backbone)
    chosen = [f"method.name={method}", f"network.name={backbone}", f"network.width={width}"]
    return with_plan(load_config(None, [*chosen, *settings]), patch, 1, 2, None)


def batch_for(patch: tuple[int, int, int]) -> Batch:
    """Bright blocks in noise, the last plane padding."""
    label = torch.zeros(2, *patch, dtype=torch.long)
    label[:, 4:12, 3:12, 5:13] = 1
    image = (2.0 * label + 0.5 * torch.randn(label.shape)).unsqueeze(1)
    label[:, -1] = IGNORE
    inside = torch.ones(1, *patch, dtype=torch.bool)
    inside[:, -1] = False
    return Batch(image[:1], label[:1], image[1:], inside, ("a", "b"), (image[1:], 2 * image[1:]))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", METHODS)
def test_a_step_a_checkpoint_and_a_prediction(name, backbone, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(SwinUNETR, "window", 2)  # five times faster than 7
    settings = ["method.passes=1"] if name == "ua-mt" else []
    config = configured(name, backbone, *settings)
    check_networks(config)
    method = build_method(config).train()
    batch = batch_for(config.plan.patch)
    update = Update(make_fabric("cpu", "32-true"), make_optimizers(method, config.train))
    before = {key: p.detach().clone() for key, p in method.named_parameters()}
    terms = method.step(batch, LATE, update)
    assert all(torch.isfinite(term) for term in terms.values())
    trained = {key for key, p in method.named_parameters() if p.requires_grad}
    without = {key for key in trained if dict(method.named_parameters())[key].grad is None}
    assert not without
    moved = {key for key in trained if not torch.equal(method.get_parameter(key), before[key])}
    assert len(moved) > len(trained) / 3  # what a norm of 0 is ahead of stays at first
    checkpoint.save(tmp_path / "last.safetensors", method, {}, {"iteration": 1, "best": None})
    fresh = build_method(config.model_copy(update={"seed": 1}))
    checkpoint.load(tmp_path / "last.safetensors", fresh)
    with torch.no_grad():
        found = method.eval().branches(batch.image_u)
        again = fresh.eval().branches(batch.image_u)
    assert torch.equal(again, found)
    assert found.shape == (method.networks, 1, 2, *config.plan.patch)
    torch.testing.assert_close(found.sum(2), torch.ones_like(found[:, :, 0]))
    fold(fresh)  # as `predict` does
    with torch.no_grad():
        torch.testing.assert_close(fresh.branches(batch.image_u), found, atol=1e-4, rtol=0)
