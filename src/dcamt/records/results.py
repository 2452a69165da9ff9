"""Results: the results.json of ``dcamt compare``, which its tables and figures show."""

from typing import Any, Literal, TypedDict

from dcamt.records.scores import Metrics, Scores, Summary


class RunScores(Scores):
    """The scores of one run, with its seed and its folder, as seen from results.json."""

    seed: int
    folder: str


class ResultRow(Summary):
    """One method with one number of labels, over its seeds.

    name: as the table calls it. method: its configuration. labels: "8" or "all", and labeled: how
    many those are. ceiling: whether it is the V-Net with all labels. p: of each metric against the
    first row of as many labels, None for what cannot be tested. gap_closed: share of the way from
    the V-Net with few labels to the ceiling, in Dice; None where there is no such way.
    """

    name: str
    method: dict[str, Any]
    labels: str
    labeled: int
    ceiling: bool
    seeds: list[int]
    p: Metrics
    gap_closed: float | None
    runs: list[RunScores]


class Results(TypedDict):
    """A whole comparison.

    cases: which ones were scored, and case_count: how many they are. weights: "last". unit: of
    distances. first: the method that the others are tested against.
    """

    dataset: str
    cases: Literal["test", "validation"]
    case_count: int
    weights: str
    unit: str
    first: str
    rows: list[ResultRow]
