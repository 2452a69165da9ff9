"""``dcamt export``: a trained run made small enough to hand on."""

import json
import math
from pathlib import Path

from dcamt.config import save_config
from dcamt.engine import checkpoint
from dcamt.errors import InputError
from dcamt.experiment import load_run
from dcamt.files import read_json, write_text
from dcamt.reporting.card import model_card


def export_run(run: Path, out: Path, weights: str = "last", megabytes: float = 16) -> list[Path]:
    """Write what ``predict`` needs of ``run`` to ``out``: configuration, half-precision weights.

    Weights are split into files of at most ``megabytes`` (10^6 bytes). Beside them lie versions
    and the model card; paths, case names and the split stay behind. Returns the weight files.
    Raises InputError if ``out`` holds anything or ``run`` cannot be read.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already; choose another --out")
    if not 0 < megabytes < math.inf:
        raise InputError(f"--megabytes {megabytes:g}: give a positive number")
    config, method = load_run(run, weights)
    card, versions = model_card([run], weights), read_json(run / "versions.json")
    # First, as they may be refused; always under the name that `predict` takes without being told.
    files = checkpoint.save_half(out / "last.safetensors", method, int(1e6 * megabytes))
    write_text(out / "card.md", card)
    write_text(out / "versions.json", json.dumps(versions, indent=1))
    save_config(config.model_copy(update={"dataset": None}), out / "config.yaml")
    return files
