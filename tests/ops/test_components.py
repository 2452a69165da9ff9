"""Largest components against a flood fill."""

import itertools

import numpy as np
import torch

from dcamt.ops.components import keep_largest, largest_components


def test_keep_largest_against_a_flood_fill() -> None:
    rng = np.random.default_rng(0)
    segmentation = (rng.random((12, 11, 10)) < 0.06) * rng.integers(1, 4, (12, 11, 10))
    segmentation = segmentation.astype(np.uint8)
    segmentation[2:5, 2:5, 2:5], segmentation[8:10, 8:10, 7:9] = 1, 2
    expected = np.zeros_like(segmentation)
    for k in (1, 2, 3):
        left = {tuple(v) for v in np.argwhere(segmentation == k)}
        pieces = []
        while left:
            piece, edge = set(), [left.pop()]
            while edge:
                voxel = edge.pop()
                piece.add(voxel)
                for step in itertools.product((-1, 0, 1), repeat=3):
                    beside = tuple(v + s for v, s in zip(voxel, step, strict=True))
                    if beside in left:
                        left.remove(beside)
                        edge.append(beside)
            pieces.append(piece)
        sizes = sorted(map(len, pieces))
        if sizes[-1] == sizes[-2]:
            continue
        for voxel in max(pieces, key=len):
            expected[voxel] = k
    found = keep_largest(segmentation)
    assert found.dtype == np.uint8
    settled = np.isin(segmentation, [0, *np.unique(expected)])
    np.testing.assert_array_equal(found[settled], expected[settled])
    assert {1, 2} <= set(np.unique(expected))


def test_keep_largest_of_nothing_is_nothing() -> None:
    assert not keep_largest(np.zeros((4, 4, 4), np.uint8)).any()


def test_a_batch_is_cleaned_item_by_item() -> None:
    classes = torch.zeros(2, 6, 5, 4, dtype=torch.long)
    classes[0, 0, 0, :3], classes[0, 4, 4, 0] = 2, 2
    classes[1, 4, 4, :2], classes[1, 0, 0, 0], classes[1, 3, 3, 2] = 2, 2, 1
    expected = classes.clone()
    expected[0, 4, 4, 0] = expected[1, 0, 0, 0] = 0
    found = largest_components(classes)
    assert found.dtype == torch.long
    assert torch.equal(found, expected)
