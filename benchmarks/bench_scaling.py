"""How cost grows with volume size, cases, classes and workers: a table and a plot.

    python benchmarks/bench_scaling.py --plot docs/images/scaling.png     # 5 minutes on 2 cores

Every point is measured in a process of its own on drawn volumes, with a narrow V-Net; figures are
multiples of the row's first point. Prediction is timed from reading the scan to the written
segmentation, preparation from NIfTI to the cache, training by its median iteration.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_training import planned, run_engine
from fresh_process import in_process
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter

from dcamt.config import load_config
from dcamt.data.dataset import read_dataset
from dcamt.data.prepare import prepare
from dcamt.data.volume import write_volume
from dcamt.engine.device import make_fabric
from dcamt.files import write_text
from dcamt.inference.predict import predict_case
from dcamt.inference.predictor import make_predictor
from dcamt.records.run_folder import RunConfig
from dcamt.runs.build import build_method

SHAPE = (64, 64, 48)
PATCH = (48, 48, 32)


@dataclass(frozen=True)
class Point:
    """One measurement: seconds, and the peak memory in MiB."""

    size: int
    seconds: float
    memory: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path, help="picture to write (.png)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["DCAMT_CACHE"] = str(folder / "cache")
        found = {
            "voxels of a volume, prediction (millions)": volumes(folder),
            "cases, preparation": cases(folder, preparation),
            "cases, training iteration": cases(folder, training),
            "classes, training iteration": classes(folder, training),
            "classes, prediction": classes(folder, prediction),
            "workers, training iteration": workers(folder),
        }
    print("| what grows | sizes | time | memory |\n|---|---|---|---|")
    for what, points in found.items():
        first = points[0]
        print(
            f"| {what} | {listed(p.size for p in points)} "
            f"| {listed(f'{p.seconds / first.seconds:.2f}' for p in points)} "
            f"| {listed(f'{p.memory / first.memory:.2f}' for p in points)} |"
        )
    if options.plot:
        draw(found, options.plot)


def listed(values: object) -> str:
    return ", ".join(str(value) for value in values)  # type: ignore[attr-defined]


def volumes(folder: Path) -> list[Point]:
    """Prediction of one scan of 1, 2, 4, ... million voxels."""
    data = dataset(folder / "small", 2, SHAPE, 2)
    points = []
    for millions in (1, 2, 4, 8, 16):
        shape = (100 * millions, 100, 100)
        scan = dataset(folder / f"volume{millions}", 1, shape, 2)
        points.append(point(millions, prediction, data, next((scan / "imagesTr").iterdir())))
    return points


def cases(folder: Path, work: Callable[..., float]) -> list[Point]:
    """The same work with more and more cases in the data set, all of them labelled."""
    points = []
    for number in (16, 32, 64, 128):
        data = dataset(folder / f"cases{number}", number, SHAPE, 2)
        points.append(point(number, work, data))
    return points


def classes(folder: Path, work: Callable[..., float]) -> list[Point]:
    """The same work with more and more classes, background included."""
    points = []
    for number in (2, 4, 8, 16):
        data = dataset(folder / f"classes{number}", 4, SHAPE, number)
        points.append(point(number, work, data))
    return points


def workers(folder: Path) -> list[Point]:
    """Training with its data made in the training process (0) or by others."""
    data = dataset(folder / "workers", 4, SHAPE, 2)
    return [point(number, training, data, workers=number) for number in (0, 1, 2)]


def point(size: int, work: Callable[..., float], *arguments: object, **named: int) -> Point:
    """``work`` in a fresh process, its data prepared by another one unless that is the work."""
    data = arguments[0]
    if work is not preparation:
        in_process(preparation, data)
    seconds, memory = in_process(work, *arguments, **named)
    print(f"{work.__name__} {size}: {seconds:.2f} s, {memory:.0f} MiB", file=sys.stderr, flush=True)
    return Point(size, seconds, memory)


def dataset(root: Path, number: int, shape: tuple[int, int, int], classes: int) -> Path:
    """Smooth noise, cut into classes by its value; nnU-Net layout. Kept if it is there."""
    if root.exists():
        return root
    rng = np.random.default_rng(0)
    for index in range(number):
        smooth = gaussian_filter(rng.normal(size=shape).astype(np.float32), 4)
        steps = np.quantile(smooth[::4, ::4, ::4], np.linspace(0, 1, classes + 1)[1:-1])
        label = np.digitize(smooth, steps).astype(np.uint8)
        noise = rng.normal(size=shape).astype(np.float32)
        image = smooth / smooth.std() + 0.1 * noise
        write_volume(root / "imagesTr" / f"case{index:03d}_0000.nii.gz", image, np.eye(4))
        write_volume(root / "labelsTr" / f"case{index:03d}.nii.gz", label, np.eye(4))
    labels = ", ".join(f'"class{k}": {k}' for k in range(1, classes))
    write_text(
        root / "dataset.json",
        f'{{"channel_names": {{"0": "MR"}}, "labels": {{"background": 0, {labels}}}, '
        f'"numTraining": {number}, "file_ending": ".nii.gz"}}',
    )
    return root


def configuration(data: Path, workers: int = 0) -> RunConfig:
    """A narrow V-Net on two labelled and two unlabelled patches by DCA-MT."""
    config = load_config(
        None,
        [
            f"data.patch={list(PATCH)}",
            "network.width=4",
            "train.iterations=16",
            f"train.workers={workers}",
            "train.validate_every=0",
            "train.checkpoint_every=1000000",
            "device=cpu",
        ],
    )
    return planned(config, data)


def preparation(data: Path) -> float:
    """Seconds from the files to the cache."""
    config = configuration(data)
    begin = time.perf_counter()
    prepare(read_dataset(data).cases, config.plan)
    return time.perf_counter() - begin


def training(data: Path, workers: int = 0) -> float:
    """Median seconds of an iteration, waiting for data included."""
    return run_engine(configuration(data, workers)).iteration


def prediction(data: Path, scan: Path | None = None) -> float:
    """Seconds from a scan's file to its segmentation's."""
    config = configuration(data)
    method = build_method(config)
    predictor = make_predictor(method, config.plan, make_fabric("cpu", "32-true").device)
    scan = scan or min((data / "imagesTr").iterdir())
    with tempfile.TemporaryDirectory() as out:
        begin = time.perf_counter()
        predict_case(predictor, config, [scan], Path(out) / "scan.nii.gz")
        return time.perf_counter() - begin


def draw(found: dict[str, list[Point]], path: Path) -> None:
    """Multiples of time and memory against multiples of the size, with the linear line."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    halves = figure.subplots(1, 2, sharey=True)
    for axes, measure in zip(halves, ("seconds", "memory"), strict=True):
        for what, points in found.items():
            start = points[0]
            if start.size == 0:
                continue  # workers: there is no multiple of none
            grown = [p.size / start.size for p in points]
            cost = [getattr(p, measure) / getattr(start, measure) for p in points]
            axes.plot(grown, cost, "o-", label=what.partition(" (")[0])
        axes.plot([1, 16], [1, 16], "k:", label="linear")
        for scale, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
            scale("log", base=2)
            axis.set_major_formatter("{x:g}")
        axes.set_xlabel("multiple of the size")
        axes.set_title({"seconds": "time", "memory": "peak memory"}[measure])
    first = figure.axes[0]
    first.set_ylabel("multiple of the cost")
    first.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
