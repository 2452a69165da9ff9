"""``dcamt export``: a trained run made small enough to hand on."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from dcamt.config import config_text
from dcamt.engine import checkpoint
from dcamt.errors import InputError
from dcamt.files import atomic, holds, read_json, refuse_existing, remove_temporary
from dcamt.records.summary import CALIBRATION, read_calibration
from dcamt.runs.build import load_run
from dcamt.runs.card import model_card


def export_run(run: Path, out: Path, weights: str = "last", megabytes: float = 16) -> list[Path]:
    """Write what ``predict`` needs of ``run`` to ``out``: configuration, half-precision weights.

    Weights are split into files of at most ``megabytes`` (10^6 bytes). Beside them lie versions,
    the model card and, of the last weights, the calibration of their confidence; paths, case names
    and the split stay behind. Returns the weight files. What a killed export left in ``out`` is
    completed. Raises InputError if ``out`` holds anything else or ``run`` cannot be read.
    """
    if not 0 < megabytes < math.inf:
        raise InputError(f"--megabytes {megabytes:g}: give a positive number")
    config, method = load_run(run, weights)
    card, versions = model_card([run], weights), read_json(run / "versions.json")
    # Always under the name that `predict` takes without being told.
    parts = checkpoint.halves("last.safetensors", method, int(1e6 * megabytes))
    files = {
        **parts,
        "card.md": card.encode(),
        "versions.json": json.dumps(versions, indent=1).encode(),
        "config.yaml": config_text(config.model_copy(update={"dataset": None})).encode(),
    }
    calibration = read_calibration(run, len(config.plan.classes) - 1)
    if calibration and weights == "last":  # whose it is
        files[CALIBRATION] = json.dumps(calibration, indent=1).encode()
    _refuse_others(out, files)
    remove_temporary(out)
    for name, content in files.items():
        with atomic(out / name) as temporary:
            temporary.write_bytes(content)
    return [out / name for name in parts]


def _refuse_others(out: Path, files: Mapping[str, bytes]) -> None:
    """InputError if ``out`` holds anything but some of ``files``: what a killed export left."""
    held = {out / name for name in holds(out)}
    ours = {path for name in files if (path := out / name).is_file() and not path.is_symlink()}
    whole = len(held) == len(files)
    same = held == ours and all(path.read_bytes() == files[path.name] for path in ours)
    refuse_existing(out, ours=same and not whole)
