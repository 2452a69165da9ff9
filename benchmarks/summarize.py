"""Table of finished runs: mean and standard deviation over seeds, and the share of the gap closed.

    python benchmarks/summarize.py runs/hippocampus --few vnet-8 --all vnet-all

Run folders are named NAME-seedN; runs of one NAME make one row. "Gap closed" is the share of the
way from --few to --all in mean Dice.
"""

import argparse
import json
import re
import statistics
from collections import defaultdict
from pathlib import Path

METRICS = ("dice", "jaccard", "hd95", "asd")


def read_scores(folder: Path) -> dict[str, list[dict[str, float]]]:
    """Mean metrics of every run below ``folder`` by name, one entry a seed."""
    scores = defaultdict(list)
    for path in sorted(folder.glob("*-seed*/validation.json")):
        match = re.fullmatch(r"(.+)-seed\d+", path.parent.name)
        if match:
            scores[match[1]].append(json.loads(path.read_text())["mean"])
    return dict(scores)


def cell(values: list[float], scale: float) -> str:
    """``mean ± sample standard deviation``."""
    mean = scale * statistics.mean(values)
    spread = f" ± {scale * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean:.2f}{spread}"


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--few", required=True)
    parser.add_argument("--all", required=True)
    options = parser.parse_args()
    scores = read_scores(options.folder)
    dice = {name: statistics.mean(run["dice"] for run in runs) for name, runs in scores.items()}
    few, full = dice[options.few], dice[options.all]
    print("| method | seeds | Dice (%) | Jaccard (%) | 95HD (mm) | ASD (mm) | gap closed |")
    print("|---|---|---|---|---|---|---|")
    for name, runs in sorted(scores.items(), key=lambda item: dice[item[0]]):
        cells = [cell([r[m] for r in runs], 100 if m in METRICS[:2] else 1) for m in METRICS]
        closed = f"{100 * (dice[name] - few) / (full - few):.0f} %"
        print(f"| {name} | {len(runs)} | {' | '.join(cells)} | {closed} |")


if __name__ == "__main__":
    main()
