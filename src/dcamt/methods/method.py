"""What a training method is: the protocol every file in this folder follows.

A method owns its networks and says what happens in one iteration. The engine owns devices, data,
optimisers, schedules and files, and lends the method ``update``, which it calls with its loss.
"""

from copy import deepcopy
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from dcamt.config import BackboneConfig, TrainConfig
from dcamt.networks.backbone import Network
from dcamt.section import Section
from dcamt.types import Batch, Progress, Update


class Method(nn.Module):
    """Base of every method; being a module, device, state and resume come free."""

    Config: ClassVar[type[Section]] = Section
    predicts: ClassVar[tuple[str, ...]] = ("network",)
    """The networks whose mean is the prediction: names of attributes, unless ``branches`` is
    overridden."""
    least_side: ClassVar[int] = 1
    """Voxels that each side of a patch must have."""
    views: int = 0
    """Strong views of each unlabelled patch that ``step`` looks at: ``Batch.strong_u``."""

    def __init__(self, config: Any, network: Network):
        super().__init__()
        self.config = config

    @property
    def networks(self) -> int:
        """How many networks ``predict`` averages."""
        return len(self.predicts)

    @classmethod
    def backbones(cls, config: Any, network: BackboneConfig) -> tuple[BackboneConfig, ...]:
        """The backbones that the method builds, where ``network`` is the configured one."""
        return (network,)

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by optimiser; one SGD for all of them unless overridden."""
        return {"all": [p for p in self.parameters() if p.requires_grad]}

    def optimizer(self, part: str, parameters: list[nn.Parameter], train: TrainConfig) -> Optimizer:
        """What steps a part: the protocol's SGD unless overridden.

        The protocol's rate and its decay are for SGD. Any other optimiser keeps its own rate, but
        where its parameter groups name an ``initial_lr``, that decays alike.
        """
        return SGD(
            parameters,
            lr=train.learning_rate,
            momentum=train.momentum,
            weight_decay=train.weight_decay,
        )

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        """One iteration; returns the scalar loss terms to log."""
        raise NotImplementedError

    def predict(self, image: Tensor) -> Tensor:
        """``(B, C, X, Y, Z)`` to probabilities ``(B, K, X, Y, Z)``."""
        return self.branches(image).mean(0)

    def branches(self, image: Tensor) -> Tensor:
        """Probabilities of each network that ``predict`` averages, ``(N, B, K, X, Y, Z)``."""
        found = [getattr(self, name)(image).float().softmax(1) for name in self.predicts]
        return torch.stack(found)


def falling_adamw(parameters: list[nn.Parameter], rate: float, train: TrainConfig) -> Optimizer:
    """AdamW at ``rate``, which falls as that of SGD does, with the configured weight decay."""
    falling = {"params": parameters, "initial_lr": rate}
    return AdamW([falling], lr=rate, weight_decay=train.weight_decay)


@torch.no_grad()
def ema_(target: nn.Module, source: nn.Module, decay: float) -> None:
    """``target <- decay target + (1 - decay) source`` for every parameter, in place."""
    for t, s in zip(target.parameters(), source.parameters(), strict=True):
        t.lerp_(s, 1 - decay)


def follow_(teacher: nn.Module, student: nn.Module, decay: float, before: int) -> None:
    """Make ``teacher`` the average of the student's weights: of all so far, later a moving one.

    ``before``: how often it was done already. ``decay``: share that it keeps of itself, at most.
    """
    ema_(teacher, student, min(1 - 1 / (before + 1), decay))


AnyModule = TypeVar("AnyModule", bound=nn.Module)


def frozen_copy(network: AnyModule) -> AnyModule:
    """A network with the same weights that no optimiser will touch."""
    return deepcopy(network).requires_grad_(False)
