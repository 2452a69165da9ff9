"""How metrics are shown: their headings, and their values as text."""

import math
from collections.abc import Sequence

from dcamt.evaluation.metrics import OVERLAPS, TITLES
from dcamt.records.scores import Metric

DASH = "\N{EN DASH}"
"""Stands for a value that does not exist."""


def class_name(value: int | str, names: Sequence[str]) -> str:
    """The name of the class with that label value, "class 7" if ``names`` has none."""
    text = str(value)
    return names[int(text)] if text.isdecimal() and int(text) < len(names) else f"class {text}"


def scale(metric: Metric) -> int:
    """Overlaps are shown in %."""
    return 100 if metric in OVERLAPS else 1


def heading(metric: Metric, unit: str) -> str:
    """``Dice (%)`` and so on; ``unit`` is that of the distances."""
    return f"{TITLES[metric]} ({unit_of(metric, unit)})"


def unit_of(metric: Metric, unit: str) -> str:
    """The unit that a metric is shown in; ``unit`` is that of the distances."""
    return "%" if metric in OVERLAPS else unit


def shown(value: float | None, metric: Metric, digits: int = 2) -> str:
    """A value without its unit, or a dash."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{scale(metric) * value:.{digits}f}"


def with_spread(mean: float | None, std: float | None, metric: Metric) -> str:
    """``85.00 ± 1.20``, without the spread where there is none, or a dash."""
    text = shown(mean, metric)
    return text if mean is None or std is None else f"{text} ± {shown(std, metric)}"
