"""Inference, metrics and start-up against the plain yardstick: Markdown rows of ratios.

    python benchmarks/bench_inference.py                          # 5 minutes on 2 cores
    python benchmarks/bench_inference.py --data IMAGES_AND_LABELS # metrics on a real label
    python benchmarks/bench_inference.py --run RUN --data DATASET --cases 8

Every ratio is the median of paired runs, the two sides one after the other, with the smallest and
the largest. With --run it measures instead what an overlap costs in Dice against the literature's
stride, with that run's weights on its validation cases.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from explain_errors import mean_dice, with_label
from numpy.typing import NDArray
from plain_inference import plain_metrics, plain_probabilities, window_starts
from plain_training import plain_layers
from scipy import ndimage

import dcamt
from dcamt.config import Normalization, Plan, PredictConfig
from dcamt.data.dataset import read_dataset
from dcamt.data.phantom import draw_phantom, write_phantoms
from dcamt.data.volume import read_label
from dcamt.evaluation.metrics import segmentation_metrics
from dcamt.inference.predict import restored_probabilities
from dcamt.inference.predictor import Predictor, make_predictor
from dcamt.inference.sliding_window import branch_probabilities
from dcamt.methods.vnet import Supervised
from dcamt.networks.vnet import VNet
from dcamt.runs.build import load_run

CPU = torch.device("cpu")
PATCH = (112, 112, 80)
STRIDE = (18, 18, 4)
LITERATURE = PredictConfig(stride=STRIDE, weighting="constant")
LEFT_ATRIUM = (192, 142, 88)
"""Voxels of a typical left atrium: the median of the literature's 80 cropped scans."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="data set folder with labels")
    parser.add_argument("--run", type=Path, help="run folder: measure Dice by overlap")
    parser.add_argument("--cases", type=int, default=8, help="validation cases for --run")
    parser.add_argument("--pairs", type=int, default=3, help="paired runs per sliding window")
    parser.add_argument("--patch", type=int, nargs=3, default=PATCH, help="voxels")
    parser.add_argument("--width", type=int, default=16, help="V-Net width")
    options = parser.parse_args()
    if options.run:
        if options.data is None:
            parser.error("--run needs --data")
        dice_by_overlap(options.run, options.data, options.cases)
        return
    print(f"{torch.get_num_threads()} thread(s), load {os.getloadavg()[0]:.1f}\n", flush=True)
    print("| what | goal | ratio (min-max) | largest difference |")
    print("|---|---|---|---|")
    x, y, z = options.patch
    sliding_windows((x, y, z), options.width, options.pairs)
    metrics(options.data)
    start_up()
    first_scan()


def paired(
    plain: Callable[[], object], fast: Callable[[], object], pairs: int
) -> tuple[float, float, float]:
    """Median, smallest and largest ratio of the two times; each runs once before."""
    ratios = []
    for pair in range(pairs + 1):
        seconds = []
        for side in (plain, fast):
            begin = time.perf_counter()
            side()
            seconds.append(time.perf_counter() - begin)
        if pair:
            ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios), min(ratios), max(ratios)


def row(what: str, goal: str, ratios: tuple[float, float, float], difference: str) -> None:
    middle, low, high = ratios
    print(f"| {what} | {goal} | {middle:.2f} ({low:.2f}-{high:.2f}) | {difference} |", flush=True)


def sliding_windows(patch: tuple[int, int, int], width: int, pairs: int) -> None:
    """The same weights by the plain loop, by PyTorch and by OpenVINO; then at both strides."""
    method, plan = seasoned_method(patch, width), bare_plan(patch)
    # The volume: eight windows at the literature's stride, two along each axis.
    shape = tuple(n + step for n, step in zip(patch, STRIDE, strict=True))
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    network = plain_layers(method.network)

    def plain() -> NDArray[np.float32]:
        return plain_probabilities(network, image, patch, STRIDE)

    def ours(predictor: Predictor, settings: PredictConfig, volume: NDArray[np.float32]):
        return branch_probabilities(predictor, torch.from_numpy(volume[None]), patch, 2, settings)

    expected = plain()
    torch_predictor = make_predictor(method, plan, CPU)
    predictors = [("PyTorch", "1.5", torch_predictor)]
    if importlib.util.find_spec("openvino"):
        predictors.append(("OpenVINO", "2.2", make_predictor(method, plan, CPU, "openvino")))
    for name, goal, predictor in predictors:
        found = ours(predictor, LITERATURE, image)[0].numpy()
        ratios = paired(plain, lambda p=predictor: ours(p, LITERATURE, image), pairs)
        what = f"sliding window at {STRIDE}, {name} / plain loop"
        row(what, f">= {goal}", ratios, f"{np.abs(found - expected).max():.1e}")

    seconds = {"inside": 0.0, "whole": 0.0}

    def timed(windows: torch.Tensor) -> torch.Tensor:
        begin = time.perf_counter()
        result = torch_predictor.branches(windows)
        seconds["inside"] += time.perf_counter() - begin
        return result

    for _ in range(pairs):
        begin = time.perf_counter()
        ours(Predictor(timed, CPU), LITERATURE, image)
        seconds["whole"] += time.perf_counter() - begin
    share = 100 * (1 - seconds["inside"] / seconds["whole"])
    print(
        f"| share of a sliding window outside the network | small | {share:.1f} % | |", flush=True
    )

    default_overlap(width)


def default_overlap(width: int) -> None:
    """Windows of a typical left atrium at both strides, timed at under half its size.

    Patch, strides and volume shrink alike, so the windows are as many as at full size.
    """
    patch, volume, stride = (48, 48, 32), (82, 61, 35), (8, 8, 2)
    many = len(window_starts(LEFT_ATRIUM, PATCH, STRIDE))
    few = len(window_starts(LEFT_ATRIUM, PATCH, (56, 56, 40)))
    assert many == len(window_starts(volume, patch, stride))
    assert few == len(window_starts(volume, patch, (24, 24, 16)))
    method = seasoned_method(patch, width)
    predictor = make_predictor(method, bare_plan(patch), CPU)
    scan = np.random.default_rng(1).normal(size=volume).astype(np.float32)
    network = plain_layers(method.network)

    def ours(settings: PredictConfig) -> object:
        return branch_probabilities(predictor, torch.from_numpy(scan[None]), patch, 2, settings)

    literature = PredictConfig(stride=stride, weighting="constant")
    what = f"left atrium, {few} windows of the default overlap / {many} of the literature's stride"
    for name, slow in (
        ("PyTorch both", lambda: ours(literature)),
        ("plain loop", lambda: plain_probabilities(network, scan, patch, stride)),
    ):
        row(f"{what}, {name}", ">= 6", paired(slow, lambda: ours(PredictConfig()), 3), "see --run")


def seasoned_method(patch: tuple[int, int, int], width: int) -> Supervised:
    """A V-Net with random weights whose batch norms have seen a few images."""
    torch.manual_seed(0)
    method = Supervised(Supervised.Config(), lambda: VNet(1, 2, width))
    with torch.no_grad():
        for _ in range(5):
            method.network(torch.randn(2, 1, *(min(n, 48) for n in patch)))
    return method.eval()


def bare_plan(patch: tuple[int, int, int]) -> Plan:
    return Plan(
        channels=("image",), classes=("background", "organ"), ignore=None, orientation="RAS",
        spacing=(1, 1, 1), crop=True, normalization=(Normalization(),), patch=patch,
    )  # fmt: skip


def metrics(data: Path | None) -> None:
    """Dice, Jaccard, 95HD and ASD of a label and a clumsy copy of it."""
    if data is None:
        source, spacing = "phantom", (0.625, 0.625, 0.625)
        # Drawn small and enlarged: drawing one of this size takes minutes.
        small = tuple(n // 4 for n in LEFT_ATRIUM)
        _, drawn = draw_phantom(np.random.default_rng(0), small, (2.5, 2.5, 2.5))
        reference = np.kron(drawn.array > 0, np.ones((4, 4, 4), bool))
    else:
        source, path = next((c.name, c.label) for c in read_dataset(data).cases if c.label)
        label = read_label(path)
        spacing, reference = label.spacing, label.array > 0
    # Moved a little and its surface roughened, as a segmentation would be.
    noise = np.random.default_rng(1).normal(size=reference.shape)
    rough = ndimage.gaussian_filter(reference.astype(float), 2) + 0.5 * ndimage.gaussian_filter(
        noise, 2
    )
    prediction = np.roll(rough > 0.5, 2, axis=0)
    expected = plain_metrics(prediction, reference, spacing)
    found = segmentation_metrics(prediction, reference, spacing)
    difference = max(abs(float(found[key] or 0) - expected[key]) for key in expected)
    ratios = paired(
        lambda: plain_metrics(prediction, reference, spacing),
        lambda: segmentation_metrics(prediction, reference, spacing),
        5,
    )
    shape = "x".join(map(str, reference.shape))
    row(f"four metrics of a {shape} {source} / MedPy", ">= 15", ratios, f"{difference:.1e}")


def start_up() -> None:
    """Wall and processor seconds of ``dcamt --help``, the median of five."""
    walls, works = [], []
    for _ in range(6):
        before, begin = os.times(), time.perf_counter()
        command = [sys.executable, "-m", "dcamt.cli", "--help"]
        subprocess.run(command, check=True, capture_output=True)
        after = os.times()
        walls.append(time.perf_counter() - begin)
        works.append(
            after.children_user + after.children_system
            - before.children_user - before.children_system
        )  # fmt: skip
    wall, work = statistics.median(walls[1:]), statistics.median(works[1:])
    print(f"| `dcamt --help` | < 0.5 s | {wall:.2f} s, {work:.2f} s of processor | |", flush=True)


def first_scan() -> None:
    """`dcamt predict` of one small scan, from start to end, against what PyTorch alone takes."""
    settings = ["network.width=4", "data.patch=[32,32,32]"]
    with tempfile.TemporaryDirectory() as folder:
        data, run, out = (Path(folder) / name for name in ("data", "run", "out"))
        write_phantoms(data, cases=6, labeled=2, val=1)
        dcamt.train(
            data,
            run,
            splits=data / "splits.json",
            method="vnet",
            iterations=1,
            device="cpu",
            set=settings,
            quiet=True,
        )
        scan = next((data / "imagesTr").iterdir())

        def predict() -> None:
            shutil.rmtree(out, ignore_errors=True)
            command = [sys.executable, "-m", "dcamt", "predict", run, scan, "--out", out, "-q"]
            subprocess.run(command, check=True)

        def pytorch() -> None:
            subprocess.run([sys.executable, "-c", "import torch"], check=True)

        row("`dcamt predict` of one scan / `import torch`", "<= 2", paired(predict, pytorch, 5), "")


def dice_by_overlap(run: Path, data: Path, cases: int) -> None:
    """Mean Dice and processor time of a trained run on its validation cases, by overlap.

    The stride is the literature's share of the patch, so 18x18x4 for 112x112x80 voxels.
    """
    config, method = load_run(run)
    plan = config.plan
    assert plan is not None
    predictor = make_predictor(method, plan, CPU)
    shares = [step / n for step, n in zip(STRIDE, PATCH, strict=True)]
    x, y, z = (max(1, round(n * share)) for n, share in zip(plan.patch, shares, strict=True))
    settings = {f"stride {x}x{y}x{z}": PredictConfig(stride=(x, y, z), weighting="constant")}
    settings |= {f"overlap {share}": PredictConfig(overlap=share) for share in (0.25, 0.5, 0.75)}
    names = json.loads((run / "split.json").read_text(encoding="utf-8"))["val"][:cases]
    dataset = read_dataset(data)
    scores: dict[str, list[float]] = {name: [] for name in settings}
    seconds = dict.fromkeys(settings, 0.0)
    for case in map(dataset.case, names):
        array, placement, label, ignored = with_label(case, plan)
        for name, chosen in settings.items():
            begin = time.process_time()
            found = branch_probabilities(
                predictor,
                torch.from_numpy(array),
                plan.patch,
                len(plan.classes),
                chosen,
                mean=True,
            )
            seconds[name] += time.process_time() - begin
            guess = restored_probabilities(found[0], placement).argmax(0)
            guess[ignored] = 0
            scores[name].append(mean_dice(guess, label, len(plan.classes)))
    print(f"{len(names)} validation cases, patch {plan.patch}, {config.method.name}\n")
    print("| windows | Dice (%) | difference | times faster |\n|---|---|---|---|")
    means = {name: statistics.fmean(values) for name, values in scores.items()}
    literature = next(iter(means))
    for name, mean in means.items():
        difference, faster = mean - means[literature], seconds[literature] / seconds[name]
        print(f"| {name} | {mean:.2f} | {difference:+.2f} | {faster:.1f} |")


if __name__ == "__main__":
    main()
