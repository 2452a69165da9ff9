"""What the labels are worth that `dcamt rank` asks for: Dice with them, and with as many others.

    python benchmarks/learning_curve.py DATASET --splits SPLITS --config RECIPE --out FOLDER

For each seed a run starts with --labels labels. `dcamt rank` then ranks its unlabelled training
cases, whose labels exist but were hidden, and new runs train with the labels of --add more cases:
the first of that order, the first by doubt alone, and as many drawn at random. All runs are scored
on the validation cases of the split. What is finished in FOLDER is not made again, so a run that
was stopped goes on when it is called again. Prints a Markdown table: Dice (%) of each seed, and the
mean over seeds of what was gained over the start.
"""

import argparse
import csv
import json
import random
from pathlib import Path
from statistics import fmean

import dcamt
from dcamt.data.dataset import read_dataset
from dcamt.data.split import Split, choose_split
from dcamt.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True, help="recipe")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--method", default="vnet")
    parser.add_argument("--set", action="append", default=[], help="key=value, as of dcamt train")
    parser.add_argument("--labels", type=int, default=8)
    parser.add_argument("--add", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    split = choose_split(read_dataset(given.dataset), given.splits, given.labels, 0, 0.0)
    curve: dict[str, list[float]] = {"start": []}
    for seed in range(given.seeds):
        start = given.out / f"start-seed{seed}"
        curve["start"].append(_dice(start, split, seed, given))
        ranking = given.out / f"ranking-seed{seed}.csv"
        if not ranking.exists():
            dcamt.rank(start, given.dataset, ranking, quiet=True)
        for order, names in _orders(ranking, seed).items():
            more = _with_labels(split, names[: given.add])
            dice = _dice(given.out / f"{order}-seed{seed}", more, seed, given)
            curve.setdefault(order, []).append(dice)
            print(_table(curve), flush=True)


def _orders(ranking: Path, seed: int) -> dict[str, list[str]]:
    """Case names by who orders them, from a whole ranking by "spread"."""
    with ranking.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # What `--by uncertainty` orders by: its mean with the disagreement, where there is one.
    doubts = {r["case"]: float(r["uncertainty"]) + float(r["disagreement"] or 0) for r in rows}
    names = [row["case"] for row in rows]
    return {
        "spread": names,
        "uncertainty": sorted(names, key=lambda name: -doubts[name]),
        "random": random.Random(seed).sample(sorted(names), len(names)),
    }


def _with_labels(split: Split, chosen: list[str]) -> Split:
    rest = tuple(name for name in split.unlabeled if name not in chosen)
    return Split((*split.labeled, *chosen), rest, split.val)


def _dice(run: Path, split: Split, seed: int, given: argparse.Namespace) -> float:
    """Mean Dice (%) on the validation cases, of a run that is trained unless it is finished."""
    if not (run / "validation.json").exists():
        splits = given.out / f"{run.name}.json"
        parts = {"labeled": split.labeled, "unlabeled": split.unlabeled, "val": split.val}
        write_json({key: list(names) for key, names in parts.items()}, splits)
        dcamt.train(
            given.dataset,
            run,
            method=given.method,
            splits=splits,
            seed=seed,
            device="cpu",
            config=given.config,
            set=given.set,
            resume=True,
            quiet=True,
        )
    scores = json.loads((run / "validation.json").read_text(encoding="utf-8"))
    return 100 * scores["mean"]["dice"]


def _table(curve: dict[str, list[float]]) -> str:
    seeds = max(map(len, curve.values()))
    lines = [f"| labels chosen by | {' | '.join(f'seed {s}' for s in range(seeds))} | gained |"]
    lines.append("|---" * (seeds + 2) + "|")
    for order, values in curve.items():
        cells = [f"{value:.2f}" for value in values] + [""] * (seeds - len(values))
        gains = [value - start for value, start in zip(values, curve["start"], strict=False)]
        gained = f"{fmean(gains):+.2f}" if order != "start" else ""
        lines.append(f"| {order} | {' | '.join(cells)} | {gained} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
