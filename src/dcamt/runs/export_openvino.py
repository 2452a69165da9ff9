"""A run as an OpenVINO model in 8 bits: a quarter of the size, and faster on a CPU."""

import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcamt.data.prepare import Prepared
from dcamt.errors import InputError
from dcamt.inference.graph import WholeMethod
from dcamt.inference.openvino_model import compute_with, import_openvino, model_of
from dcamt.inference.predictor import Predictor
from dcamt.inference.sliding_window import pad_to
from dcamt.inference.validate import dice_of
from dcamt.methods.method import Method
from dcamt.records.run_folder import RunConfig
from dcamt.runs.export_onnx import check_installed, description
from dcamt.runs.plan import Planned
from dcamt.runs.resume import reopen

MODEL = "model.xml"
_WINDOWS = 192
"""Windows of training scans from which the range of each feature is taken."""
_MAY_LOSE = 0.002
"""Dice (fraction) that rounding to 8 bits may cost."""


def openvino_files(run: Path, config: RunConfig, method: Method, card: str) -> dict[str, bytes]:
    """The files of an export, by name; the graph comes last.

    Weights and features are rounded to 8 bits (NNCF, post-training quantisation). Ranges come from
    scans of the training, without their labels. Raises InputError if a package or the data set is
    missing, or if the mean Dice falls by more than 0.2 points.
    """
    check_installed("openvino", "int8", ("openvino", "nncf"))
    if config.dataset is None:
        raise InputError(
            f"{run}: names no data set, whose scans tell the range of each feature; choose "
            "--format onnx"
        )
    planned = reopen(run)
    exact = model_of(WholeMethod(method), config.plan)
    small = _in_8_bits(exact, [*_windows(planned)])
    cases, which = _judged(planned)
    dice = {
        name: dice_of(_predictor(model), cases, config.plan, config.predict)
        for name, model in (("float32", exact), ("8 bits", small))
    }
    if not dice["8 bits"] >= dice["float32"] - _MAY_LOSE:
        raise InputError(
            f"format openvino: 8 bits cost too much Dice on the {which} ("
            f"{100 * dice['8 bits']:.2f} % in place of {100 * dice['float32']:.2f} %), so nothing "
            "was written; choose --format onnx"
        )
    about = description(config, which)
    about |= {
        "model": MODEL,
        "checked": {"on": which, "dice": dice["8 bits"], "dice_in_float32": dice["float32"]},
    }
    for side in ("input", "output"):
        about[side]["shape"][0] = 1
    graph, weights = _saved(small)
    return {
        "card.md": card.encode(),
        "model.json": (json.dumps(about, indent=1) + "\n").encode(),
        "model.bin": weights,
        MODEL: graph,
    }


def _windows(planned: Planned) -> Iterator[torch.Tensor]:
    """Windows ``(1, C, X, Y, Z)`` of the training scans, at random places, the same every time."""
    config, split = planned.config, planned.split
    used = [case for case in planned.ready if case.name in (*split.labeled, *split.unlabeled)]
    rng = np.random.default_rng(config.seed)
    for number in range(_WINDOWS):
        image, patch = used[number % len(used)].image, config.plan.patch
        sizes = [*zip(image.shape[1:], patch, strict=True)]
        low = [int(rng.integers(0, max(n, side) - side + 1)) for n, side in sizes]
        place = (slice(a, a + side) for a, (_, side) in zip(low, sizes, strict=True))
        window, _ = pad_to(torch.from_numpy(np.array(image[:, *place])), patch)
        yield window[None]


def _judged(planned: Planned) -> tuple[list[Prepared], str]:
    """The cases that Dice is measured on, and what they are."""
    split = planned.split
    names, which = (
        (split.val, "validation cases") if split.val else (split.labeled, "labelled training cases")
    )
    return [case for case in planned.ready if case.name in names], f"{len(names)} {which}"


def _in_8_bits(model: Any, windows: Sequence[torch.Tensor]) -> Any:
    """Weights and features of ``model`` rounded to 8 bits, whose ranges ``windows`` tell."""
    import nncf  # noqa: PLC0415

    nncf.set_log_level(logging.ERROR)
    with redirect_stdout(sys.stderr):  # where its progress belongs
        return nncf.quantize(
            model.clone(),
            nncf.Dataset(windows, lambda window: window.numpy()),
            subset_size=len(windows),
            preset=nncf.QuantizationPreset.MIXED,
            fast_bias_correction=False,  # the fast one cost 0.2 points of Dice on a left atrium
        )


def _predictor(model: Any) -> Predictor:
    compute = compute_with(model)
    return Predictor(lambda windows: torch.cat(compute(windows))[None], torch.device("cpu"))


def _saved(model: Any) -> tuple[bytes, bytes]:
    """The two files of a model: graph and weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL
        import_openvino().save_model(model, path, compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()
