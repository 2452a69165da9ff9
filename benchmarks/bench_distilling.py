"""A light network beside the run that taught it: figures, size, time and memory as Markdown.

    OMP_NUM_THREADS=1 python benchmarks/bench_distilling.py RUN LIGHT [LIGHT ...]

The figures are those of the validation cases, of each branch of RUN, too. Seconds are the
processor's for one scan, reading and writing included: the runs take turns, and the median over the
scans is shown. Memory is the peak of a process that segments one scan, libraries included.
"""

import argparse
import statistics
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from fresh_process import in_process

from dcamt.data.dataset import Case, read_dataset
from dcamt.evaluation.evaluate import evaluate_files
from dcamt.files import read_json
from dcamt.inference.predict import predict_case
from dcamt.inference.predictor import make_predictor
from dcamt.runs.build import build_method, load_run
from dcamt.runs.complexity import count

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="the teacher, then light networks")
    parser.add_argument("--cases", type=int, default=8, help="scans that are timed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = held_out(options.runs[0])
    seconds = take_turns(options.runs, cases[: options.cases])
    print("| network | Dice (%) | 95HD (mm) | parameters | GMACs a patch | CPU s a scan | MiB |")
    print("|---|---|---|---|---|---|---|")
    for run in options.runs:
        size = counted(run)
        _, memory = in_process(segment_one, run, cases[0])
        mean = read_json(run / "validation.json")["mean"]
        print(
            f"| {run.name} | {figures(mean)} | {size['parameters']:,} | {size['macs'] / 1e9:.2f} | "
            f"{statistics.median(seconds[run]):.3f} | {memory:.0f} |",
            flush=True,
        )
    teacher = options.runs[0]
    networks = load_run(teacher)[1].networks
    for branch in range(networks) if networks > 1 else ():
        print(f"| branch {branch + 1} of {teacher.name} | {figures(of_branch(teacher, branch))} |")


def figures(mean: dict[str, Any]) -> str:
    return f"{100 * mean['dice']:.2f} | {mean['hd95']:.2f}"


def held_out(run: Path) -> list[Case]:
    """The validation cases of a run."""
    config, _ = load_run(run)
    assert config.dataset is not None
    dataset = read_dataset(config.dataset)
    return [dataset.case(name) for name in read_json(run / "split.json")["val"]]


def counted(run: Path) -> dict[str, int]:
    """Parameters, and multiply-accumulates of predicting one patch."""
    config, _ = load_run(run)
    with torch.device("meta"):
        method = build_method(config)
    return count(method, len(config.plan.channels), config.plan.patch)


def segmenter(run: Path) -> Any:
    """What segments a case: images to a file."""
    config, method = load_run(run)
    return partial(predict_case, make_predictor(method, config.plan, CPU), config)


def segment_one(run: Path, case: Case) -> None:
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        segmenter(run)(case.images, Path(folder) / "out.nii.gz")


def take_turns(runs: list[Path], cases: list[Case]) -> dict[Path, list[float]]:
    """Seconds of the processor for every case, by run."""
    work = {run: segmenter(run) for run in runs}
    found: dict[Path, list[float]] = {run: [] for run in runs}
    with TemporaryDirectory() as folder:
        for case in cases[:1] + cases:  # the first one once more, to warm up
            for run, segment in work.items():
                begin = time.process_time()
                segment(case.images, Path(folder) / f"{case.name}.nii.gz")
                found[run].append(time.process_time() - begin)
    return {run: times[1:] for run, times in found.items()}


def of_branch(run: Path, branch: int) -> dict[str, Any]:
    """Mean figures of one network of a run on its validation cases."""
    config, method = load_run(run)
    predictor = make_predictor(method, config.plan, CPU)
    one = replace(
        predictor, branches=lambda x: predictor.branches(x)[branch : branch + 1], networks=1
    )
    cases = held_out(run)
    with TemporaryDirectory() as folder:
        made = {case.name: Path(folder) / f"{case.name}.nii.gz" for case in cases}
        for case in cases:
            predict_case(one, config, case.images, made[case.name])
        labels = {case.name: case.label for case in cases if case.label is not None}
        names = dict(enumerate(config.plan.classes[1:], 1))
        mean: dict[str, Any] = evaluate_files(made, labels, names, config.plan.ignore)["mean"]
    return mean


if __name__ == "__main__":
    main()
