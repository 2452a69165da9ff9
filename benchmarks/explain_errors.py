"""What a run's errors on its validation cases are made of, as Markdown rows.

    python benchmarks/explain_errors.py RUN [RUN ...]

"Outline" is the Dice of all foreground classes taken as one, "mixed up" the share of the voxels
that both label and segmentation call foreground but of different classes, "volume" the foreground
found over the foreground there is. The last column is the Dice of each branch alone.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dcamt.data.dataset import read_dataset
from dcamt.data.space import to_network
from dcamt.data.volume import read_image, read_label
from dcamt.experiment import load_run
from dcamt.inference.predict import restored_probabilities
from dcamt.inference.predictor import make_predictor
from dcamt.inference.sliding_window import branch_probabilities

Classes = NDArray[np.integer]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    print("| run | Dice (%) | outline (%) | mixed up (%) | volume | branches (%) |")
    print("|---|---|---|---|---|---|")
    for run in parser.parse_args().runs:
        dice, outline, mixed, volume, *branches = errors(run)
        alone = ", ".join(f"{value:.2f}" for value in branches)
        print(
            f"| {run.name} | {dice:.2f} | {outline:.2f} | {mixed:.2f} | {volume:.3f} | {alone} |",
            flush=True,
        )


def errors(run: Path) -> Sequence[float]:
    """Dice, outline, mixed up, volume and each branch's Dice, means over the cases."""
    config, method = load_run(run)
    assert config.plan is not None and config.dataset is not None
    plan, dataset = config.plan, read_dataset(config.dataset)
    predictor = make_predictor(method, plan, torch.device("cpu"))
    classes = len(plan.classes)
    rows = []
    for name in json.loads((run / "split.json").read_text(encoding="utf-8"))["val"]:
        case = dataset.case(name)
        assert case.label is not None
        array, placement = to_network(read_image(case.images), plan)
        label = read_label(case.label).array
        found = branch_probabilities(
            predictor, torch.from_numpy(array), plan.patch, classes, config.predict
        )
        guess, *alone = (
            restored_probabilities(probabilities, placement).argmax(0)
            for probabilities in (found.mean(0), *found)
        )
        both = (guess > 0) & (label > 0)
        rows.append(
            [
                mean_dice(guess, label, classes),
                mean_dice(guess > 0, label > 0, 2),
                100 * np.count_nonzero(guess[both] != label[both]) / max(1, both.sum()),
                (guess > 0).sum() / max(1, (label > 0).sum()),
                *(mean_dice(one, label, classes) for one in alone),
            ]
        )
    means: list[float] = np.mean(rows, axis=0).tolist()
    return means


def mean_dice(guess: Classes, label: Classes, classes: int) -> float:
    """Mean Dice (%) of the foreground classes."""
    scores = []
    for k in range(1, classes):
        a, b = guess == k, label == k
        scores.append(200 * np.count_nonzero(a & b) / max(1, a.sum() + b.sum()))
    return float(np.mean(scores))


if __name__ == "__main__":
    main()
