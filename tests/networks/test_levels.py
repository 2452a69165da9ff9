"""Levels of a U-Net against plans that nnU-Net has published, and by hand."""

from math import prod

import pytest

from dcamt.networks.levels import strides_and_kernels

FLAT, FULL, HALF, WHOLE = (1, 3, 3), (3, 3, 3), (1, 2, 2), (2, 2, 2)


def test_a_cube_is_halved_alike_along_each_axis() -> None:
    """Brain tumours in nnU-Net: patches of 128, five downsamplings, 4 voxels left."""
    strides, kernels = strides_and_kernels((128, 128, 128), (1.0, 1.0, 1.0))
    assert strides == [(1, 1, 1), *[WHOLE] * 5]
    assert kernels == [FULL] * 6


def test_a_coarse_axis_waits_until_the_others_are_as_coarse() -> None:
    """Prostate in nnU-Net: 3.6 mm slices of 0.62 mm voxels, patches of 20 x 320 x 256."""
    strides, kernels = strides_and_kernels((20, 320, 256), (3.6, 0.62, 0.62))
    assert strides == [(1, 1, 1), HALF, HALF, WHOLE, WHOLE, HALF, HALF]
    assert kernels == [FLAT, FLAT, *[FULL] * 5]


def test_a_short_axis_is_kept() -> None:
    strides, kernels = strides_and_kernels((32, 7, 8), (1.0, 1.0, 1.0))
    assert strides == [(1, 1, 1), (2, 1, 2), (2, 1, 1), (2, 1, 1)]
    assert kernels == [FULL] * 4


def test_where_nothing_can_be_halved_there_is_one_level() -> None:
    assert strides_and_kernels((7, 4, 7), (1.0, 2.0, 5.0)) == ([(1, 1, 1)], [(3, 3, 3)])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 3.0, 1.1), (5.0, 1.0, 1.0)])
@pytest.mark.parametrize("patch", [(112, 112, 80), (16, 48, 8), (33, 5, 250), (8, 9, 11)])
def test_four_to_eight_voxels_are_left_where_there_were_more(patch, spacing) -> None:
    strides, kernels = strides_and_kernels(patch, spacing)
    assert len(kernels) == len(strides)
    for size, steps in zip(patch, zip(*strides, strict=True), strict=True):
        assert min(size, 4) <= size / prod(steps) < 8
