"""From the Dice that probabilities lead to expect to the Dice that cases really have."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import spearmanr

from dcamt.evaluation.metrics import INVENTED, MISSED, OK
from dcamt.records.scores import Scores
from dcamt.records.summary import Calibration, CaseNumbers, ClassCalibration

FEWEST = 2
"""Cases that one number is fitted on at least."""
LOOK_SHARE = 0.1
"""Share of the validation cases that would be flagged."""

Values = NDArray[np.float64]


def calibrate(numbers: Mapping[str, CaseNumbers], scores: Scores, classes: int) -> Calibration:
    """Fit each class on validation cases, their ``numbers`` by name and their ``scores``."""
    return {"classes": [_calibrate(numbers, scores, k) for k in range(1, classes + 1)]}


def _calibrate(
    numbers: Mapping[str, CaseNumbers], scores: Scores, k: int
) -> ClassCalibration | None:
    rows = [row for row in scores["cases"] if row["class"] == k]
    # Where nothing is found there is nothing to be sure of.
    pairs = [
        (numbers[row["case"]]["classes"][k - 1]["expected_dice"], row["dice"])
        for row in rows
        if row["outcome"] in (OK, INVENTED) and row["dice"] is not None
    ]
    if len(pairs) < FEWEST:
        return None
    expected, dice = np.array(pairs, np.float64).T
    exponent = fit(expected, dice)
    error, correlation = judge(left_one_out(expected, dice), dice)
    return {
        "exponent": exponent,
        "look_below": float(np.quantile(expected**exponent, LOOK_SHARE)),
        "always": all(row["outcome"] in (OK, MISSED) for row in rows),
        "cases": len(pairs),
        "mean_absolute_error": error,
        "rank_correlation": correlation,
    }


def fit(expected: Values, dice: Values) -> float:
    """The exponent g with the least ``sum (dice - expected ** g)^2``, of ``(n,)`` values each.

    One number, as validation cases are few. What is expected to be 0 or 1 stays so for every g, and
    the order of the cases stays as it is. g is above 1 where networks are too sure of themselves.
    """

    def error(log_exponent: float) -> float:
        return float(((dice - expected ** np.exp(log_exponent)) ** 2).sum())

    return float(np.exp(minimize_scalar(error, bounds=(-4.0, 4.0), method="bounded").x))


def left_one_out(expected: Values, dice: Values) -> Values:
    """The confidence ``(n,)`` in each case, by a fit on all others."""
    kept = ~np.eye(len(dice), dtype=bool)
    return np.array([e ** fit(expected[k], dice[k]) for e, k in zip(expected, kept, strict=True)])


def judge(confidence: Sequence[float] | Values, dice: Values) -> tuple[float, float | None]:
    """Mean absolute error of a confidence, and its rank correlation (Spearman) with Dice.

    The correlation is None where it is not defined: below three cases, or where all are alike.
    """
    values = np.asarray(confidence, np.float64)
    error = float(np.abs(values - dice).mean())
    if len(values) < 3 or np.ptp(values) == 0 or np.ptp(dice) == 0:
        return error, None
    return error, float(spearmanr(values, dice).statistic)
