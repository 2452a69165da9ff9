"""Files of scores: what is read as such, and what is refused."""

import json
from copy import deepcopy
from typing import get_args

import pytest

from dcamt.errors import InputError
from dcamt.evaluation.metrics import METRICS, TITLES
from dcamt.records.scores import Metric, Metrics, class_summary, metrics_in, read_scores

SPREAD = {"dice": 0.1, "hd95": None}
SCORES = {
    "cases": [{"case": "a", "class": 1, "dice": 0.5, "hd95": 3, "outcome": "ok"}],
    "mean": {"dice": 0.5, "hd95": 3.0},
    "std": SPREAD,
    "per_class": {"1": {"dice": 0.5, "hd95": 3.0, "std": SPREAD, "missed": 2, "invented": 1}},
    "missed": 2,
    "invented": 1,
    "unit": "mm",
}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "scores.json"


def changed(path, value):
    """The scores with another value, or none (...), at ``path``."""
    scores = deepcopy(SCORES)
    *parents, key = path
    part = scores
    for parent in parents:
        part = part[parent]
    if value is ...:
        del part[key]
    else:
        part[key] = value
    return scores


def test_one_list_of_metrics():
    assert {*get_args(Metric)} == {*Metrics.__annotations__} == {*TITLES}
    assert metrics_in(["nsd", "case", *METRICS]) == ["nsd", *METRICS]


@pytest.mark.parametrize(
    "path",
    [("more",), ("mean", "more"), ("cases", 0, "more"), ("per_class", "1", "std", "more")],
)
def test_scores_are_read_as_they_are_written_with_whatever_else_is_there(file, path):
    scores = changed(path, {"b": 1})
    file.write_text(json.dumps(scores))
    assert read_scores(file, ["dice"]) == scores


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("unit",), ...),
        (("missed",), -1),
        (("missed",), True),
        (("mean", "dice"), "0.5"),
        (("mean", "dice"), float("nan")),
        (("mean", "hd95"), ...),
        (("std", "hd95"), ...),
        (("cases", 0, "class"), 1.0),
        (("cases", 0, "class"), 1 << 15),
        (("cases", 0, "outcome"), ...),
        (("cases", 0, "nsd"), 0.5),
        (("per_class", "1", "std"), ...),
        (("per_class", "1", "std", "dice"), ...),
        (("per_class", "left"), SCORES["per_class"]["1"]),
        (("tolerance",), "1"),
    ],
)
def test_what_is_not_scores_is_refused(file, path, value):
    file.write_text(json.dumps(changed(path, value)))
    with pytest.raises(InputError, match=r"scores\.json: lacks keys or holds values"):
        read_scores(file)


def test_metrics_that_are_needed_are_named(file):
    file.write_text(json.dumps(SCORES))
    with pytest.raises(InputError, match=r"scores\.json: lacks jaccard, asd; remove it"):
        read_scores(file, METRICS)


def test_a_class_in_the_form_of_the_whole():
    summary = class_summary(SCORES["per_class"]["1"])
    assert (summary["mean"]["dice"], summary["std"]) == (0.5, SPREAD)
    assert (summary["missed"], summary["invented"]) == (2, 1)
