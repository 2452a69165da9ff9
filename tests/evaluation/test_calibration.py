"""A confidence that is fitted on validation cases and judged on those left out."""

import numpy as np
import pytest

from dcamt.evaluation.calibration import calibrate, fit, judge, left_one_out

EXPECTED = np.array([0.95, 0.9, 0.8, 0.7, 0.6, 0.3])


def scores(rows):
    return {
        "cases": [dict(zip(("case", "class", "dice", "outcome"), r, strict=True)) for r in rows]
    }


def numbers(*expected):
    return {"classes": [{"volume_ml": 1.0, "expected_dice": value} for value in expected]}


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.5])
def test_the_exponent_that_made_the_dice_is_found(exponent):
    assert fit(EXPECTED, EXPECTED**exponent) == pytest.approx(exponent, rel=1e-3)


def test_networks_that_are_too_sure_get_a_lower_confidence():
    assert fit(EXPECTED, EXPECTED - 0.1) > 1


def test_a_case_is_judged_by_a_fit_on_the_others():
    dice = EXPECTED**2
    dice[0] = 0.1  # its own fit would bend towards it
    assert left_one_out(EXPECTED, dice)[0] == pytest.approx(EXPECTED[0] ** 2, rel=1e-3)


def test_error_and_rank_correlation_by_hand():
    assert judge([0.9, 0.8, 0.6], np.array([0.8, 0.9, 0.5])) == (pytest.approx(0.1), 0.5)


def test_no_rank_correlation_where_all_are_alike():
    assert judge([0.9, 0.9, 0.9], np.array([0.8, 0.9, 0.5]))[1] is None


def test_what_is_not_found_is_left_out_and_what_is_invented_counts_as_no_dice():
    found = {name: numbers(value) for name, value in zip("abcd", (0.9, 0.5, 0.0, 0.0), strict=True)}
    rows = [("a", 1, 0.9, "ok"), ("b", 1, 0.0, "invented"), ("c", 1, 0.0, "missed")]
    (fitted,) = calibrate(found, scores([*rows, ("d", 1, None, "both empty")]), 1)["classes"]
    assert fitted["cases"] == 2
    assert not fitted["always"]  # b and d have no such structure
    assert fitted["exponent"] == pytest.approx(fit(np.array([0.9, 0.5]), np.array([0.9, 0])))


def test_one_of_ten_validation_cases_would_be_flagged():
    expected = np.linspace(0.5, 0.95, 40)
    found = {str(i): numbers(value) for i, value in enumerate(expected)}
    rows = [(str(i), 1, value, "ok") for i, value in enumerate(expected)]
    (fitted,) = calibrate(found, scores(rows), 1)["classes"]
    assert fitted["always"]
    assert (expected ** fitted["exponent"] < fitted["look_below"]).sum() == 4


def test_a_class_of_one_case_has_no_calibration():
    found = {"a": numbers(0.9, 0.8), "b": numbers(0.9, 0.0)}
    rows = [(case, k, 0.8, "ok") for case in "ab" for k in (1, 2)]
    rows[-1] = ("b", 2, 0.0, "missed")
    first, second = calibrate(found, scores(rows), 2)["classes"]
    assert first is not None
    assert second is None
