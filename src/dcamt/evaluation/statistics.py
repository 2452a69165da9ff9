"""Several runs of several methods put together: spread over seeds, tests over cases, gap closed."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

from scipy.stats import wilcoxon

from dcamt.evaluation.metrics import METRICS
from dcamt.records.scores import Metric, Metrics, Scores, Summary, as_metrics, metrics_in


def metrics_of(*runs: Summary) -> list[Metric]:
    """The metrics that all of some results hold, in the order of the first."""
    first, *others = (run["mean"] for run in runs)
    return [m for m in metrics_in(first) if all(m in other for other in others)]


def over_seeds(runs: Sequence[Summary]) -> Summary:
    """Runs of one method put together.

    Returns ``mean`` and ``std`` over the runs of each metric that all of them hold (the sample
    standard deviation, None below two runs), and the numbers of ``missed`` and ``invented``
    structures in all runs. A run in which a metric has no value is left out of that metric.
    """
    mean: Metrics = {}
    std: Metrics = {}
    for metric in metrics_of(*runs):
        values = [value for run in runs if (value := run["mean"][metric]) is not None]
        mean[metric] = fmean(values) if values else None
        std[metric] = stdev(values) if len(values) > 1 else None
    return {
        "mean": mean,
        "std": std,
        "missed": sum(run["missed"] for run in runs),
        "invented": sum(run["invented"] for run in runs),
    }


def case_means(runs: Iterable[Scores], metric: Metric) -> dict[str, float]:
    """Mean of a metric over classes and runs for each case that has a value."""
    values: dict[str, list[float]] = {}
    for run in runs:
        for row in run["cases"]:
            value = row.get(metric)
            if value is not None:
                values.setdefault(row["case"], []).append(value)
    return {case: fmean(found) for case, found in values.items()}


def paired_p(one: Mapping[str, float], other: Mapping[str, float]) -> float | None:
    """p of the two-sided Wilcoxon signed-rank test over the cases that both have.

    1 where no case differs, None without a case in common.
    """
    pairs = [(one[case], other[case]) for case in one if case in other]
    if not pairs:
        return None
    differences = [a - b for a, b in pairs]
    return float(wilcoxon(differences).pvalue) if any(differences) else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p values in the order of ``p_values``."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def against_first(rows: Sequence[Sequence[Scores]]) -> list[Metrics]:
    """Corrected p of each method (its runs) against the first one, for every metric.

    The first method and whatever cannot be tested have None. Each metric is a family of its own.
    """
    found = [as_metrics(dict.fromkeys(METRICS)) for _ in rows]
    for metric in METRICS:
        means = [case_means(runs, metric) for runs in rows]
        raw = {i: paired_p(means[0], means[i]) for i in range(1, len(rows))}
        tested = {i: p for i, p in raw.items() if p is not None}
        for i, p in zip(tested, holm(list(tested.values())), strict=True):
            found[i][metric] = p
    return found


def gap_closed(value: float, few: float, full: float) -> float | None:
    """How far ``value`` is on the way from ``few`` up to ``full`` (Dice, fractions).

    None if the way is shorter than half a point, which is less than seeds differ by.
    """
    return (value - few) / (full - few) if full - few >= 0.005 else None
