"""The Dice that probabilities lead to expect."""

import numpy as np
import pytest

from dcamt.inference.confidence import expected_dice
from dcamt.inference.predict import most_probable


def of(foreground):
    p = np.array(foreground, np.float32).reshape(1, 1, -1)
    probabilities = np.stack([1 - p, p])
    return expected_dice(probabilities, most_probable(probabilities))


def test_expected_dice_by_hand():
    # S = the first two voxels: 2 (0.9 + 0.6) / (0.9 + 0.6 + 0.3 + 2).
    assert of([0.9, 0.6, 0.3, 0.0]) == pytest.approx([2 * 1.5 / 3.8])


def test_certain_probabilities_lead_to_expect_the_whole_dice():
    assert of([1, 1, 0]) == [1.0]
    assert of([1 + 1e-6, 1 + 1e-6, 0]) == [1.0]  # as rounding leaves it


def test_a_class_that_is_not_found_is_expected_to_have_no_dice():
    assert of([0.4, 0.1, 0.0]) == [0.0]


def test_each_class_has_a_value_of_its_own():
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet([1, 1, 3], (4, 5, 6)).astype(np.float32).transpose(3, 0, 1, 2)
    classes = most_probable(probabilities)
    for k, value in enumerate(expected_dice(probabilities, classes), 1):
        p, found = probabilities[k], classes == k
        assert value == pytest.approx(2 * p[found].sum() / (p.sum() + found.sum()), rel=1e-5)


def test_expected_dice_is_the_mean_dice_of_labels_drawn_from_the_probabilities():
    rng = np.random.default_rng(2)
    p = rng.beta(0.3, 0.6, 4000)
    found = p > 0.5
    drawn = [rng.random(len(p)) < p for _ in range(50)]
    dice = np.mean([2 * (label & found).sum() / (label.sum() + found.sum()) for label in drawn])
    assert of(p)[0] == pytest.approx(dice, abs=0.005)
