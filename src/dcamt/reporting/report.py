"""The report of a run: one HTML file with its scores, curves, example cases and settings."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from dcamt.data.dataset import Dataset, read_dataset
from dcamt.errors import InputError
from dcamt.evaluation.metrics import INVENTED, MISSED, OVERLAPS, TITLES
from dcamt.evaluation.statistics import case_means, metrics_of
from dcamt.files import read_text, refuse_existing, write_text
from dcamt.records.finished_run import FinishedRun, read_run
from dcamt.records.scores import CaseScore, ClassScore, Metric, Scores
from dcamt.reporting.cases import has_uncertainty, read_case
from dcamt.reporting.curves import plot_curves
from dcamt.reporting.page import render_page
from dcamt.reporting.planes import TINTS, oblique_angle, plot_planes
from dcamt.reporting.style import data_uri
from dcamt.reporting.values import DASH, class_name, heading, shown, unit_of
from dcamt.reporting.viewer import LAYERS, embed, run_cases, view_data


def write_report(run: Path, dataset: Dataset | None = None) -> Path:
    """Write RUN/report.html from the files of a run folder and return its path.

    The file stands alone: figures are embedded, nothing is fetched. Pictures of cases are left
    out, with a note, where the data set is no longer readable; scores where the run has no
    validation cases.

    Args:
        run: Folder written by training.
        dataset: Its data set, if that was read already.

    Raises:
        InputError: `run` is missing, is not a run folder, one of its files is broken, or its
            report.html is somebody else's.
    """
    path = run / "report.html"
    kept = read_text(path) if path.is_file() and not path.is_symlink() else ""
    ours = not kept or "dcamt report</title>" in kept
    refuse_existing(path, ours, "move it away", kind="report of dcamt")
    content = read_run(run)
    write_text(path, render_report(content, *read_data(content, dataset)))
    return path


def read_data(
    run: FinishedRun, dataset: Dataset | None = None
) -> tuple[Dataset | None, str | None]:
    """The data set of a run, if it can be read and is not given already, and else why not."""
    named = run.config.get("dataset")
    if dataset is None and named is None:
        return None, "the run names none, as its scans lie at several sites"
    folder = Path(str(named))
    try:
        return dataset or read_dataset(folder), None
    except InputError as error:
        return None, _without_folders(str(error), run, folder)


# --------------------------------------------------------------------------------------- tables


def _headline(scores: Scores) -> list[dict[str, str]]:
    """Mean and standard deviation over cases of each metric, ready to print."""
    return [
        {
            "title": TITLES[metric],
            "value": _text(scores["mean"][metric], metric),
            "spread": _text(scores["std"][metric], metric),
            "unit": unit_of(metric, scores["unit"]),
        }
        for metric in metrics_of(scores)
    ]


def _class_rows(scores: Scores, names: Sequence[str]) -> list[dict[str, Any]]:
    """One row a class, worst Dice first."""
    return [
        {
            "name": class_name(key, names),
            "figures": [
                (_text(found[metric], metric), _text(found["std"][metric], metric))
                for metric in metrics_of(scores)
            ],
            "missed": found["missed"],
            "invented": found["invented"],
        }
        for key, found in sorted(scores["per_class"].items(), key=lambda item: _dice(item[1]))
    ]


def _case_rows(scores: Scores, names: Sequence[str]) -> list[dict[str, Any]]:
    """One row a case and class: missed and invented structures, then by Dice from the lowest."""

    def badness(row: CaseScore) -> tuple[float, float]:
        if row["outcome"] in (MISSED, INVENTED):
            return (-1.0, 0.0)
        # At equal Dice the larger distance is the worse one.
        return (_dice(row), -(row.get("hd95") or 0.0))

    return [
        {
            "case": row["case"],
            "name": class_name(row["class"], names),
            "outcome": row["outcome"],
            "flagged": row["outcome"] in (MISSED, INVENTED),
            "figures": [_text(row[metric], metric) for metric in metrics_of(scores)],
        }
        for row in sorted(scores["cases"], key=badness)
    ]


def _dice(row: CaseScore | ClassScore) -> float:
    """Dice to sort by: what has none comes last."""
    dice = row.get("dice")
    return math.inf if dice is None else dice


def _text(value: float | None, metric: Metric) -> str:
    return shown(value, metric, 1 if metric in OVERLAPS else 2)


def _windows(predict: Mapping[str, Any]) -> str:
    """How the scans were segmented: "overlap 0.5, weighting gaussian, batch 4".

    A stride takes the place of the overlap, and is None without one.
    """
    unused = "overlap" if predict.get("stride") else "stride"
    shown = {key: value for key, value in predict.items() if key != unused}
    return ", ".join(f"{key} {_plain(value)}" for key, value in shown.items())


def _plain(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)


# ------------------------------------------------------------------------------------- pictures


def _pictures(run: FinishedRun, dataset: Dataset, values: Sequence[int]) -> list[dict[str, str]]:
    """The best, the median and the worst case by mean Dice over the classes."""
    if run.scores is None:
        return []
    means = case_means([run.scores], "dice")
    ranked = sorted(means, key=lambda case: (-means[case], case))
    if not ranked:
        return []
    chosen = {"Best": ranked[0], "Median": ranked[len(ranked) // 2], "Worst": ranked[-1]}
    if len(ranked) == 2:
        del chosen["Median"]
    if len(ranked) == 1:
        chosen = {"Only": ranked[0]}
    pictures = []
    for title, case in chosen.items():
        picture = {"title": title, "case": case, "dice": _text(means[case], "dice")}
        try:
            picture |= _picture(run, dataset, case, values)
        except InputError as error:
            picture["note"] = _without_folders(str(error), run, dataset.root)
        pictures.append(picture)
    return pictures


def _picture(
    run: FinishedRun, dataset: Dataset, name: str, values: Sequence[int]
) -> dict[str, str]:
    image, reference, (found,) = read_case(dataset, name, [run.folder / "validation"])
    figure = plot_planes(image.array[0], reference, found, image.affine, values)
    picture = {"image": data_uri(figure, "png")}
    angle = oblique_angle(image.affine)
    if angle > 5:
        picture["oblique"] = f"{angle:.0f}"
    return picture


# -------------------------------------------------------------------------------------- writing


def _without_folders(text: str, run: FinishedRun, dataset: Path) -> str:
    """``text`` with the names of the run and the data set alone, not where on a machine they lie.

    A report is handed on.
    """
    for folder in (run.folder, dataset):
        for path in {folder, folder.resolve()}:
            if path.name:
                text = text.replace(str(path), path.name)
    return text


def render_report(
    run: FinishedRun, dataset: Dataset | None, note: str | None, served: bool = False
) -> str:
    """The page of a run; ``note`` says why there is no ``dataset``.

    A page that is ``served`` gets its cases from the server, another one has them in it.
    """
    plan = run.config.get("plan") or {}
    names = tuple(plan.get("classes") or (dataset.classes if dataset else ()))
    values = [value for value in range(1, len(names)) if value != plan.get("ignore")]
    scores = run.scores
    method = run.config.get("method") or {}
    tints = zip(TINTS * (1 + len(values) // len(TINTS)), values, strict=False)
    folder = Path(str(run.config.get("dataset"))).name
    config = yaml.safe_dump(
        {**run.config, "dataset": folder},
        sort_keys=False, allow_unicode=True, default_flow_style=None,
    )  # fmt: skip
    cases = run_cases(run, dataset) if dataset else []
    layers = LAYERS if has_uncertainty(run.folder / "validation") else LAYERS[:-1]
    return render_page(
        "report.html",
        served=served,
        view=view_data(cases, names, layers, run.log, served=served, running=served and not scores),
        embedded={} if served else embed(cases),
        dataset=run.data["name"] if run.data else dataset.name if dataset else folder,
        licence=run.data["licence"] if run.data else "",
        method=method.get("name", "unknown method"),
        run=run.folder.resolve().name,
        counts={
            "labeled": len(run.split["labeled"]),
            "unlabeled": len(run.split["unlabeled"]),
            "val": len(run.split["val"]),
        },
        iterations=_iterations(run.log),
        seed=run.config.get("seed", DASH),
        best=(run.folder / "best.safetensors").is_file(),
        scores=scores,
        scored=len({row["case"] for row in scores["cases"]}) if scores else 0,
        heads=[heading(m, scores["unit"]) for m in metrics_of(scores)] if scores else [],
        headline=_headline(scores) if scores else [],
        class_rows=_class_rows(scores, names) if scores else [],
        case_rows=_case_rows(scores, names) if scores else [],
        curves=data_uri(plot_curves(run.log), "svg"),
        pictures=_pictures(run, dataset, values) if dataset else [],
        tints=[(tint, names[value]) for tint, value in tints] if len(values) > 1 else [],
        note=note,
        windows=_windows(run.config.get("predict") or {}),
        config=config.splitlines(),
        split=run.split,
        versions=run.versions,
    )


def _iterations(log: Mapping[str, NDArray[np.float64]]) -> str:
    last = np.nanmax(log["iteration"], initial=-1)
    return f"{int(last):,}" if last >= 0 else DASH
