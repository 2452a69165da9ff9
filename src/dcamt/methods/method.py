"""What a training method is: the protocol every file in this folder follows.

A method owns its networks and says what happens in one iteration. The engine owns devices, data,
optimisers, schedules and files, and lends the method ``update``, which it calls with its loss.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from dcamt.config import Section, TrainConfig
from dcamt.networks.vnet import VNet


@dataclass(frozen=True)
class Batch:
    """One iteration's patches. Labels of unlabelled cases are not here to leak.

    L labelled and U unlabelled patches of C channels and (X, Y, Z) voxels. ``inside`` tells real
    voxels from the padding of volumes smaller than the patch.
    """

    image_l: Tensor  # (L, C, X, Y, Z) float32
    label_l: Tensor  # (L, X, Y, Z) int64, IGNORE where not annotated
    image_u: Tensor  # (U, C, X, Y, Z) float32
    inside_u: Tensor  # (U, X, Y, Z) bool
    cases: tuple[str, ...]  # L + U names

    def pin_memory(self) -> "Batch":
        """In memory that a GPU copies from while the CPU goes on; a DataLoader calls this."""
        images = self.image_l.pin_memory(), self.label_l.pin_memory(), self.image_u.pin_memory()
        return Batch(*images, self.inside_u.pin_memory(), self.cases)

    def to(self, device: torch.device) -> "Batch":
        def move(x: Tensor) -> Tensor:
            layout = torch.channels_last_3d if x.ndim == 5 else torch.preserve_format
            return x.to(device, non_blocking=True, memory_format=layout)

        labeled = move(self.image_l), move(self.label_l)
        return Batch(*labeled, move(self.image_u), move(self.inside_u), self.cases)


@dataclass(frozen=True)
class Progress:
    """Where training is: ``iteration`` of ``iterations``, counted from 0."""

    iteration: int
    iterations: int

    def ramp(self, length: float) -> float:
        """Sigmoid ramp ``exp(-5 (1 - min(t, R) / R)^2)``, R = ``length`` x iterations."""
        end = length * self.iterations
        left = 1 - min(self.iteration, end) / end if end > 0 else 0.0
        return math.exp(-5 * left**2)


class Update(Protocol):
    """Back-propagate ``loss`` and step the optimisers of ``parts`` (no names: all of them)."""

    def __call__(self, loss: Tensor, *parts: str) -> None: ...


class Method(nn.Module):
    """Base of every method; being a module, device, state and resume come free."""

    Config: ClassVar[type[Section]] = Section
    networks: ClassVar[int] = 1
    """How many ``predict`` averages."""

    def __init__(self, config: Any, network: Callable[[], VNet]):
        super().__init__()
        self.config = config

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by optimiser; one SGD for all of them unless overridden."""
        return {"all": [p for p in self.parameters() if p.requires_grad]}

    def optimizer(self, part: str, parameters: list[nn.Parameter], train: TrainConfig) -> Optimizer:
        """What steps a part: the protocol's SGD unless overridden.

        The protocol's rate and its decay are for SGD; any other optimiser keeps its own rate.
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
        raise NotImplementedError


@torch.no_grad()
def ema_(target: nn.Module, source: nn.Module, decay: float) -> None:
    """``target <- decay target + (1 - decay) source`` for every parameter, in place."""
    for t, s in zip(target.parameters(), source.parameters(), strict=True):
        t.lerp_(s, 1 - decay)


AnyModule = TypeVar("AnyModule", bound=nn.Module)


def frozen_copy(network: AnyModule) -> AnyModule:
    """A network with the same weights that no optimiser will touch."""
    return deepcopy(network).requires_grad_(False)
