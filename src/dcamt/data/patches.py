"""Training patches: drawn, cut, augmented and put into two-stream batches.

Iteration t draws from a generator seeded with (seed, t) alone, so any batch can be made again
without the ones before it: that is what makes a resumed run equal an uninterrupted one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation
from torch import Tensor

from dcamt.augmentation import AugmentConfig
from dcamt.config import Patch, TrainConfig
from dcamt.data.intensity import apply_changes, draw_changes
from dcamt.data.prepare import Prepared
from dcamt.types import IGNORE, Batch

_FOREGROUND_VOXELS = 1000
"""Foreground positions kept per case for the patches that must show some."""


@dataclass(frozen=True)
class Location:
    """Where a patch lies and how it is turned: enough to cut it again.

    ``start`` may be negative: the part of the patch outside the volume is padding.
    """

    start: tuple[int, int, int]
    size: tuple[int, int, int]  # before turning
    turns: int  # quarter turns in the plane of axes 0 and 1
    flips: tuple[int, ...]
    # (3, 3), patch voxels to volume voxels about the middle of the patch; None is straight.
    matrix: NDArray[np.float64] | None = None


def draw_location(
    rng: Generator,
    shape: tuple[int, ...],
    patch: Patch,
    augment: AugmentConfig,
    centre: NDArray[np.int64] | None = None,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Location:
    """A random patch of a volume of ``shape`` voxels.

    It holds ``centre``, if that is given, before it is turned and zoomed by ``augment``.
    """
    turns = int(rng.integers(4)) if augment.turns else 0
    size = (patch[1], patch[0], patch[2]) if turns % 2 else patch
    flips = tuple(axis for axis in augment.flips if rng.random() < 0.5)
    start = []
    for axis, (n, s) in enumerate(zip(shape, size, strict=True)):
        # A volume smaller than the patch is centred in it; a larger one holds it wholly.
        low, high = (0, n - s) if n >= s else (-((s - n) // 2),) * 2
        if centre is not None and n >= s:
            low, high = max(low, int(centre[axis]) - s + 1), min(high, int(centre[axis]))
        start.append(int(rng.integers(low, high + 1)))
    matrix = draw_matrix(rng, augment, spacing)
    return Location((start[0], start[1], start[2]), size, turns, flips, matrix)


def draw_matrix(
    rng: Generator, augment: AugmentConfig, spacing: tuple[float, float, float]
) -> NDArray[np.float64] | None:
    """A small random rotation and zoom in voxels, rigid in mm; None if there is none to draw."""
    if not augment.angle and not augment.zoom:
        return None

    def happens() -> bool:
        return augment.spatial == 1 or bool(rng.random() < augment.spatial)

    turned, zoomed = happens(), happens()
    if not turned and not zoomed:
        return None
    angles = rng.uniform(-augment.angle, augment.angle, 3) * turned
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    factor = np.exp(rng.uniform(-1, 1) * np.log1p(augment.zoom) * zoomed)
    size = np.array(spacing)
    matrix: NDArray[np.float64] = factor * rotation * size[None] / size[:, None]
    return matrix


def cut(array: NDArray[np.generic], at: Location, fill: float) -> NDArray[np.generic]:
    """The patch of ``array`` ``(..., X, Y, Z)`` at ``at``, turned; ``fill`` outside the volume."""
    result = _cut_straight(array, at, fill) if at.matrix is None else _cut_turned(array, at, fill)
    result = np.rot90(result, at.turns, axes=(-3, -2))
    for axis in at.flips:
        result = np.flip(result, axis - 3)
    return result


def _cut_turned(array: NDArray[np.generic], at: Location, fill: float) -> NDArray[np.generic]:
    """Sample the rotated, zoomed patch: linear for intensities, nearest for everything else."""
    assert at.matrix is not None
    middle = (np.array(at.size) - 1) / 2
    offset = np.array(at.start) + middle - at.matrix @ middle
    order = 1 if array.dtype.kind == "f" else 0
    volumes = array.reshape(-1, *array.shape[-3:])
    patches = [
        affine_transform(v, at.matrix, offset, at.size, order=order, mode="constant", cval=fill)
        for v in volumes
    ]
    return np.stack(patches).reshape(*array.shape[:-3], *at.size)


def _cut_straight(array: NDArray[np.generic], at: Location, fill: float) -> NDArray[np.generic]:
    result = np.full((*array.shape[:-3], *at.size), fill, dtype=array.dtype)
    source: tuple[Any, ...] = (...,)
    target: tuple[Any, ...] = (...,)
    for n, start, size in zip(array.shape[-3:], at.start, at.size, strict=True):
        low, high = max(start, 0), min(start + size, n)
        source += (slice(low, high),)
        target += (slice(low - start, high - start),)
    result[target] = array[source]
    return result


@dataclass(frozen=True, eq=False)
class IntensityChange:
    """Mild changes of contrast, brightness and noise, in standard deviations of the image."""

    contrast: NDArray[np.float32]  # (C, 1, 1, 1)
    shift: NDArray[np.float32]  # (C, 1, 1, 1)
    noise: NDArray[np.float32]  # (C, X, Y, Z)


def draw_intensity(
    rng: Generator, shape: tuple[int, ...], strength: float
) -> IntensityChange | None:
    """A random change of a patch of ``shape``, (C, X, Y, Z); None if there is none to draw."""
    if strength == 0:
        return None
    channels = (shape[0], 1, 1, 1)
    contrast = rng.uniform(1 - strength, 1 + strength, channels).astype(np.float32)
    shift = rng.uniform(-strength, strength, channels).astype(np.float32)
    noise = rng.standard_normal(shape, np.float32) * np.float32(rng.uniform(0, strength))
    return IntensityChange(contrast, shift, noise)


def change_intensity(
    image: NDArray[np.float32], change: IntensityChange | None
) -> NDArray[np.float32]:
    """``(C, X, Y, Z)`` with the intensities changed."""
    return image if change is None else image * change.contrast + change.shift + change.noise


class Batches(torch.utils.data.Dataset[Batch]):
    """Iteration number to Batch: labelled patches, then unlabelled ones.

    Each stream goes through its cases in a fresh random order, epoch by epoch. Of every unlabelled
    patch there are ``views`` strong ones.
    """

    def __init__(
        self,
        labeled: Sequence[Prepared],
        unlabeled: Sequence[Prepared],
        patch: Patch,
        train: TrainConfig,
        seed: int,
        spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
        views: int = 0,
    ):
        self.labeled = labeled
        # With every case labelled, the unlabelled stream shows the same images without labels.
        self.unlabeled = unlabeled or labeled
        self.patch, self.train, self.seed, self.spacing = patch, train, seed, spacing
        self.views = views
        self._foreground: dict[str, NDArray[np.int64]] = {}

    def __getitem__(self, iteration: int) -> Batch:
        rng = np.random.default_rng([self.seed, 0, iteration])
        labeled = self._pick(self.labeled, self.train.labeled_batch, iteration, stream=1)
        unlabeled = self._pick(self.unlabeled, self.train.unlabeled_batch, iteration, stream=2)
        images_l, labels, images_u, insides = [], [], [], []
        for case in labeled:
            centre = self._centre(rng, case)
            at = draw_location(
                rng, case.label.shape, self.patch, self.train.augment, centre, self.spacing
            )
            images_l.append(self._image(rng, case, at))
            labels.append(cut(case.label, at, IGNORE).astype(np.int64))
        for case in unlabeled:
            shape = case.image.shape[1:]
            at = draw_location(rng, shape, self.patch, self.train.augment, spacing=self.spacing)
            images_u.append(self._image(rng, case, at))
            insides.append(cut(np.broadcast_to(np.uint8(1), shape), at, 0).astype(bool))
        return Batch(
            torch.from_numpy(np.stack(images_l)),
            torch.from_numpy(np.stack(labels)),
            torch.from_numpy(np.stack(images_u)),
            torch.from_numpy(np.stack(insides)),
            tuple(case.name for case in (*labeled, *unlabeled)),
            self._strong(images_u, iteration),
        )

    def _strong(self, images: list[NDArray[np.float32]], iteration: int) -> tuple[Tensor, ...]:
        """Views of ``images``. They have a generator of their own, so other draws do not change."""
        rng = np.random.default_rng([self.seed, 3, iteration])

        def view() -> Tensor:
            changes = [draw_changes(rng, len(image), self.train.strong) for image in images]
            changed = map(apply_changes, images, changes)
            return torch.from_numpy(np.stack(list(changed)))

        return tuple(view() for _ in range(self.views))

    def _image(self, rng: Generator, case: Prepared, at: Location) -> NDArray[np.float32]:
        image = case.image
        patch = cut(image, at, 0.0).astype(np.float32)
        augment = self.train.augment
        patch = change_intensity(patch, draw_intensity(rng, patch.shape, augment.intensity))
        return apply_changes(patch, draw_changes(rng, len(patch), augment))

    def _centre(self, rng: Generator, case: Prepared) -> NDArray[np.int64] | None:
        """A foreground voxel to place the patch on; None for a patch that may lie anywhere."""
        if rng.random() >= self.train.foreground:
            return None
        if case.name not in self._foreground:
            found = np.argwhere(case.label > 0)
            keep = np.random.default_rng(self.seed).permutation(len(found))[:_FOREGROUND_VOXELS]
            self._foreground[case.name] = found[keep]
        voxels = self._foreground[case.name]
        return voxels[rng.integers(len(voxels))] if len(voxels) else None

    def _pick(
        self, cases: Sequence[Prepared], count: int, iteration: int, stream: int
    ) -> list[Prepared]:
        picked = []
        for draw in range(iteration * count, (iteration + 1) * count):
            epoch, position = divmod(draw, len(cases))
            order = np.random.default_rng([self.seed, stream, epoch]).permutation(len(cases))
            picked.append(cases[order[position]])
        return picked
