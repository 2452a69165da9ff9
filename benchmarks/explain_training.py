"""Why a method wins: pseudo labels, disagreement and losses over a training, as a picture.

    python benchmarks/explain_training.py DATASET --splits SPLITS --config RECIPE \
        --methods cps,dca-mt --out runs/explained

Trains each method once (one seed) and stops every so often to segment unlabelled cases whose label
the splits file hides. Their labels are opened here, after the fact, to score the branches; the
training itself sees what `dcamt train` sees. Leaves explained.csv and explained.png in --out.
Stopped, it goes on when the same command is given again.
"""

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from dcamt.config import load_config
from dcamt.data.dataset import read_dataset
from dcamt.data.patches import Batches
from dcamt.data.prepare import Prepared, prepare
from dcamt.data.split import Split, hide_labels
from dcamt.engine.checkpoint import check
from dcamt.engine.device import make_fabric
from dcamt.engine.signals import Interrupted
from dcamt.engine.train import train
from dcamt.evaluation.metrics import metrics_per_class
from dcamt.files import read_text, write_text
from dcamt.inference.predictor import Predictor
from dcamt.inference.sliding_window import branch_probabilities
from dcamt.methods.method import Method
from dcamt.records.run_folder import RunConfig
from dcamt.runs.build import build_method
from dcamt.runs.design import Row, parse_rows
from dcamt.runs.plan import plan_run
from dcamt.types import IGNORE, Progress

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--config", type=Path, help="recipe")
    parser.add_argument("--methods", default="cps,dca-mt", help="as for `dcamt compare`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--looks", type=int, default=20, help="how often to look")
    parser.add_argument("--cases", type=int, default=12, help="unlabelled cases to look at")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    overrides = [f"seed={options.seed}"]
    if options.iterations:
        overrides.append(f"train.iterations={options.iterations}")
    try:
        explain(options, overrides)
    except Interrupted as stopped:
        print("stopped and saved; give the same command again to go on")
        raise SystemExit(stopped.exit_code) from None


def explain(options: argparse.Namespace, overrides: list[str]) -> None:
    """Train and watch every method, then draw."""
    shown = {}
    for row in parse_rows(options.methods):
        config = load_config(options.config, overrides).model_copy(update={"method": row.method})
        planned = plan_run(options.dataset, config, options.splits, None)
        config, split = planned.config, planned.split
        every = max(1, config.train.iterations // options.looks)
        chosen = split.unlabeled[:: max(1, len(split.unlabeled) // options.cases)]
        folder = options.out / row.name.replace(":", "-")
        looks = watch(row, config, split, chosen[: options.cases], every, folder)
        shown[row.name] = (looks, weighted_losses(config, folder / "log.csv"))
    write_csv({name: looks for name, (looks, _) in shown.items()}, options.out / "explained.csv")
    draw(shown, options.out / "explained.png")


def watch(
    row: Row, config: RunConfig, split: Split, names: Sequence[str], every: int, folder: Path
) -> list[dict[str, Any]]:
    """Train, and every ``every`` iterations score the branches on the cases ``names``.

    Goes on where ``folder`` was left: the looks are kept beside the checkpoint.
    """
    assert config.dataset is not None
    everything = read_dataset(config.dataset)
    seen = prepare(hide_labels(everything, split).cases, config.plan)
    ready = {case.name: case for case in seen}
    # A second list, with labels, that no batch is drawn from.
    judged = prepare([everything.case(name) for name in names], config.plan)
    labeled, unlabeled = ([ready[n] for n in part] for part in (split.labeled, split.unlabeled))
    plan, method = config.plan, build_method(config)
    batches = Batches(
        labeled, unlabeled, plan.patch, config.train, config.seed, plan.spacing, method.views
    )
    settings = config.train.model_copy(update={"validate_every": every})
    told = {"every": every, "cases": list(names), "split": asdict(split)}
    what = json.dumps({**told, **config.model_dump(mode="json")})
    begun = (folder / "what.json").exists() or (folder / "last.safetensors").exists()
    if begun and read_text(folder / "what.json") != what:
        raise SystemExit(f"{folder}: was begun with other settings; choose another --out")
    write_text(folder / "what.json", what)
    looks: list[dict[str, Any]] = []
    if (folder / "last.safetensors").exists():
        done = check(folder / "last.safetensors", method)["iteration"]
        looks = json.loads((folder / "looks.json").read_text()) if done >= every else []
        looks = [found for found in looks if found["iteration"] <= done]
        if done == config.train.iterations:  # what is left there are weights to predict with
            return looks

    def look(method: Method) -> float:
        found = judge(method, judged, config)
        looks.append({"iteration": min(config.train.iterations, every * (len(looks) + 1)), **found})
        write_text(folder / "looks.json", json.dumps(looks))
        print(row.name, looks[-1], flush=True)
        return found["mean"]

    fabric = make_fabric(config.device, config.train.precision)
    train(method, batches, settings, folder, fabric, look, resume=True, quiet=True)
    return looks


def judge(method: Method, cases: Sequence[Prepared], config: RunConfig) -> dict[str, float]:
    """Mean Dice (%) of each branch and of their mean, and how much the branches differ (%).

    They differ on the voxels that any calls foreground, in share of these voxels.
    """
    classes = len(config.plan.classes)
    device = next(method.parameters()).device
    predictor = Predictor(method.eval().branches, device, method.networks)
    scores: dict[str, list[float]] = defaultdict(list)
    for case in cases:
        image = torch.from_numpy(np.array(case.image))
        found = branch_probabilities(predictor, image, config.plan.patch, classes, config.predict)
        guesses = found.argmax(1).numpy()
        named = {f"branch {i + 1}": g for i, g in enumerate(guesses)} if len(guesses) > 1 else {}
        for name, guess in {**named, "mean": found.mean(0).argmax(0).numpy()}.items():
            rows = metrics_per_class(
                guess, case.label, range(1, classes), config.plan.spacing, IGNORE, ("dice",)
            )
            dice = [row["dice"] for row in rows if row["dice"] is not None]
            if dice:
                scores[name].append(100 * fmean(dice))
        if len(guesses) > 1:
            differ = (guesses != guesses[0]).any(0).sum()
            scores["differ"].append(100 * float(differ) / max(1, int((guesses > 0).any(0).sum())))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def weighted_losses(config: RunConfig, log: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Every loss term over the training, times its weight then, smoothed over 5 % of the run.

    A term's weight is the option of its name (``mmd`` or ``mmd_weight``) or of its first word. An
    unsupervised term without one takes the option ``weight``, if there is one.
    """
    with log.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    options = config.method.options
    ramp_length = options.get("ramp")
    iterations = [int(row["iteration"]) for row in rows]
    ramps = [
        Progress(i - 1, config.train.iterations).ramp(ramp_length) if ramp_length else 1.0
        for i in iterations
    ]
    window = max(1, len(rows) // 20)
    result = {}
    for term in list(rows[0])[3:]:
        if term == "val_dice":
            continue
        supervised = term.startswith("supervised")
        names = (f"{term}_weight", term, term.split("_")[0], *([] if supervised else ["weight"]))
        factor = next((float(options[name]) for name in names if name in options), 1.0)
        values = np.array([float(row[term]) for row in rows]) * factor
        if not supervised:
            values = values * np.array(ramps)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        result[term] = (iterations[window - 1 :], smooth.tolist())
    return result


def write_csv(looks: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """One line for each look at each method."""
    columns = ["method", "iteration", "branch 1", "branch 2", "mean", "differ"]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        for name, rows in looks.items():
            table.writerows({"method": name, **row} for row in rows)


def draw(shown: dict[str, tuple[list[dict[str, Any]], Any]], path: Path) -> None:
    """Pseudo-label Dice, disagreement, and the weighted losses of the last method."""
    figure = Figure(figsize=(14, 3.8 + 0.2 * len(shown)), layout="constrained")
    quality, apart, losses = figure.subplots(1, 3)
    for colour, (name, (looks, _)) in zip(COLOURS, shown.items(), strict=False):
        at = [look["iteration"] for look in looks]
        for key, style in (("mean", "-"), ("branch 1", ":"), ("branch 2", "--")):
            if key in looks[0]:
                label = name if key == "mean" else None
                quality.plot(at, [look[key] for look in looks], style, color=colour, label=label)
        if "differ" in looks[0]:
            apart.plot(at, [look["differ"] for look in looks], color=colour, label=name)
    quality.set_title("Dice on unlabelled cases (%)\nsolid: mean; dotted: branch 1; dashed: 2")
    apart.set_title("voxels on which branches differ\n(% of foreground)")
    last = list(shown)[-1]
    for term, (at, values) in shown[last][1].items():
        losses.plot(at, values, label=term.replace("_", " "))
    losses.set_title("each loss times its weight" + "\n(last of the methods)" * (len(shown) > 1))
    losses.set_yscale("symlog", linthresh=0.01)
    for axes in (quality, apart, losses):
        axes.set_xlabel("iteration")
        axes.grid(color="#eceff2")
    # Names with options are long.
    figure.legend(*quality.get_legend_handles_labels(), loc="outside lower left", frameon=False)
    losses.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
