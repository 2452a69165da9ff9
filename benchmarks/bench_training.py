"""Training measured side by side with the plain loop: ratios, medians of paired runs.

    python benchmarks/bench_training.py

Draws phantoms, trains V-Net and DCA-MT on them with the plain loop (benchmarks/plain_training.py)
and with the engine in turn, each run in a process of its own, and prints rows of Markdown.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from fresh_process import in_process
from plain_training import Loop, crops, plain_layers

from dcamt.config import Config, load_config
from dcamt.data.dataset import read_dataset
from dcamt.data.patches import Batches
from dcamt.data.phantom import write_phantoms
from dcamt.data.prepare import prepare
from dcamt.data.survey import survey
from dcamt.engine.device import make_fabric
from dcamt.engine.train import train
from dcamt.methods.method import Method
from dcamt.networks.convolution import channels_last
from dcamt.records.run_folder import RunConfig
from dcamt.runs.build import build_method
from dcamt.types import Batch, Progress, Update

LARGE, SMALL = (112, 112, 80), (48, 64, 48)
WARM_UP = 1


@dataclass(frozen=True)
class Measured:
    """One run: median seconds of an iteration, and the share of them spent waiting."""

    iteration: float
    waiting: float


class Clock:
    """Notes when each ``step`` of a method begins and ends."""

    def __init__(self, method: Method):
        self.begin: list[float] = []
        self.end: list[float] = []
        step = method.step

        def timed(batch: Batch, at: Progress, update: Update) -> dict[str, torch.Tensor]:
            self.begin.append(time.perf_counter())
            terms = step(batch, at, update)
            self.end.append(time.perf_counter())
            return terms

        method.step = timed  # type: ignore[method-assign]

    def measured(self) -> Measured:
        """From the start of one iteration to that of the next, the first ones left out."""
        begin, end = self.begin[WARM_UP:], self.end[WARM_UP:]
        whole = [after - before for before, after in pairwise(begin)]
        waiting = [after - before for before, after in zip(end, begin[1:], strict=False)]
        return Measured(statistics.median(whole), sum(waiting) / sum(whole))


def configuration(
    method: str, patch: tuple[int, int, int], data: Path, iterations: int
) -> RunConfig:
    """Every method sees batches of four: V-Net four labelled, DCA-MT two and two, as in the paper.

    That is, without mixed patches, whose extra pass `dcamt cost` measures.
    """
    batch, options = ((4, 1), []) if method == "vnet" else ((2, 2), ["method.paste=0"])
    config = load_config(
        None,
        [
            f"method.name={method}",
            *options,
            f"data.patch={list(patch)}",
            f"train.iterations={iterations}",
            f"train.labeled_batch={batch[0]}",
            f"train.unlabeled_batch={batch[1]}",
            "train.validate_every=0",
            "train.checkpoint_every=1000000",
            "device=cpu",
        ],
    )
    return planned(config, data)


def planned(config: Config, data: Path) -> RunConfig:
    """``config`` with the plan of a data set that is labelled throughout."""
    found = read_dataset(data)
    seen = survey(found, [case.name for case in found.cases], config.data)
    return RunConfig(**{**dict(config), "dataset": data, "plan": seen.plan})


def make_batches(config: RunConfig) -> Batches:
    """The engine's batches of a data set that is labelled throughout."""
    assert config.dataset is not None
    cases = prepare(read_dataset(config.dataset).cases, config.plan)
    return Batches(cases, cases, config.plan.patch, config.train, config.seed, config.plan.spacing)


def run_plain(config: RunConfig) -> Measured:
    """Train with the plain loop."""
    assert config.dataset is not None
    method = plain_layers(build_method(config))
    clock = Clock(method)
    loop = Loop(method, config.train.iterations)
    batches = crops(config.dataset, config.plan.patch, config.train)
    for batch in batches:
        loop.step(batch)
    return clock.measured()


def run_engine(config: RunConfig) -> Measured:
    """Train with the engine, files and all."""
    method = build_method(config)
    clock = Clock(method)
    fabric = make_fabric(config.device, config.train.precision)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        train(method, make_batches(config), config.train, out, fabric, None, quiet=True)
    return clock.measured()


def largest_loss_difference(config: RunConfig) -> float:
    """Relative difference of the summed terms after two iterations on the same batches."""
    batches = make_batches(config)
    plain, ours = plain_layers(build_method(config)), build_method(config)
    channels_last(ours)
    totals = []
    for method, layout in ((plain, torch.contiguous_format), (ours, torch.channels_last_3d)):
        loop = Loop(method, config.train.iterations)
        for index in range(2):
            torch.manual_seed(index)
            batch = batches[index]
            if layout == torch.channels_last_3d:
                batch = batch.to(torch.device("cpu"))
            terms = loop.step(batch)
        totals.append(sum(abs(value) for value in terms.values()))
    return abs(totals[0] - totals[1]) / totals[0]


def pairs(config: RunConfig, rounds: int) -> tuple[list[float], list[float], list[Measured]]:
    """Plain loop and engine in turn: ratios of time, of peak memory, and the engine's figures."""
    times, peaks, engine = [], [], []
    for _ in range(rounds):
        plain, plain_peak = in_process(run_plain, config)
        ours, our_peak = in_process(run_engine, config)
        times.append(plain.iteration / ours.iteration)
        peaks.append(our_peak / plain_peak)
        engine.append(ours)
        print(f"{config.method.name}: {plain} {ours} MiB: {plain_peak:.0f} {our_peak:.0f}",
              file=sys.stderr)  # fmt: skip
    return times, peaks, engine


def spread(values: list[float]) -> str:
    """Median, and the range if there is one."""
    middle = f"{statistics.median(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="pairs of the small patch")
    parser.add_argument("--large-rounds", type=int, default=1, help="pairs of the large patch")
    options = parser.parse_args()
    print("| patch | method | plain / engine | waiting | memory | largest loss difference |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DCAMT_CACHE"] = str(Path(folder) / "cache")
        data = Path(folder) / "data"
        write_phantoms(data, 6, (144, 144, 96), labeled=5, val=1)
        seconds: dict[tuple[str, str], float] = {}
        for patch, rounds, iterations in (
            (SMALL, options.rounds, 12),
            (LARGE, options.large_rounds, 3),
        ):
            size = "x".join(map(str, patch))
            for name in ("vnet", "dca-mt") if rounds else ():
                config = configuration(name, patch, data, iterations)
                difference = largest_loss_difference(config) if patch == SMALL else None
                ratios, peaks, engine = pairs(config, rounds)
                waiting = [100 * e.waiting for e in engine]
                seconds[name, size] = statistics.median(e.iteration for e in engine)
                print(
                    f"| {size} | {name} | {spread(ratios)} | {spread(waiting)} % | "
                    f"{spread(peaks)} | {'' if difference is None else f'{difference:.0e}'} |"
                )
            if rounds:
                ratio = seconds["dca-mt", size] / seconds["vnet", size]
                print(f"| {size} | dca-mt / vnet | {ratio:.2f} | | | |")


if __name__ == "__main__":
    main()
