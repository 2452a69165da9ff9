"""A tiny training set-up: a phantom batch and the engine's ``update`` in its simplest form."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from dcamt.config import TrainConfig
from dcamt.methods.method import Method
from dcamt.networks.vnet import VNet
from dcamt.section import Section
from dcamt.types import IGNORE, Batch

PATCH = (32, 16, 16)


class PlainUpdate:
    """One optimiser per part; keeps the losses it was given and the weights after each step."""

    def __init__(self, method: Method, learning_rate: float = 0.01):
        self.method = method
        settings = TrainConfig(learning_rate=learning_rate, weight_decay=0)
        self.optimizers = {
            name: method.optimizer(name, parameters, settings)
            for name, parameters in method.parts().items()
        }
        self.losses: list[float] = []
        self.states: list[dict[str, Tensor]] = []

    def __call__(self, loss: Tensor, *parts: str) -> None:
        chosen = [self.optimizers[name] for name in parts or self.optimizers]
        for optimizer in chosen:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in chosen:
            optimizer.step()
        self.losses.append(loss.item())
        self.states.append(snapshot(self.method))


def snapshot(method: Method) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in method.named_parameters()}


def phantom_batch(labeled: int = 2, unlabeled: int = 2, seed: int = 0) -> Batch:
    """Bright blocks in noise; the last four planes of axis 0 of each last patch are padding."""
    random = torch.Generator().manual_seed(seed)
    count = labeled + unlabeled
    label = torch.zeros(count, *PATCH, dtype=torch.long)
    for i in range(count):
        x, y, z = torch.randint(0, 5, (3,), generator=random).tolist()
        label[i, 4 + x : 16 + x, 2 + y : 10 + y, 2 + z : 10 + z] = 1
    image = (2.0 * label + 0.5 * torch.randn(label.shape, generator=random)).unsqueeze(1)
    inside = torch.ones(unlabeled, *PATCH, dtype=torch.bool)
    inside[-1, -4:] = False
    label[labeled - 1, -4:] = IGNORE
    names = tuple(f"case_{i}" for i in range(count))
    image_u = image[labeled:]
    strong = tuple(1.3 * image_u + torch.randn(image_u.shape, generator=random) for _ in range(2))
    return Batch(image[:labeled], label[:labeled], image_u, inside, names, strong)


@pytest.fixture
def batch() -> Batch:
    return phantom_batch()


Build = Callable[..., Method]


@pytest.fixture
def build() -> Build:
    """``build(kind, seed=0, **options)``: a method on V-Nets of width 2."""

    def make(kind: type[Method], seed: int = 0, **options: object) -> Method:
        torch.manual_seed(seed)
        config: Section = kind.Config.model_validate(options)
        return kind(config, partial(VNet, 1, 2, 2))

    return make


@pytest.fixture
def plain_update() -> type[PlainUpdate]:
    return PlainUpdate


@pytest.fixture
def weights() -> Callable[[Method], dict[str, Tensor]]:
    return snapshot


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    return phantom_batch
