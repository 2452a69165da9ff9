"""``--within 2h``: the largest training that this machine finishes in the time there is."""

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import torch

from dcamt.config import Config
from dcamt.data.dataset import Dataset
from dcamt.data.look import Look
from dcamt.data.plan import Fingerprint, make_plan
from dcamt.errors import InputError
from dcamt.inference.sliding_window import count_windows
from dcamt.memory import is_out_of_memory
from dcamt.networks import BACKBONES
from dcamt.records.run_folder import RunConfig
from dcamt.runs.build import build_method, network_stride
from dcamt.runs.complexity import count
from dcamt.runs.timing import measure_iteration

ENOUGH = 500
"""Iterations without which a smaller plan is better.

A coarse plan costs more than a short training: in as many iterations a V-Net with 8 labels has 84
Dice on hippocampi at 1 mm and 73 at 3 mm.
"""
FEWEST = 100
MOST = 20_000
_SHARE = 0.85
"""Of the time that is left, which training and segmentation may take as they are measured."""
_SCORED = 2e6
"""Voxels whose resampling and metrics take about a second."""


@dataclass(frozen=True)
class Size:
    """The size of a training, measured by the one that was planned."""

    batch: int  # times as many patches
    width: float  # share of the channels
    coarser: float  # least spacing, in times the finest one
    patch: float  # share of the voxels


LADDER = (
    Size(1, 0.5, 3, 1 / 16),
    Size(1, 0.5, 2, 1 / 8),
    Size(1, 0.5, 1.5, 1 / 4),
    Size(1, 0.5, 1, 1 / 2),
    Size(1, 0.5, 1, 1),
    Size(1, 1, 1, 1),
    Size(2, 1, 1, 1),
)
"""From small to large. A coarser patch covers about as much of the body as a fine one."""


@dataclass(frozen=True)
class Sized:
    """What was chosen. iteration, validation: seconds of an iteration, and of segmenting all
    validation cases."""

    config: RunConfig
    iteration: float
    validation: float
    most: int  # iterations, however much time there is
    larger: float | None = None  # an iteration of the next larger size, if that was too large

    def at(self, until: float) -> tuple[RunConfig, str]:
        """The configuration with as many iterations as fit before ``until``, and why these.

        Raises InputError where no training is worth while in that time.
        """
        left = until - time.monotonic()
        train, plan = self.config.train, self.config.plan
        fitting = min(self.most, int((_SHARE * left - self.validation) / self.iteration))
        fewest = min(FEWEST, self.most)
        if fitting < fewest:
            needed = (fewest * self.iteration + self.validation) / _SHARE
            raise InputError(
                f"--within: {_spoken(max(0, left))} are left after reading the scans, and "
                f"{fewest} iterations of the smallest plan take {_spoken(needed)} on this machine; "
                "allow more time"
            )
        sides = "x".join(map(str, plan.patch))
        spacing = " x ".join(f"{side:g}" for side in plan.spacing)
        why = (
            f"--within: {fitting} iterations of {self.iteration:.2g} s, patches of {sides} voxels "
            f"of {spacing} mm, {train.labeled_batch} + {train.unlabeled_batch} of them, network of "
            f"width {self.config.network.width}"
        )
        if self.larger is not None:
            why += f"; the next larger plan takes {self.larger:.2g} s an iteration"
        chosen = train.model_copy(update={"iterations": fitting})
        return self.config.model_copy(update={"train": chosen}), why


def parse_duration(text: str) -> float:
    """Seconds of ``2h``, ``90m``, ``1h30m`` or ``1.5 h``; InputError for anything else."""
    parts = re.fullmatch(r"\s*(?:([\d.]+)\s*h)?\s*(?:([\d.]+)\s*m(?:in)?)?\s*", text)
    try:
        hours, minutes = (float(part or 0) for part in parts.groups()) if parts else (0.0, 0.0)
    except ValueError:
        hours = minutes = 0.0
    seconds = 3600 * hours + 60 * minutes
    if not 0 < seconds < 1e7:
        raise InputError(f"--within {text}: write it as 2h, 90m or 1h30m")
    return seconds


def choose_size(
    planned: RunConfig,
    asked: Config,
    dataset: Dataset,
    found: Fingerprint,
    held_out: Sequence[Look],
    until: float,
) -> Sized:
    """The largest size of ``LADDER`` that makes enough iterations before ``until`` (monotonic).

    Sizes are timed on this machine, one after another; the smallest is taken where none is fast
    enough. What ``asked`` sets (spacing, patch, width, batches) stays as it is; iterations that
    it sets are the most.
    """
    given = "iterations" in asked.train.model_fields_set
    most, wanted = (asked.train.iterations,) * 2 if given else (MOST, ENOUGH)
    chosen, done = None, 1  # done: the work of what is chosen
    for config in _distinct(_resized(planned, asked, dataset, found, size) for size in LADDER):
        left = _SHARE * (until - time.monotonic())
        work = _work(config)
        if chosen is not None:
            expected = chosen.iteration * work / done
            if expected * wanted > 1.5 * left:
                return replace(chosen, larger=expected)
        try:
            iteration, window = measure_iteration(config)
        except Exception as error:
            too_large = isinstance(error, InputError) or is_out_of_memory(error)
            if chosen is None or not too_large:
                raise
            return chosen  # the larger one is more than this machine holds
        segmentation = window * _windows(config, held_out) + _voxels(held_out) / _SCORED
        if chosen is not None and iteration * wanted + segmentation > left:
            return replace(chosen, larger=iteration)
        chosen, done = Sized(config, iteration, segmentation, most), work
    assert chosen is not None
    return chosen


def _distinct(configs: Iterable[RunConfig | None]) -> list[RunConfig]:
    kept: list[RunConfig] = []
    for config in configs:
        if config is not None and config not in kept:
            kept.append(config)
    return kept


def _resized(
    planned: RunConfig, asked: Config, dataset: Dataset, found: Fingerprint, size: Size
) -> RunConfig | None:
    """``planned`` in another size where ``asked`` leaves that open; None if that cannot be."""
    plan, network, train = planned.plan, planned.network, planned.train
    if asked.plan is None:
        least = size.coarser * min(plan.spacing)
        x, y, z = (max(least, side) for side in plan.spacing)
        data = asked.data.model_copy(update={"spacing": asked.data.spacing or (x, y, z)})
        try:
            stride = partial(network_stride, planned)
            plan = make_plan(dataset, found, data, stride, size.patch * prod(plan.patch))
        except InputError:
            return None
    if asked.network.width is None:
        step = BACKBONES[network.name].width_step
        assert network.width is not None
        width = max(step, int(network.width * size.width) // step * step)
        network = network.model_copy(update={"width": width})
    batches = {
        key: size.batch * getattr(train, key)
        for key in ("labeled_batch", "unlabeled_batch")
        if key not in asked.train.model_fields_set
    }
    if "validate_every" not in asked.train.model_fields_set:
        batches["validate_every"] = 0  # the last weights count, and each look takes time
    train = train.model_copy(update=batches)
    return planned.model_copy(update={"plan": plan, "network": network, "train": train})


def _work(config: RunConfig) -> int:
    """Multiply-accumulates of an iteration, in proportion."""
    with torch.device("meta"):
        method = build_method(config)
    patches = config.train.labeled_batch + config.train.unlabeled_batch
    return patches * count(method, len(config.plan.channels), config.plan.patch)["macs"]


def _windows(config: RunConfig, held_out: Sequence[Look]) -> int:
    """Windows of all validation cases."""
    plan = config.plan
    grids = [look.grid for look in held_out if look.grid is not None]
    return sum(count_windows(grid.prepared(plan), plan.patch, config.predict) for grid in grids)


def _voxels(looks: Sequence[Look]) -> int:
    return sum(prod(look.grid.whole) for look in looks if look.grid is not None)


def _spoken(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
