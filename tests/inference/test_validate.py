"""Validation in the middle of a training."""

import numpy as np
import pytest
import torch

from dcamt.data.prepare import Prepared
from dcamt.inference.predictor import make_predictor
from dcamt.inference.sliding_window import branch_probabilities
from dcamt.inference.validate import mean_dice
from dcamt.runs.build import load_run
from dcamt.types import IGNORE


def test_mean_dice_against_a_slow_reference(tiny_run, tmp_path):
    config, method = load_run(tiny_run)
    predictor = make_predictor(method, config.plan, torch.device("cpu"))
    rng = np.random.default_rng(0)
    cases, expected = [], []
    for i in range(3):
        image = rng.normal(size=(1, 18, 16, 17)).astype(np.float32)
        label = rng.integers(0, 2, (18, 16, 17)).astype(np.int8)
        label[:6] = IGNORE
        if i == 2:
            label[label > 0] = 0
        np.save(tmp_path / f"{i}.npy", image)
        np.save(tmp_path / f"{i}_label.npy", label)
        cases.append(Prepared(str(i), tmp_path / f"{i}.npy", tmp_path / f"{i}_label.npy"))
        probabilities = branch_probabilities(
            predictor, torch.from_numpy(image), config.plan.patch, 2, config.predict
        )
        both = one = two = 0
        guess = probabilities.mean(0).numpy().argmax(0)
        for voxel in np.ndindex(*label.shape):
            if label[voxel] != IGNORE:
                both += int(guess[voxel] == 1 and label[voxel] == 1)
                one += int(guess[voxel] == 1)
                two += int(label[voxel] == 1)
        if one + two:
            expected.append(2 * both / (one + two))
    assert mean_dice(method, cases, config.plan, config.predict) == pytest.approx(
        np.mean(expected), abs=1e-9
    )
    assert mean_dice(method, [], config.plan, config.predict) == 0
