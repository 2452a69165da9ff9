"""A run on OpenVINO in float32 and in 8 bits: Dice, seconds a window and size, as a Markdown row.

    dcamt export RUN --out EXPORT --format openvino
    python benchmarks/bench_int8.py RUN EXPORT

Dice is what the export measured. The time is the median of five rounds, in turn.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from dcamt.inference.graph import WholeMethod
from dcamt.inference.openvino_model import compute_with, import_openvino, model_of
from dcamt.runs.build import load_run

WINDOWS, ROUNDS = 20, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("export", type=Path)
    options = parser.parse_args()
    config, method = load_run(options.run, "last")
    exact = model_of(WholeMethod(method), config.plan)
    small = import_openvino().Core().read_model(options.export / "model.xml")
    computes = [compute_with(model) for model in (exact, small)]
    windows = torch.randn(WINDOWS, len(config.plan.channels), *config.plan.patch)
    for compute in computes:
        compute(windows[:2])
    seconds: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for compute, taken in zip(computes, seconds, strict=True):
            start = time.perf_counter()
            compute(windows)
            taken.append((time.perf_counter() - start) / WINDOWS)
    checked = json.loads((options.export / "model.json").read_text())["checked"]
    dice = [checked["dice_in_float32"], checked["dice"]]
    sizes = [
        sum(value.nbytes for value in method.state_dict().values()),
        (options.export / "model.bin").stat().st_size,
    ]
    print(
        f"| {options.run.name}, {checked['on']} "
        f"| {' | '.join(f'{100 * value:.2f}' for value in dice)} "
        f"| {' | '.join(f'{statistics.median(taken):.3f}' for taken in seconds)} "
        f"| {', '.join(f'{size / 1e6:.1f} MB' for size in sizes)} |"
    )


if __name__ == "__main__":
    main()
