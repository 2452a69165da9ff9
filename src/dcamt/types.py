"""What data, methods and the engine hand one another; it knows nothing above it.

Shapes: B patches, L of them labelled and U not, C channels, (X, Y, Z) voxels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

IGNORE = -1
"""Label of a voxel that no loss and no metric counts: padding, or not annotated."""


@dataclass(frozen=True)
class Batch:
    """One iteration's patches. Labels of unlabelled cases are not here to leak.

    L labelled and U unlabelled patches of C channels and (X, Y, Z) voxels. ``inside`` tells real
    voxels from the padding of volumes smaller than the patch. ``strong_u`` are views of the
    unlabelled patches with other intensities, as many as the method asks for (``Method.views``).
    """

    image_l: Tensor  # (L, C, X, Y, Z) float32
    label_l: Tensor  # (L, X, Y, Z) int64, IGNORE where not annotated
    image_u: Tensor  # (U, C, X, Y, Z) float32
    inside_u: Tensor  # (U, X, Y, Z) bool
    cases: tuple[str, ...]  # L + U names
    strong_u: tuple[Tensor, ...] = ()  # each (U, C, X, Y, Z) float32

    def pin_memory(self) -> "Batch":
        """In memory that a GPU copies from while the CPU goes on; a DataLoader calls this."""
        return self._each(lambda x: x.pin_memory())

    def to(self, device: torch.device) -> "Batch":
        """On ``device``, with the channels of images last in memory."""

        def move(x: Tensor) -> Tensor:
            layout = torch.channels_last_3d if x.ndim == 5 else torch.preserve_format
            return x.to(device, non_blocking=True, memory_format=layout)

        return self._each(move)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(
            change(self.image_l),
            change(self.label_l),
            change(self.image_u),
            change(self.inside_u),
            self.cases,
            tuple(change(view) for view in self.strong_u),
        )


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
