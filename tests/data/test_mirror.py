"""Whether scans lie one way: told from images, never from labels."""

import numpy as np
import pytest

from dcamt.augmentation import AugmentConfig
from dcamt.data.mirror import choose_mirroring, lie_alike
from dcamt.data.prepare import Prepared


@pytest.fixture
def scans(tmp_path):
    """Noise with a bright half along ``bright``, and some of them mirrored along ``turned``.

    Every second one is mirrored, or the first ``few``.
    """

    def make(count, bright=(), turned=(), size=24, strength=2.0, few=None):
        random, made = np.random.default_rng(0), []
        for i in range(count):
            shape = (size + i % 3, size, size - i % 2)
            image = random.standard_normal(shape)
            for axis in bright:
                image += strength * (np.indices(shape)[axis] >= shape[axis] / 2)
            for axis in turned:
                mirrored = i % 2 if few is None else i < few
                image = np.flip(image, axis) if mirrored else image
            image = (image - image.mean()) / image.std()
            path = tmp_path / f"{count}{bright}{turned}{strength}{few}-{i}.npy"
            np.save(path, image[None].astype(np.float32))
            made.append(Prepared(f"case{i}", path, None))
        return made

    return make


def test_scans_that_lie_one_way_are_told_from_those_that_do_not(scans):
    assert lie_alike(scans(10)) == (False, False, False)
    assert lie_alike(scans(10, bright=(1,))) == (False, True, False)
    assert lie_alike(scans(10, bright=(0, 2))) == (True, False, True)
    assert lie_alike(scans(10, bright=(0, 1), turned=(1,))) == (True, False, False)


def test_a_small_likeness_does_not_count(scans):
    assert lie_alike(scans(10, bright=(0,), strength=0.35)) == (True, False, False)
    assert lie_alike(scans(10, bright=(0,), strength=0.2)) == (False, False, False)


def test_one_scan_in_ten_may_lie_another_way(scans):
    assert lie_alike(scans(20, bright=(0,), turned=(0,), few=2)) == (True, False, False)
    assert lie_alike(scans(20, bright=(0,), turned=(0,), few=3)) == (False, False, False)


def test_of_few_scans_nothing_is_said(scans):
    assert lie_alike(scans(3, bright=(0, 1, 2))) == (False, False, False)


def test_what_is_chosen_and_why(scans):
    chosen, why = choose_mirroring(AugmentConfig(), scans(8, bright=(0,)), "RAS")
    assert chosen.flip == (1,) and chosen.rotate is False
    assert "left-right" in why and "train.augment.flip" in why
    chosen, why = choose_mirroring(AugmentConfig(), scans(8), "RAS")
    assert chosen.flip == (0, 1) and chosen.rotate is True and why is None
    chosen, why = choose_mirroring(AugmentConfig(), scans(8, bright=(2,)), "SAL")
    assert chosen.flip == (0, 1) and "left-right" in why


def test_what_the_user_sets_stays(scans):
    asked = AugmentConfig(flip=(0, 1, 2), rotate=True)
    assert choose_mirroring(asked, scans(8, bright=(0, 1, 2)), "RAS") == (asked, None)
    chosen, _ = choose_mirroring(AugmentConfig(flip=(2,)), scans(8, bright=(0, 1, 2)), "RAS")
    assert chosen.flip == (2,) and chosen.rotate is False
