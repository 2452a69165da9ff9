"""The smallest network and patch of each backbone, for tests that run on all of them."""

from dcamt.networks import BACKBONES


def smallest(name: str) -> tuple[int, tuple[int, int, int]]:
    """Width, at least 2, and patch (voxels, sides of at least 16) of the backbone ``name``.

    At the bottleneck there are at least two voxels, as instance norm makes a single one 0.
    """
    kind = BACKBONES[name]
    width = max(2, kind.width_step)
    if kind.adapts:  # it halves a side until few voxels are left
        return width, (16, 16, 16)
    x, y, z = (max(16, side) for side in kind.stride)
    return width, (2 * x if (x, y, z) == kind.stride else x, y, z)
