"""What ``predict`` takes of memory for one scan, told before it is taken.

Counts are of float32 values, 4 bytes each. Arrays of the whole scan are counted one by one, as
dcamt.inference.predict holds them; what networks hold for their windows has been counted when the
predictor was made.
"""

import math

from dcamt.data.space import Placement, Shape
from dcamt.inference.predictor import Predictor
from dcamt.inference.sliding_window import count_windows
from dcamt.records.run_folder import RunConfig

BESIDE = 1.3
"""What networks take for a window, kernels included, as a multiple of what they are seen to hold.

A V-Net takes 1.1 of it, and networks with instance norm up to 1.5. The same prediction differs by a
quarter of it from run to run.
"""
LIBRARIES = 60e6
"""Bytes that libraries take at their first convolution: code, weights in another layout."""


def peak_memory(
    placement: Placement,
    prepared: Shape,
    config: RunConfig,
    predictor: Predictor,
    *,
    probabilities: bool = False,
    maps: int = 0,
    largest_component: bool = False,
) -> float:
    """Bytes that a scan takes at most at one time while it is segmented, its own values included.

    ``placement`` gives the voxels of the scan and of its content, ``prepared`` those that the
    network sees. maps: how many of uncertainty are written; the second needs every network apart.
    The flags are those of ``predict``. Of windows on a GPU only what comes back counts.
    """
    plan = config.plan
    channels, classes = len(plan.channels), len(plan.classes)
    scan, content, grid = (math.prod(s) for s in (placement.shape, placement.cropped, prepared))
    size = [max(n, side) for n, side in zip(prepared, plan.patch, strict=True)]
    padded = math.prod(size)
    kept = predictor.networks if maps > 1 else 1  # whose probabilities are stitched apart
    shown = classes * scan if probabilities else 0

    # Beside the scan: its content as a copy, then resampled, then normalised, channel by channel.
    prepare = channels * scan + max(
        channels * (content + grid),
        2 * channels * grid + 3 * grid,
    )
    batch = min(config.predict.batch, count_windows(prepared, plan.patch, config.predict))
    windows: float = 2 * batch * math.prod(plan.patch) * (channels + predictor.networks * classes)
    if predictor.device.type == "cpu":
        at_once = min(batch, predictor.streams or batch)
        windows += at_once * math.prod(plan.patch) * BESIDE * predictor.live
    stitched = kept * classes * padded
    stitch = channels * (grid + (padded if padded > grid else 0)) + stitched + padded + windows
    averaged = classes * grid if kept > 1 else 0
    restore = stitched + averaged + classes * scan + content
    held = (stitched + averaged + 2 * grid if maps else 0) + shown + scan / 4
    mapped = 2 * stitched if maps else 0  # distances of the networks from their mean, logarithms
    pieces = 4 * scan if largest_component else 0
    write = 2 * scan if probabilities or maps else scan / 2
    finish = held + max(mapped, pieces, write)
    return 4 * max(prepare, stitch, restore, finish) + LIBRARIES
