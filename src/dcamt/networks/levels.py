"""How often a U-Net halves each axis, after nnU-Net's rules.

Isensee et al., "nnU-Net", Nature Methods 2021.
"""

from dcamt.networks.backbone import Patch, Spacing, Stride

LEAST = 4
"""Voxels that an axis keeps at the bottleneck."""
ALIKE = 2
"""Axes are alike where the spacing of one is less than this many times that of the other."""


def strides_and_kernels(patch: Patch, spacing: Spacing) -> tuple[list[Stride], list[Stride]]:
    """Stride into each level of the network, and the kernel there, the finest level first.

    ``patch`` in voxels, ``spacing`` in mm. An axis is halved as long as LEAST voxels of it are
    left. A coarse axis waits until halving has made the finer ones about as coarse. Until then its
    kernel is 1, after that 3.
    """
    sizes, mm = list(patch), list(spacing)
    kernel = [1, 1, 1]
    strides, kernels = [(1, 1, 1)], []
    while any(size >= 2 * LEAST for size in sizes):
        finest = min(s for s, size in zip(mm, sizes, strict=True) if size >= 2 * LEAST)
        halved = [z >= 2 * LEAST and s < ALIKE * finest for z, s in zip(sizes, mm, strict=True)]
        for axis in range(3):
            if mm[axis] < ALIKE * min(mm):
                kernel[axis] = 3
        kernels.append((kernel[0], kernel[1], kernel[2]))
        step = [2 if half else 1 for half in halved]
        strides.append((step[0], step[1], step[2]))
        sizes = [size // k for size, k in zip(sizes, step, strict=True)]
        mm = [s * k for s, k in zip(mm, step, strict=True)]
    return strides, [*kernels, (3, 3, 3)]
