"""Scores: the JSON that ``dcamt evaluate`` writes, also as validation.json and test.json of runs.

docs/metrics.md shows such a file. Overlaps are fractions; distances have the unit of the file. A
metric is None where there was nothing to measure.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, NotRequired, get_args

from pydantic import ConfigDict, Field, FiniteFloat, NonNegativeInt, TypeAdapter, with_config

# Pydantic cannot read typing's TypedDict before Python 3.12.
from typing_extensions import TypedDict

from dcamt.data.volume import LARGEST_LABEL
from dcamt.errors import InputError
from dcamt.files import read_json
from dcamt.records.check import broken, checked

Metric = Literal["dice", "jaccard", "hd95", "asd", "assd", "hd", "hd95_max", "nsd"]
"""Every metric there is; `dcamt.evaluation.metrics` defines them."""
_METRICS: dict[str, Metric] = {name: name for name in get_args(Metric)}


class Metrics(TypedDict, total=False):
    """The metrics that were asked for."""

    dice: FiniteFloat | None
    jaccard: FiniteFloat | None
    hd95: FiniteFloat | None
    asd: FiniteFloat | None
    assd: FiniteFloat | None
    hd: FiniteFloat | None
    hd95_max: FiniteFloat | None
    nsd: FiniteFloat | None


class Named(TypedDict, total=False):
    """The name of a class, where the data set has one for it."""

    class_name: str


_Structure = TypedDict(
    "_Structure", {"class": Annotated[int, Field(ge=0, le=LARGEST_LABEL)], "outcome": str}
)


class StructureScore(_Structure, Metrics):
    """One class of one case: its label value, its metrics and what became of it.

    The outcome is "ok", "missed", "invented" or "both empty".
    """


class CaseScore(StructureScore, Named):
    """A structure with the case that it is of."""

    case: str


class Counts(TypedDict):
    """How many structures had which outcome. A reader needs ``missed`` and ``invented``."""

    ok: NotRequired[NonNegativeInt]
    missed: NonNegativeInt
    invented: NonNegativeInt
    both_empty: NotRequired[NonNegativeInt]


class Summary(Counts):
    """Mean and standard deviation of the metrics over some structures, or over some runs."""

    mean: Metrics
    std: Metrics


class ClassScore(Metrics, Named, Counts):
    """The summary of one class: its means stand beside the counts."""

    std: Metrics


class Distances(TypedDict):
    """How distances are told: in "mm" or "voxels", and ``nsd`` within a tolerance of as many."""

    unit: str
    tolerance: NotRequired[FiniteFloat]


@with_config(ConfigDict(extra="allow", strict=True))
class Scores(Summary, Distances):
    """A whole file of scores.

    cases: one row a case and class. per_class: by label value, as text. not_predicted: number of
    labels without a prediction; a reader of a file does not need it.
    """

    cases: list[CaseScore]
    per_class: dict[Annotated[str, Field(pattern=r"^[0-9]{1,5}$")], ClassScore]
    not_predicted: NotRequired[NonNegativeInt]


_FILE = TypeAdapter(Scores)


def metrics_in(names: Iterable[str]) -> list[Metric]:
    """Those of ``names`` that are metrics, in their order."""
    return [_METRICS[name] for name in names if name in _METRICS]


def as_metrics(values: Mapping[Metric, float | None]) -> Metrics:
    """``values`` as the part of a file that they are."""
    found: Metrics = {}
    for metric, value in values.items():
        found[metric] = value
    return found


def class_summary(of_class: ClassScore) -> Summary:
    """The summary of one class in the form of the whole file's."""
    return {
        "mean": of_class,
        "std": of_class["std"],
        "missed": of_class["missed"],
        "invented": of_class["invented"],
    }


def read_scores(path: Path, needed: Iterable[Metric] = ()) -> Scores:
    """What `dcamt.evaluation.evaluate` wrote, with any metrics, but all that are ``needed``.

    InputError if that is not what it wrote.
    """
    scores = checked(read_json(path), _FILE, path)
    mean, *others = _parts(scores)
    known = {*metrics_in(mean)}
    alike = known and all({*metrics_in(part)} == known for part in others)
    if not alike or ("nsd" in known and "tolerance" not in scores):
        raise broken(path)
    missing = [metric for metric in needed if metric not in known]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}; remove it and make it anew")
    return scores


def _parts(scores: Scores) -> list[Metrics]:
    """Every part that holds metrics; they hold the same ones."""
    classes = scores["per_class"].values()
    return [
        scores["mean"],
        scores["std"],
        *scores["cases"],
        *classes,
        *(found["std"] for found in classes),
    ]
