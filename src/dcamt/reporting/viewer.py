"""What the viewer of a page shows: cases, worst first, with colours, classes and curves."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dcamt.data.dataset import Dataset
from dcamt.data.grid import Array
from dcamt.errors import InputError
from dcamt.escape import printable
from dcamt.evaluation.metrics import INVENTED, MISSED, OVERLAPS, TITLES
from dcamt.evaluation.statistics import case_means, metrics_of
from dcamt.records.finished_run import FinishedRun
from dcamt.records.scores import Scores
from dcamt.reporting.cases import read_case, read_uncertainty
from dcamt.reporting.curves import curve_data
from dcamt.reporting.page import encoded
from dcamt.reporting.planes import PREDICTION, REFERENCE, TINTS
from dcamt.reporting.values import shown, unit_of
from dcamt.reporting.volumes import Layers, ShownCase, pack

ROOM = 18_000_000
"""Bytes of a report that cases may take; with pictures and scripts it stays below 25 MB."""
IN_REPORT = 4_000_000
"""Voxels that a case of a report shows at most, so that several fit."""

LAYERS = ("prediction", "reference", "difference", "uncertainty")
"""The overlays there may be."""


def view_data(
    cases: Sequence[ShownCase],
    classes: Sequence[str],
    layers: Iterable[str],
    log: Mapping[str, NDArray[Any]] | None = None,
    *,
    panels: Sequence[str] = ("",),
    served: bool = False,
    running: bool = False,
) -> dict[str, Any]:
    """What viewer.js reads.

    Args:
        cases: In the order of the list.
        classes: Names by label value, the first is background.
        layers: Those of LAYERS that can be shown.
        log: Columns of log.csv, for the curves.
        panels: Titles of what is side by side.
        served: Whether cases come from a server, not from the page.
        running: Whether the curves still grow.
    """
    visible = {"prediction": (True, 0.55), "reference": (False, 0.55), "difference": (False, 0.85),
               "uncertainty": (False, 0.7)}  # fmt: skip
    return {
        "cases": [
            {
                "name": printable(case.name),
                "facts": [[printable(k), printable(v)] for k, v in case.facts.items()],
                "flagged": case.flagged,
            }
            for case in cases
        ],
        "classes": [printable(name) for name in classes],
        "layers": [[name, *visible[name]] for name in layers],
        "panels": [printable(title) for title in panels],
        "colours": TINTS,
        "single": {"prediction": PREDICTION, "reference": REFERENCE},
        "curves": curve_data(log) if log else [],
        "served": served,
        "running": running,
    }


def embed(cases: Sequence[ShownCase], room: int = ROOM) -> dict[str, str]:
    """The cases as elements of a page, id -> text, as many of the first ones as fit in ``room``.

    What cannot be read is left out.
    """
    found: dict[str, str] = {}
    for number, case in enumerate(cases):
        try:
            text = encoded(pack(case.read(), limit=IN_REPORT))
        except InputError:
            continue
        room -= len(text)
        if room < 0:
            break
        found[f"case-{number}"] = text
    return found


def run_cases(run: FinishedRun, dataset: Dataset) -> list[ShownCase]:
    """The validation cases of a run, the lowest mean Dice first."""
    if run.scores is None:
        return []
    folder = run.folder / "validation"
    return [
        ShownCase(name, partial(read_layers, dataset, name, [folder]), facts, flagged)
        for name, facts, flagged in scored_cases(run.scores)
    ]


def scored_cases(scores: Scores) -> list[tuple[str, dict[str, str], bool]]:
    """Each case, the lowest mean Dice first: its name, its means, whether a structure is wrong."""
    means = {metric: case_means([scores], metric) for metric in metrics_of(scores)}
    wrong = {row["case"] for row in scores["cases"] if row["outcome"] in (MISSED, INVENTED)}
    names = dict.fromkeys(row["case"] for row in scores["cases"])
    dice = means.get("dice", {})
    found = []
    for name in sorted(names, key=lambda case: (dice.get(case, 2.0), case)):
        facts = {
            TITLES[metric]: f"{text} {unit_of(metric, scores['unit'])}"
            for metric, of_case in means.items()
            if (text := shown(of_case.get(name), metric, 1 if metric in OVERLAPS else 2))
            and name in of_case
        }
        found.append((name, facts, name in wrong))
    return found


def read_layers(dataset: Dataset, name: str, folders: Sequence[Path]) -> Layers:
    """A case of a data set as the viewer shows it; see `read_case`."""
    image, reference, found = read_case(dataset, name, folders)
    scan = dataset.case(name).images[0]
    uncertainty: list[Array | None] = [read_uncertainty(image, scan, f, name) for f in folders]
    return Layers(image.array[0], image.affine, reference, found, uncertainty)
