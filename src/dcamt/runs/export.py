"""``dcamt export``: a trained run made ready to hand on, to dcamt or to other programs."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from dcamt.config import config_text
from dcamt.engine import checkpoint
from dcamt.errors import InputError
from dcamt.escape import plain
from dcamt.files import atomic, holds, read_json, refuse_existing, remove_temporary
from dcamt.methods.method import Method
from dcamt.records.run_folder import RunConfig
from dcamt.records.summary import CALIBRATION, read_calibration
from dcamt.runs.build import load_run
from dcamt.runs.card import card_handed_on, licence_note, model_card
from dcamt.runs.export_bundle import bundle_files
from dcamt.runs.export_onnx import onnx_files
from dcamt.runs.export_openvino import openvino_files

Format = Literal["safetensors", "onnx", "openvino", "bundle"]
_OF_WEIGHTS = (".safetensors", ".onnx", ".bin", ".ts")


def export_run(
    run: Path,
    out: Path,
    weights: str = "last",
    megabytes: float = 16,
    format: Format = "safetensors",
) -> list[Path]:
    """Write ``run`` to ``out`` in a format of docs/exporting.md; returns the files of weights.

    Paths, case names and the split stay behind. What a killed export left in ``out`` is completed.
    Raises InputError if ``out`` holds anything else, if ``run`` cannot be read, or if the program
    that a format is for does not compute what PyTorch computes.
    """
    if not 0 < megabytes < math.inf:
        raise InputError(f"--megabytes {megabytes:g}: give a positive number")
    if format not in get_args(Format):
        raise InputError(f"format {format!r} is unknown; choose {', '.join(get_args(Format))}")
    config, method = load_run(run, weights)
    card, licence = _card_and_licence(run, weights)
    if format == "onnx":
        files = onnx_files(config, method, card)
    elif format == "openvino":
        files = openvino_files(run, config, method, card)
    elif format == "bundle":
        files = bundle_files(config, method, card, licence)
    else:
        files = _halves(run, weights, config, method, card, int(1e6 * megabytes))
    _refuse_others(out, files)
    remove_temporary(out)
    for name, content in files.items():
        with atomic(out / name) as temporary:
            temporary.write_bytes(content)
    return [out / name for name in files if name.endswith(_OF_WEIGHTS)]


def _card_and_licence(run: Path, weights: str) -> tuple[str, str]:
    """The model card, and what binds those who use the weights; an exported folder holds both."""
    if card := card_handed_on(run):
        return card, plain(card.rpartition("## Licence")[2].strip())
    return model_card([run], weights), licence_note(run)


def _halves(
    run: Path, weights: str, config: RunConfig, method: Method, card: str, largest: int
) -> dict[str, bytes]:
    """What ``predict`` needs: configuration, half-precision weights in small files, calibration."""
    versions = read_json(run / "versions.json")
    calibration = read_calibration(run, len(config.plan.classes) - 1)
    kept = calibration if weights == "last" else None  # it is of the last weights
    return {
        # Always under the name that `predict` takes without being told.
        **checkpoint.halves("last.safetensors", method, largest),
        "card.md": card.encode(),
        "versions.json": json.dumps(versions, indent=1).encode(),
        "config.yaml": config_text(config.model_copy(update={"dataset": None})).encode(),
        **({CALIBRATION: json.dumps(kept, indent=1).encode()} if kept else {}),
    }


def _refuse_others(out: Path, files: Mapping[str, bytes]) -> None:
    """InputError if ``out`` holds anything but some of ``files``: what a killed export left.

    Two graphs of one run may differ in their names within; a graph comes last, so that where one
    lies the export is whole.
    """
    held = _held(out)
    same = all(_is_file_of(out / name, files.get(name)) for name in held)
    refuse_existing(out, ours=same and len(held) < len(files))


def _held(out: Path) -> set[str]:
    """What lies in ``out`` and in its folders, by the path from there; of no link is it asked."""
    found = set()
    for name in holds(out):
        inner = out / name
        if inner.is_dir() and not inner.is_symlink():
            found |= {f"{name}/{below}" for below in _held(inner)}
        else:
            found.add(name)
    return found


def _is_file_of(path: Path, content: bytes | None) -> bool:
    return path.is_file() and not path.is_symlink() and path.read_bytes() == content
