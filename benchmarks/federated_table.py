"""What a federation gains over single sites, and loses against pooled data: Markdown rows.

    python benchmarks/federated_table.py DATASET --config RECIPE --out FOLDER [--shift]

DATASET has a splits.json with at least 8 labelled training cases, such as the hippocampus. All
training cases go to four sites, by chance; the labels of 8 are shown:

    small       10 % of the cases, 1 label
    unlabelled  20 % of the cases, no label
    medium      30 % of the cases, 3 labels
    large       40 % of the cases, 4 labels

The validation cases are held out: no site has them. They are dealt out in the same shares, and are
used for scores alone. With --shift each site has a scanner of its own: another contrast (gamma) and
a brightness that rises or falls along the first axis. A held-out case is changed as the scans of
its site are. Every row is scored on all held-out cases. Where each site ends with a network of its
own, that network segments the cases of its site.

A site trains for --rounds times --iterations, as long as pooled data, or one site alone. All
sites together do four times that. Rows with noise are of SegResNet, as batch norm does not go with
it; there is one without noise to compare them with. The commands are those of the command line.
What is finished in FOLDER is not made again, so a run that was stopped goes on when it is called
again. Rows: Dice (%), mean and standard deviation over seeds.
"""

import argparse
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import yaml

from dcamt.data.dataset import Case, Dataset, read_dataset
from dcamt.data.split import Split, choose_split
from dcamt.data.volume import read_image, write_volume
from dcamt.files import read_json, write_json, write_text

SITES = {"small": (0.1, 1), "unlabelled": (0.2, 0), "medium": (0.3, 3), "large": (0.4, 4)}
"""Share of the cases, and labels."""
SHIFTS = {"small": (0.6, 0.3), "unlabelled": (1.5, -0.3), "medium": (1, 0), "large": (2, 0.4)}
"""Gamma, and how much brighter (as a fraction) the last voxel along the first axis is."""
SEGRESNET = ["--set", "network.name=segresnet"]
OWN = {"FedBN", "FedAvg, attention alone", "FedAvg, heads alone"}
"""Rows after which each site has a network of its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--config", type=Path, required=True, help="recipe")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shift", action="store_true", help="a scanner of its own for each site")
    parser.add_argument("--set", action="append", default=[], help="key=value, as of dcamt train")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=50, help="of each site in a round")
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.001, 0.01, 1.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="these rows alone")
    given = parser.parse_args()
    data = given.out / ("data-shifted" if given.shift else "data")
    if not (data / "complete").exists():
        _deal(given.dataset, data, given.shift)
    config = given.out / "config.yaml"
    if not config.exists():
        recipe = yaml.safe_load(given.config.read_text(encoding="utf-8"))
        recipe.get("train", {}).pop("iterations", None)  # rounds say how many
        write_text(config, yaml.safe_dump(recipe))
    common = ["--config", config, *(part for one in given.set for part in ("--set", one))]
    rows = _rows(data, given)
    if unknown := [name for name in given.rows or () if name not in rows]:
        parser.error(f"no row is named {unknown[0]!r}; there are: {'; '.join(rows)}")
    rows = {name: rows[name] for name in given.rows or rows}
    found: dict[str, list[float]] = {name: [] for name in rows}
    for seed in range(given.seeds):
        for name, command in rows.items():
            plain = name.lower().replace(",", "").replace(" ", "-")
            folder = given.out / data.name.replace("data", "runs") / f"{plain}-seed{seed}"
            train = [*command, *common, "--seed", seed]
            found[name].append(_dice(folder, train, data, name in OWN))
            print(f"{name}, seed {seed}: {found[name][-1]:.2f}", file=sys.stderr, flush=True)
    print("| trained | Dice (%) |\n|---|---|")
    for name, values in found.items():
        spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
        print(f"| {name} | {fmean(values):.2f}{spread} |")


def _rows(data: Path, given: argparse.Namespace) -> dict[str, list[object]]:
    """What each row is trained with: a command of dcamt, without recipe, seed and output."""
    total = ["--set", f"train.iterations={given.rounds * given.iterations}"]
    rows: dict[str, list[object]] = {"pooled data": _train(data / "pooled", total)}
    for name, (_, labels) in SITES.items():
        if labels:
            rows[f"{name} alone"] = _train(data / "sites" / name, total)
    sites = [data / "sites" / name for name in SITES]
    rounds = ["--rounds", given.rounds, "--iterations", given.iterations]
    options: dict[str, list[object]] = {
        "FedAvg": [],
        "FedProx": ["--strategy", "fedprox"],
        "FedBN": ["--strategy", "fedbn"],
        "FedAvg, half precision": ["--half"],
        "FedAvg, attention alone": ["--share", "attention"],
        "FedAvg, heads alone": ["--share", "heads"],
        "FedAvg, SegResNet": [*SEGRESNET],
    }
    for noise in given.noise:
        private = ["--clip", given.clip, "--noise", noise]
        options[f"FedAvg, SegResNet, noise {noise:g}"] = [*SEGRESNET, *private]
    rows |= {name: ["federate", *sites, *rounds, *these] for name, these in options.items()}
    return rows


def _train(folder: Path, total: list[str]) -> list[object]:
    return ["train", folder, "--splits", folder / "splits.json", *total]


def _dice(folder: Path, train: list[object], data: Path, own: bool) -> float:
    """Mean Dice (%) on all held-out cases, of what a command trains unless it is finished."""
    scores = folder / "scores.json"
    if not scores.exists():
        run, found = folder / "run", folder / "segmentations"
        _dcamt(*train, "--out", run, "--resume", "--device", "cpu", "--quiet")
        networks = {name: run / "sites" / name for name in SITES} if own else {"all": run}
        for name, network in networks.items():
            scans, out = data / "held-out" / name, ("--out", found / name)
            _dcamt("predict", network, scans, *out, "--resume", "--device", "cpu", "--quiet")
        together = folder / "together"
        shutil.rmtree(together, ignore_errors=True)
        for path in found.glob("*/*.nii.gz"):
            _link(path, together / path.name)
        _dcamt("evaluate", together, data / "labels", "--metrics", "dice", "--out", scores)
    return 100 * float(read_json(scores)["mean"]["dice"])


def _dcamt(*command: object) -> None:
    words = [sys.executable, "-m", "dcamt", *map(str, command)]
    done = subprocess.run(words, check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"failed: {' '.join(words)}")


def _deal(source: Path, data: Path, shift: bool) -> None:
    """Make folders of the sites, of pooled data and of the held-out cases, from links or copies."""
    shutil.rmtree(data, ignore_errors=True)  # one that was stopped
    dataset = read_dataset(source)
    split = choose_split(dataset, source / "splits.json", None, 0, 0.0)
    labels = sum(count for _, count in SITES.values())
    if len(split.labeled) < labels:
        sys.exit(f"{source}/splits.json: names fewer than {labels} labelled cases")
    shown, rest = [*split.labeled[:labels]], [*split.labeled[labels:], *split.unlabeled]
    held_out = [*split.val]
    random.Random(0).shuffle(rest)
    random.Random(0).shuffle(held_out)
    ends = np.cumsum([share for share, _ in SITES.values()])
    cases = np.diff(np.rint(ends * (labels + len(rest))).astype(int), prepend=0)
    tests = np.diff(np.rint(ends * len(held_out)).astype(int), prepend=0)
    pooled = Split((), (), ())
    for (name, (_, count)), size, test in zip(SITES.items(), cases, tests, strict=True):
        own = Split(tuple(_take(shown, count)), tuple(_take(rest, size - count)), ())
        folder, shifted = data / "sites" / name, SHIFTS[name] if shift else None
        _write(dataset, own, folder, shifted)
        for case in _cases(dataset, _take(held_out, test)):
            _write_scan(case, data / "held-out" / name, shifted)
            scan = f"{case.name}.nii.gz"
            _link(data / "held-out" / name / scan, data / "held-out" / "all" / scan)
            _link(_label(case), data / "labels" / scan)
        for path in folder.glob("*/*.nii.gz"):
            _link(path, data / "pooled" / path.parent.name / path.name)
        pooled = Split(pooled.labeled + own.labeled, pooled.unlabeled + own.unlabeled, ())
    _describe(dataset, pooled, data / "pooled")
    write_text(data / "complete", "")


def _take(names: list[str], count: int) -> list[str]:
    taken, names[:] = names[:count], names[count:]
    return taken


def _cases(dataset: Dataset, names: Iterable[str]) -> list[Case]:
    return [dataset.case(name) for name in names]


def _write(dataset: Dataset, split: Split, folder: Path, shift: tuple[float, float] | None) -> None:
    """A data set with the labels of its labelled cases alone."""
    for case in _cases(dataset, (*split.labeled, *split.unlabeled)):
        _write_scan(case, folder / "imagesTr", shift)
    for case in _cases(dataset, split.labeled):
        _link(_label(case), folder / "labelsTr" / f"{case.name}.nii.gz")
    _describe(dataset, split, folder)


def _describe(dataset: Dataset, split: Split, folder: Path) -> None:
    names = {str(value): name for value, name in enumerate(dataset.classes)}
    channels = {str(number): name for number, name in enumerate(dataset.channels)}
    write_json(
        {"name": folder.name, "modality": channels, "labels": names}, folder / "dataset.json"
    )
    parts = {"labeled": split.labeled, "unlabeled": split.unlabeled, "val": ()}
    write_json({key: list(value) for key, value in parts.items()}, folder / "splits.json")


def _label(case: Case) -> Path:
    assert case.label is not None
    return case.label


def _write_scan(case: Case, folder: Path, shift: tuple[float, float] | None) -> None:
    (source,) = case.images  # scans of one channel
    path = folder / f"{case.name}.nii.gz"
    if shift is None:
        _link(source, path)
        return
    scan = read_image(case.images)
    low, high = float(scan.array.min()), float(scan.array.max())
    gamma, tilt = shift
    array = ((scan.array[0].astype(np.float32) - low) / max(high - low, 1e-6)) ** gamma
    array *= np.linspace(1, 1 + tilt, array.shape[0], dtype=np.float32)[:, None, None]
    write_volume(path, low + (high - low) * array, scan.affine, forms=scan.forms)


def _link(source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(source.resolve())


if __name__ == "__main__":
    main()
