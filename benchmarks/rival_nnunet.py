r"""nnU-Net on the labelled cases of a split, scored like ours: the rival that users have.

    python benchmarks/rival_nnunet.py DATASET --splits splits.json --labeled 8 --minutes 20 \
        --out runs/rival

1. It installs nnU-Net in an environment of its own (`--env`, about 2 GB). dcamt never needs it.
2. It gives nnU-Net the labelled cases that `dcamt train --splits splits.json --labeled 8` has.
   nnU-Net sees no label of another case. It makes its own plan of these cases.
3. nnU-Net trains `3d_fullres` on all of them (fold `all`) for --minutes. The clock runs from the
   first iteration to the last. The learning rate falls to 0 in this time.
4. Its last weights segment the validation cases, and `dcamt evaluate` scores them on the scans' own
   voxels.

It ends with a row of Markdown. --out then holds the row (`rival.json`), the scores of each case
(`scores.json`), the segmentations (`predicted/`) and all that nnU-Net said (`nnunet.log`).
Stopped or killed, it goes on when the same command is given again. What was lost since the last
epoch is trained again; the lost time does not count.

nnU-Net mirrors patches in training and in prediction. Where classes are told by the side on which
they lie, try `--no-mirroring` (nnU-Net's own nnUNetTrainerNoMirroring). `--spacing X Y Z` sets the
spacing in mm that nnU-Net plans for; the scans that it gets stay as they are. The left atrium of
docs/results.md needs `--spacing 1.25 1.25 1.25`. nnU-Net uses all cores. On Linux, `taskset -c 0`
before the command gives it one. It is not compiled (nnUNet_compile=f).

Rows of ours, for the same time on the same machine (`validation.json` in each run has the figures):

    dcamt train DATASET --splits splits.json --labeled 8 --within 20m --method vnet --out runs/vnet
    dcamt train DATASET --splits splits.json --labeled 8 --within 20m --method dca-mt --out runs/dca
"""

import argparse
import math
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nnunet_commands import CORES, DATA, NNUNET, PROCESSES, Work, install, nnunet
from nnunet_raw import chosen, write_raw

from dcamt import evaluate
from dcamt.data.outputs import refuse_within_dataset
from dcamt.engine.signals import Interrupted
from dcamt.errors import InputError
from dcamt.escape import markdown
from dcamt.files import alone, read_json, refuse_existing, write_json
from dcamt.records.scores import Metric
from dcamt.reporting.values import heading, shown

METRICS: tuple[Metric, ...] = ("dice", "hd95", "asd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--splits", type=Path, required=True, help="as for `dcamt train`")
    parser.add_argument("--labeled", help="as for `dcamt train`: N, or all")
    parser.add_argument("--minutes", type=float, required=True, help="time of training")
    parser.add_argument("--spacing", type=float, nargs=3, metavar=("X", "Y", "Z"), help="mm")
    parser.add_argument("--no-mirroring", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--env", type=Path, help="environment of nnU-Net; default: OUT/env")
    try:
        print(rival(parser.parse_args()))
    except InputError as error:
        leave(str(error), 2)
    except Interrupted as stopped:
        leave(str(stopped), stopped.exit_code)
    except KeyboardInterrupt:
        leave("stopped; give the same command again to go on", 130)
    except subprocess.CalledProcessError as error:
        leave(str(error.output), 1)


def leave(message: str, code: int) -> None:
    print(f"rival_nnunet: {message}", file=sys.stderr)
    raise SystemExit(code)


def rival(options: argparse.Namespace) -> str:
    """Do what is not done yet; returns the table."""
    out, env = options.out.resolve(), (options.env or options.out / "env").resolve()
    check_numbers(options)
    dataset, split = chosen(options.dataset, options.splits, options.labeled)
    for folder in (out, env):
        refuse_within_dataset(folder, options.dataset)
    settings = {
        "nnunet": NNUNET,
        "dataset": str(options.dataset.resolve()),
        "labeled": list(split.labeled),
        "val": list(split.val),
        "minutes": options.minutes,
        "spacing": options.spacing,
        "mirroring": not options.no_mirroring,
        "device": options.device,
        "seed": options.seed,
    }
    refuse_existing(out, ours=(out / "settings.json").exists(), kind="rival")
    with alone(out) as lock:
        begin(out, settings)
        if not (out / "rival.json").exists():
            work = Work(out, env, settings, lock)
            install(work)
            once(work.raw, lambda folder: write_raw(dataset, split, folder / DATA))
            once(work.preprocessed, lambda folder: plan(work, folder))
            train(work)
            once(out / "predicted", lambda folder: predict(work, folder), keep=True)
            scores = evaluate(out / "predicted", options.dataset, out / "scores.json")
            found = {key: scores[key] for key in ("mean", "std", "missed", "invented")}
            write_json({**settings, **facts(work), **found}, out / "rival.json")
    return table(read_json(out / "rival.json"))


# ------------------------------------------------------------------------------- what is asked


def check_numbers(options: argparse.Namespace) -> None:
    """InputError for a time or a spacing that is none."""
    if not 0 < options.minutes < math.inf:
        raise InputError(f"--minutes {options.minutes:g}: give a time above 0")
    if options.spacing and not all(0 < side < math.inf for side in options.spacing):
        raise InputError("--spacing: give three sizes in mm above 0")
    if not 0 <= options.seed < 2**31:
        raise InputError(f"--seed {options.seed}: give a whole number from 0 to {2**31 - 1}")


def begin(out: Path, settings: Mapping[str, Any]) -> None:
    """Write down what ``out`` is for; InputError if it was begun for something else."""
    file = out / "settings.json"
    if not file.exists():
        write_json(settings, file)
    before = read_json(file)
    other = [key for key, value in settings.items() if before.get(key) != value]
    if other:
        raise InputError(
            f"{out}: was begun with other settings ({', '.join(other)}); choose another --out"
        )


# ---------------------------------------------------------------------------------- the steps


def once(folder: Path, make: Callable[[Path], None], keep: bool = False) -> None:
    """Have ``make`` fill a folder that gets its name when it is complete; nothing if it is there.

    With ``keep`` what a killed process left of it is gone on with.
    """
    if folder.exists():
        return
    part = folder.with_name(f"{folder.name}.part")
    if part.exists() and not keep:
        shutil.rmtree(part)
    part.mkdir(parents=True, exist_ok=True)
    make(part)
    part.rename(folder)


def plan(work: Work, folder: Path) -> None:
    """nnU-Net's plan of the labelled cases, and these as it trains on them."""
    spacing = work.settings["spacing"]
    # nnU-Net counts axes from the last to the first.
    wanted = ["-overwrite_target_spacing", *map(str, reversed(spacing))] if spacing else []
    processes = ["-np", str(PROCESSES)]
    told = {"nnUNet_preprocessed": str(folder)}
    nnunet(work, "look at the scans", "extract_fingerprint", ["-d", "1", *processes], told)
    nnunet(work, "plan", "plan_experiment", ["-d", "1", *wanted], told)
    prepare = ["-d", "1", "-c", "3d_fullres", *processes]
    nnunet(work, "prepare the scans", "preprocess", prepare, told)


def train(work: Work) -> None:
    """Train to the last epoch, from where a killed training was."""
    if (work.model / "fold_all" / "checkpoint_final.pth").exists():
        return
    settings = work.settings
    told = {"RIVAL_SECONDS": str(60 * settings["minutes"]), "RIVAL_SEED": str(settings["seed"])}
    if settings["device"] == "cpu":  # few cores do better without processes that draw patches
        told["nnUNet_n_proc_DA"] = str(CORES // 4)
    what = [DATA, "3d_fullres", "all", "-tr", work.trainer, "--c", "-device", settings["device"]]
    nnunet(work, "train", "train", what, told, "epoch .*")


def predict(work: Work, folder: Path) -> None:
    """Segment the validation cases that are not segmented yet, one after the other."""
    done = sorted(folder.glob("*.nii.gz"), key=lambda file: file.stat().st_mtime)
    for file in done[-1:]:  # a kill may have left half of it
        file.unlink()
    asked = ["-i", str(work.raw / DATA / "imagesTs"), "-o", str(folder), "-d", DATA]
    asked += ["-tr", work.trainer, "-c", "3d_fullres", "-f", "all", "--continue_prediction"]
    # One process that reads and one that writes, so that only the newest file can be half written.
    asked += ["-npp", "1", "-nps", "1", "-device", work.settings["device"]]
    nnunet(work, "segment the validation cases", "predict", asked, {}, "done with .*")


# ---------------------------------------------------------------------------------- the result


def facts(work: Work) -> dict[str, Any]:
    """What nnU-Net planned, and what it did in the time; sizes along X, Y, Z."""
    plans = read_json(work.model / "plans.json")
    fullres = plans["configurations"]["3d_fullres"]
    backward = plans["transpose_backward"]
    progress = read_json(work.model / "fold_all" / "progress.json")
    return {
        "trained_minutes": sum(part["seconds"] for part in progress["parts"]) / 60,
        "iterations": sum(part["iterations"] for part in progress["parts"]),
        "epochs": progress["epochs"],
        "patch": [fullres["patch_size"][axis] for axis in backward][::-1],
        "planned_spacing": [fullres["spacing"][axis] for axis in backward][::-1],
        "batch": fullres["batch_size"],
        "processor": processor() if progress["device"] == "cpu" else progress["device"],
        "threads": progress["threads"],
    }


def processor() -> str:
    """The name of this machine's processor."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        told = ""
    found = re.search(r"^model name\s*: (.+)$", told, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def table(found: Mapping[str, Any]) -> str:
    """The row in Markdown, under its headings."""
    cells = {
        "method": f"nnU-Net {found['nnunet']}" + ("" if found["mirroring"] else ", no mirroring"),
        "labels": str(len(found["labeled"])),
        **{heading(metric, "mm"): shown(found["mean"][metric], metric) for metric in METRICS},
        "missed": str(found["missed"]),
        "minutes": f"{found['trained_minutes']:.1f}",
        "iterations": str(found["iterations"]),
        "patch": "x".join(map(str, found["patch"])),
        "spacing (mm)": "x".join(f"{side:.3g}" for side in found["planned_spacing"]),
        "batch": str(found["batch"]),
        "processor": f"{found['processor']}, {found['threads']} threads",
    }
    rows = [cells.keys(), ["---"] * len(cells), map(markdown, cells.values())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
