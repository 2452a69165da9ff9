"""The model card of a run: what it is, how it was made, how well it does and what it is not."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dcamt.config import NetworkConfig
from dcamt.errors import InputError
from dcamt.escape import markdown, printable
from dcamt.evaluation.statistics import metrics_of, over_seeds
from dcamt.files import read_text
from dcamt.records.finished_run import FinishedRun, SplitPart, read_run
from dcamt.records.run_folder import FEDERATION, LEFT_OUT, read_config
from dcamt.records.scores import Scores, Summary, class_summary
from dcamt.reporting.values import DASH, class_name, heading, with_spread
from dcamt.runs.build import build_method, check_segments
from dcamt.runs.export_bundle import MODEL
from dcamt.runs.init import KEY
from dcamt.runs.teacher import KEY as TEACHER
from dcamt.wording import number_of, percent

_TOLD = {"taught by": TEACHER, "federated": FEDERATION, "sites left out": LEFT_OUT}
"""Lines of the card, and the keys in versions.json that they tell."""
LONGEST_LICENCE = 200
"""Characters of a licence that are shown: some data sets state the whole text."""

_CHOSEN = {
    "last": "of the last iteration; no case took part in choosing them",
    "best": "of the iteration with the highest Dice on the validation cases; the figures below are "
    "of the last iteration",
}


def model_card(folders: Sequence[Path], weights: str = "last") -> str:
    """Markdown about one run, or about several that differ in their seed alone.

    With several, figures are mean and sample standard deviation over the runs; with one, over its
    cases. ``weights`` are the ones handed on with it, ``last`` or ``best``. Raises InputError for a
    folder that is no finished run, and for runs of different settings or splits.
    """
    if not folders:
        raise InputError("no run is named; give one run folder or several")
    runs = [read_run(folder) for folder in folders]
    first = runs[0]
    for run in runs[1:]:
        if _settings(run) != _settings(first) or run.split != first.split:
            raise InputError(
                f"{run.folder}: differs from {first.folder} in more than the seed; give runs of "
                "one method, configuration and split"
            )
    config, *others = (read_config(run.folder) for run in runs)
    check_segments(config.method, first.folder)
    plan, train = config.plan, config.train
    with torch.device("meta"):
        method = build_method(config)
    parameters = sum(p.numel() for p in method.parameters())
    # Every method's file begins with one line that says what it is.
    told = (sys.modules[type(method).__module__].__doc__ or "").strip() or config.method.name
    summary = told.splitlines()[0]
    name, licence = _description(first)
    seeds = sorted(each.seed for each in (config, *others))
    parts = [
        f"# Model card: {config.method.name} on {markdown(name)}",
        f"{summary} It outlines {markdown(_listed(plan.classes[1:]))} in 3D scans of "
        f"{number_of(len(plan.channels), 'channel')} "
        f"({markdown(', '.join(plan.channels))}). {parameters:,} parameters in all.",
        "**Not a medical device.** Not approved for diagnosis, treatment or any other clinical "
        "use. A trained person must check every segmentation.",
        "## Data",
        _table(
            {
                "data set": name,
                "licence of the data": licence,
                "trained with labels": _cases(first, "labeled"),
                "trained without labels": _cases(first, "unlabeled"),
                "validation": _cases(first, "val"),
                "kept apart for testing": _cases(first, "test"),
                "voxel size, mm": " x ".join(f"{s:g}" for s in plan.spacing),
                "orientation": plan.orientation,
                "intensities": ", ".join(how.scheme for how in plan.normalization),
            }
        ),
        "## Protocol",
        _table(
            {
                "iterations": f"{train.iterations:,}",
                "batch": f"{train.labeled_batch} labelled + {train.unlabeled_batch} unlabelled "
                f"patches of {' x '.join(map(str, plan.patch))} voxels",
                "optimiser of the networks": f"SGD, rate {train.learning_rate:g}, "
                f"momentum {train.momentum:g}, weight decay {train.weight_decay:g}",
                "method's options": _options(config.method.options),
                "network": _network(config.network),
                "seeds": ", ".join(map(str, seeds)),
                "started from": first.versions.get(KEY, "random weights"),
                **{
                    title: first.versions[key]
                    for title, key in _TOLD.items()
                    if key in first.versions
                },
                "weights": _CHOSEN[weights],
                "computed with": ", ".join(
                    f"{k} {v}" for k, v in first.versions.items() if k not in (KEY, *_TOLD.values())
                ),
            }
        ),
        "## Figures",
        _figures(runs, plan.classes),
        "## Limits",
        _limits(runs, plan.classes),
        "## Licence",
        _licence("the data that the model card names", markdown(licence)),
    ]
    return "\n\n".join(parts) + "\n"


def card_handed_on(folder: Path) -> str | None:
    """The card that lies in a folder of ``dcamt export``, as it is; None for any other folder."""
    if (folder / "split.json").is_file():  # a run
        return None
    is_bundle = (folder / MODEL).is_file()
    card = folder / ("docs/README.md" if is_bundle else "card.md")
    return read_text(card) if card.is_file() else None


def licence_note(folder: Path) -> str:
    """What binds those who use the weights of a run, as plain text."""
    name, licence = _description(read_run(folder))
    return _licence(f"the data set {printable(name)}", printable(licence))


def _licence(data: str, licence: str) -> str:
    return (
        f"The software is under the Apache License 2.0. The weights were made from {data}, whose "
        f"licence ({licence}) also binds what is made from them."
    )


def _settings(run: FinishedRun) -> dict[str, Any]:
    kept = {key: value for key, value in run.config.items() if key != "seed"}
    return {**kept, **{key: run.versions.get(key) for key in (KEY, TEACHER, FEDERATION)}}


def _description(run: FinishedRun) -> tuple[str, str]:
    """Name and licence of the data, as they were when the run began."""
    if run.data is None:  # older runs
        folder = Path(str(run.config.get("dataset") or DASH)).name
        return folder, "not recorded: ask who gave you the data"
    licence = run.data["licence"] or "not stated by the data set: ask who gave you the data"
    if len(licence) > LONGEST_LICENCE:
        licence = f"{licence[:LONGEST_LICENCE]} ..."
    return run.data["name"], licence


def _cases(run: FinishedRun, part: SplitPart) -> str:
    return number_of(len(run.split.get(part, ())), "case")


def _network(network: NetworkConfig) -> str:
    size = f", size {network.size}" if network.size else ""
    return f"{markdown(network.name)}{size}, width {network.width}"


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items()) or "none"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _table(rows: Mapping[str, str]) -> str:
    lines = (f"| {key} | {markdown(value)} |" for key, value in rows.items())
    return "\n".join(["| | |", "|---|---|", *lines])


def _figures(runs: Sequence[FinishedRun], classes: Sequence[str]) -> str:
    scores = [run.scores for run in runs]
    if any(score is None for score in scores):
        return "None: the run has no validation cases. Measure it on your own before using it."
    found = [score for score in scores if score is not None]
    if len({(score["unit"], score.get("tolerance")) for score in found}) > 1:
        raise InputError(
            f"{runs[0].folder}: was scored in another unit or with another tolerance than the "
            "other runs; score them alike with `dcamt evaluate`"
        )
    unit, cases = found[0]["unit"], len({row["case"] for row in found[0]["cases"]})
    metrics = metrics_of(*found)
    heads = ["class", *(heading(metric, unit) for metric in metrics)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for key in ("mean", *found[0]["per_class"]):
        of_runs = [_part(score, key) for score in found]
        figures = over_seeds(of_runs) if len(found) > 1 else of_runs[0]
        cells = [with_spread(figures["mean"][m], figures["std"][m], m) for m in metrics]
        name = "mean" if key == "mean" else markdown(class_name(key, classes))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    over = f"{len(found)} runs" if len(found) > 1 else "cases"
    missed = sum(score["missed"] for score in found)
    invented = sum(score["invented"] for score in found)
    return "\n".join(
        [
            *lines,
            "",
            f"{cases} validation cases; mean ± standard deviation over {over}. Structures missed: "
            f"{missed}, invented: {invented}; they have no distance and count as Dice 0."
            + (f" NSD is within {found[0]['tolerance']:g} {unit}." if "nsd" in metrics else ""),
        ]
    )


def _part(score: Scores, key: str) -> Summary:
    """The summary of one class, or of all of them ("mean")."""
    return score if key == "mean" else class_summary(score["per_class"][key])


def _limits(runs: Sequence[FinishedRun], classes: Sequence[str]) -> str:
    lines = [
        f"- It has seen labels of {_cases(runs[0], 'labeled')}. Anatomy, disease, age groups, "
        "scanners and sequences that these do not show are unknown to it.",
        "- The figures are of cases from the same data set. Expect lower ones on other data, and "
        "measure them (`dcamt evaluate`) before relying on it.",
        "- Every scan gets a segmentation, also one that shows something else. "
        "`dcamt predict --uncertainty` maps where the branches doubt.",
    ]
    rows = [row for run in runs if run.scores for row in run.scores["cases"]]
    scored = [(dice, row) for row in rows if (dice := row.get("dice")) is not None]
    if scored:
        dice, worst = min(scored, key=lambda pair: pair[0])
        lines.append(
            "- Worst structure of a validation case: "
            f"{markdown(class_name(worst['class'], classes))}, Dice {percent(dice, 1)}."
        )
    return "\n".join(lines)
