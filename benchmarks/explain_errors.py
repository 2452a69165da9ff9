"""What a run's errors on its validation cases are made of, as Markdown rows.

    python benchmarks/explain_errors.py RUN [RUN ...]

"Outline" is the Dice of all foreground classes taken as one, "mixed up" the share of the voxels
that both label and segmentation call foreground but of different classes, "volume" what was found
of each class over what there is. The last column is the Dice of each branch alone. Below stands
each class's share of the foreground, in the labelled cases of the first run and in all others.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dcamt.config import Plan
from dcamt.data.dataset import Case, read_dataset
from dcamt.data.prepare import read_case
from dcamt.data.space import Placement, to_network
from dcamt.data.volume import read_label
from dcamt.inference.predict import restored_probabilities
from dcamt.inference.predictor import make_predictor
from dcamt.inference.sliding_window import branch_probabilities
from dcamt.records.run_folder import read_config
from dcamt.runs.build import load_run

Classes = NDArray[np.integer]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    print("| run | Dice (%) | outline (%) | mixed up (%) | volume | branches (%) |")
    print("|---|---|---|---|---|---|")
    runs = parser.parse_args().runs
    for run in runs:
        (dice, outline, mixed), volumes, branches = errors(run)
        sizes = ", ".join(f"{value:.3f}" for value in volumes)
        alone = ", ".join(f"{value:.2f}" for value in branches)
        print(
            f"| {run.name} | {dice:.2f} | {outline:.2f} | {mixed:.2f} | {sizes} | {alone} |",
            flush=True,
        )
    for which, values in shares(runs[0]).items():
        print(f"\nshares in {which} cases:", ", ".join(f"{100 * v:.1f} %" for v in values), end="")
    print()


def shares(run: Path) -> dict[str, Sequence[float]]:
    """Each class's share of the foreground, the mean over the labelled and over all other cases."""
    config = read_config(run)
    assert config.dataset is not None
    labeled = json.loads((run / "split.json").read_text(encoding="utf-8"))["labeled"]
    found: dict[str, list[Sequence[float]]] = {"labelled": [], "other": []}
    for case in read_dataset(config.dataset).cases:
        if case.label is None:
            continue
        label = read_label(case.label).array
        sizes = [(label == k).sum() for k in range(1, len(config.plan.classes))]
        if sum(sizes):
            found["labelled" if case.name in labeled else "other"].append(
                [size / sum(sizes) for size in sizes]
            )
    return {which: np.mean(rows, axis=0).tolist() for which, rows in found.items() if rows}


def errors(run: Path) -> tuple[Sequence[float], Sequence[float], Sequence[float]]:
    """Dice, outline, mixed up; volume of each class; Dice of each branch: means over the cases."""
    config, method = load_run(run)
    assert config.dataset is not None
    plan, dataset = config.plan, read_dataset(config.dataset)
    predictor = make_predictor(method, plan, torch.device("cpu"))
    classes = len(plan.classes)
    rows = []
    for name in json.loads((run / "split.json").read_text(encoding="utf-8"))["val"]:
        array, placement, label, ignored = with_label(dataset.case(name), plan)
        found = branch_probabilities(
            predictor, torch.from_numpy(array), plan.patch, classes, config.predict
        )
        guess, *alone = (
            restored_probabilities(probabilities, placement).argmax(0)
            for probabilities in (found.mean(0), *found)
        )
        for one in (guess, *alone):
            one[ignored] = 0
        both = (guess > 0) & (label > 0)
        rows.append(
            [
                mean_dice(guess, label, classes),
                mean_dice(guess > 0, label > 0, 2),
                100 * np.count_nonzero(guess[both] != label[both]) / max(1, both.sum()),
                *((guess == k).sum() / max(1, (label == k).sum()) for k in range(1, classes)),
                *(mean_dice(one, label, classes) for one in alone),
            ]
        )
    means = np.mean(rows, axis=0).tolist()
    return means[:3], means[3 : 2 + classes], means[2 + classes :]


def with_label(
    case: Case, plan: Plan
) -> tuple[NDArray[np.float32], Placement, Classes, NDArray[np.bool_]]:
    """A scan on the network's grid, its place, its label, and where nobody annotated.

    The label is background there. Nothing counts there, so a segmentation should be, too.
    """
    image, label = read_case(case, plan.channels)
    assert label is not None
    array, placement = to_network(image, plan)
    ignored = label.array == plan.ignore
    return array, placement, np.where(ignored, 0, label.array), ignored


def mean_dice(guess: Classes, label: Classes, classes: int) -> float:
    """Mean Dice (%) of the foreground classes; 100 for one that is in neither."""
    scores = []
    for k in range(1, classes):
        a, b = guess == k, label == k
        either = np.count_nonzero(a) + np.count_nonzero(b)
        scores.append(200 * np.count_nonzero(a & b) / either if either else 100.0)
    return float(np.mean(scores))


if __name__ == "__main__":
    main()
