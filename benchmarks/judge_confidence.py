"""How well the confidence of `dcamt predict` tells the true Dice, on cases it was not fitted on.

    python benchmarks/judge_confidence.py RUN [RUN ...] --out FOLDER

Segments the scans that each run trained on without their label, with the command line's own
functions, and compares summary.csv with the Dice against the labels, which serve nothing but this.
A third of as many scans again are spoiled beforehand (noise, inverted contrast, one half cut away),
to see failures. Prints a Markdown table, Dice in points, and writes FOLDER/confidence.png. What is
finished in FOLDER is not made again.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

import dcamt
from dcamt.data.dataset import Case, read_dataset
from dcamt.data.volume import read_image, write_volume
from dcamt.evaluation.calibration import judge
from dcamt.files import read_json
from dcamt.records.run_folder import read_config

KINDS = ("unlabelled", "spoiled")
WORST = 0.1
"""Share of the structures that should be flagged."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scans", type=int, help="so many of the unlabelled scans; default all")
    given = parser.parse_args()
    figure = Figure(figsize=(4.5 * len(given.runs), 4.5), layout="constrained")
    heads = ["run", "scans", "true Dice", "confidence", "error", "error of the mean", "rank"]
    print("|", " | ".join([*heads, "worst tenth flagged"]), "|")
    print("|---" * (len(heads) + 1) + "|")
    for place, run in enumerate(given.runs, 1):
        axes = figure.add_subplot(1, len(given.runs), place, title=run.name, aspect="equal")
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        axes.set(xlabel="confidence", ylabel="true Dice", xlim=(0, 1), ylim=(0, 1))
        for kind in KINDS:
            pairs, flagged = _measured(run, kind, given.out / run.name / kind, given.scans)
            print(_row(run, kind, pairs, flagged), flush=True)
            axes.scatter(*pairs.T, s=6, label=kind)
        axes.legend()
        figure.savefig(given.out / "confidence.png", dpi=120)


def _measured(
    run: Path, kind: str, folder: Path, count: int | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Confidence and true Dice of every structure ``(n, 2)``, and which of them are flagged."""
    dataset = read_dataset(read_config(run).dataset)
    names = read_json(run / "split.json")["unlabeled"][:count]
    for place, name in enumerate(names):
        case, scan = dataset.case(name), folder / "scans" / f"{name}.nii.gz"
        if kind == "spoiled" and place % 3 == 0 and not scan.exists():
            _spoil(case, scan, place // 3)
        elif kind != "spoiled" and not scan.exists():
            scan.parent.mkdir(parents=True, exist_ok=True)
            scan.symlink_to(case.images[0])
    found = folder / "segmentations"
    dcamt.predict(run, folder / "scans", found, device="cpu", resume=True, quiet=True)
    scores = dcamt.evaluate(found, dataset.root, metrics="dice")
    dice = {(row["case"], row["class"]): row["dice"] for row in scores["cases"]}
    with (found / "summary.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # Where nothing is found the file has no number; it counts as 0.
    pairs = [(float(row["confidence"] or 0), dice[row["case"], int(row["class"])]) for row in rows]
    return np.array(pairs), np.array([bool(row["flag"]) for row in rows])


def _spoil(case: Case, scan: Path, how: int) -> None:
    image = read_image(case.images)
    array = image.array.astype(np.float32)
    if how % 3 == 0:
        array += np.random.default_rng(how).normal(0, array.std(), array.shape).astype(np.float32)
    elif how % 3 == 1:
        array = array.max() + array.min() - array
    else:
        array[:, : array.shape[1] // 2] = 0
    write_volume(scan, array[0], image.affine, forms=image.forms)


def _row(run: Path, kind: str, pairs: NDArray[np.float64], flagged: NDArray[np.bool_]) -> str:
    confidence, dice = pairs.T
    error, rank = judge(confidence, dice)
    usual = np.mean([row["dice"] for row in read_json(run / "validation.json")["cases"]])
    worst = np.argsort(dice, kind="stable")[: max(1, round(WORST * len(dice)))]
    cells = [
        f"{kind}, {len(pairs)} structures",
        *(f"{100 * values.mean():.1f} ± {100 * values.std():.1f}" for values in (dice, confidence)),
        f"{100 * error:.1f}",
        f"{100 * np.abs(dice - usual).mean():.1f}",
        "" if rank is None else f"{rank:.2f}",
        f"{100 * flagged[worst].mean():.0f} % ({100 * flagged.mean():.0f} % of all)",
    ]
    return f"| {run.name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
