"""Statistics of a comparison against slow computations that follow the definitions."""

from itertools import product
from statistics import fmean

import numpy as np
import pytest

from dcamt.evaluation.metrics import METRICS
from dcamt.evaluation.statistics import (
    against_first,
    case_means,
    gap_closed,
    holm,
    over_seeds,
    paired_p,
)


def scores(dice, cases=(), missed=0):
    """What `evaluate` returns; ``cases`` are (case, Dice) of one class each."""
    mean = {"dice": dice, "jaccard": 0.5, "hd95": None, "asd": 1.0}
    rows = [{"case": case, **dict.fromkeys(METRICS), "dice": value} for case, value in cases]
    return {"mean": mean, "missed": missed, "invented": 0, "cases": rows}


def test_spread_is_the_samples_over_seeds():
    found = over_seeds([scores(0.8), scores(0.9, missed=2), scores(0.7, missed=1)])
    assert found["mean"]["dice"] == pytest.approx(0.8)
    assert found["std"]["dice"] == pytest.approx(0.1)  # sqrt((0.01 + 0.01) / 2)
    assert (found["mean"]["hd95"], found["std"]["hd95"]) == (None, None)
    assert found["missed"] == 3
    assert over_seeds([scores(0.8)])["std"]["dice"] is None


def test_a_case_counts_once_whatever_its_classes_and_seeds():
    runs = [scores(0, [("a", 0.2), ("a", 0.4), ("b", None)]), scores(0, [("a", 0.6), ("b", 0.9)])]
    assert case_means(runs, "dice") == pytest.approx({"a": 0.4, "b": 0.9})


def slow_wilcoxon(differences):
    """Share of all 2^n signs whose smaller rank sum is at most the one seen."""
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    total = ranks.sum()

    def smaller(positive):
        found = sum(rank for rank, sign in zip(ranks, positive, strict=True) if sign)
        return min(found, total - found)

    seen = smaller([d > 0 for d in differences])
    return fmean(smaller(signs) <= seen for signs in product([0, 1], repeat=len(ranks)))


def test_p_against_all_signs():
    rng = np.random.default_rng(0)
    for _ in range(5):
        differences = rng.normal(0.5, 1, 8)
        one = {str(i): float(d) for i, d in enumerate(differences)}
        other = {**dict.fromkeys(one, 0.0), "only here": 3.0}
        assert paired_p(one, other) == pytest.approx(slow_wilcoxon(differences))


def test_p_of_nothing():
    assert paired_p({"a": 0.5, "b": 0.1}, {"a": 0.5, "b": 0.1}) == 1.0
    assert paired_p({"a": 0.5}, {"b": 0.5}) is None


def test_holm():
    # By hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, then 0.04 is lifted to the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_each_metric_is_tested_against_the_first_method():
    base = [(str(i), 0.5) for i in range(8)]
    better = [(case, dice + 0.01 * (i + 1)) for i, (case, dice) in enumerate(base)]
    p = against_first([[scores(0.5, rows)] for rows in (base, better, base)])
    assert p[0]["dice"] is None
    assert p[1]["dice"] == pytest.approx(2 * 2 / 2**8)  # all signs alike, two methods
    assert p[2]["dice"] == 1.0
    assert p[1]["hd95"] is None


def test_gap():
    assert gap_closed(0.82, 0.80, 0.90) == pytest.approx(0.2)
    assert gap_closed(0.78, 0.80, 0.90) == pytest.approx(-0.2)
    assert gap_closed(0.82, 0.80, 0.804) is None
    assert gap_closed(0.70, 0.80, 0.75) is None  # with all labels it was worse: no gap to close
