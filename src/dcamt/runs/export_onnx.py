"""A run as ONNX: one graph, and a JSON file of all that a program needs beside it."""

import json
import logging
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from dcamt import __version__
from dcamt.config import PredictConfig
from dcamt.errors import InputError
from dcamt.inference.graph import TOLERANCE, WholeMethod, check_agrees, example_windows
from dcamt.inference.sliding_window import window_step
from dcamt.methods.method import Method
from dcamt.records.run_folder import RunConfig

MODEL = "model.onnx"
_LARGEST = 2e9
"""Bytes that one ONNX file can hold: protobuf counts in 31 bits."""


def onnx_files(config: RunConfig, method: Method, card: str) -> dict[str, bytes]:
    """The files of an export, by name; the graph comes last.

    Raises InputError if a package is missing, if the weights are too large for one file, or if
    ONNX Runtime does not compute what PyTorch computes.
    """
    check_installed("onnx", "onnx", ("onnx", "onnxscript", "onnxruntime"))
    needed = sum(value.nbytes for value in method.state_dict().values())
    if needed > _LARGEST:
        raise InputError(
            f"format onnx: the weights take {needed / 1e9:.1f} GB, and one ONNX file holds 2 GB; "
            "choose --format bundle or safetensors"
        )
    whole = WholeMethod(method)
    windows, checked_on = example_windows(config)
    model = _graph(whole, windows)
    check_agrees("ONNX Runtime", _runtime(model), whole, windows)
    return {
        "card.md": card.encode(),
        "model.json": (json.dumps(description(config, checked_on), indent=1) + "\n").encode(),
        MODEL: model,
    }


def check_installed(format: str, extra: str, packages: Sequence[str]) -> None:
    """InputError if one of the ``packages`` of a format is missing; ``extra`` installs them."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise InputError(
            f"format {format}: {missing[0]} is not installed; run `pip install 'dcamt[{extra}]'`, "
            "or choose another --format"
        )


@torch.no_grad()
def _graph(whole: WholeMethod, windows: Tensor) -> bytes:
    """The graph as a file, for any number of windows; without the paths of our source."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names packages nobody needs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            whole,
            (windows,),
            input_names=["image"],
            output_names=["probabilities"],
            dynamic_shapes={"image": {0: torch.export.Dim("windows")}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for part in (*model.graph.node, *model.graph.value_info):
        part.ClearField("metadata_props")  # lines of Python, with the folders they lie in
    return model.SerializeToString(deterministic=True)


def _runtime(model: bytes) -> Any:
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda windows: torch.from_numpy(session.run(None, {"image": windows.numpy()})[0])


def description(config: RunConfig, checked_on: str) -> dict[str, Any]:
    """What model.json holds; docs/exporting.md explains each key."""
    plan = config.plan.model_dump(mode="json")
    return {
        "written_by": f"dcamt {__version__}",
        "model": MODEL,
        "input": {"name": "image", "shape": ["windows", len(plan["channels"]), *plan["patch"]]},
        "output": {
            "name": "probabilities",
            "shape": ["windows", len(plan["classes"]), *plan["patch"]],
        },
        "channels": plan["channels"],
        "classes": plan["classes"],
        "codes": plan["codes"],
        "orientation": plan["orientation"],
        "crop": plan["crop"],
        "spacing": plan["spacing"],
        "normalization": plan["normalization"],
        "patch": plan["patch"],
        **_windows(config.predict, config.plan.patch),
        "checked": {"on": checked_on, "largest_difference_below": TOLERANCE},
    }


def _windows(predict: PredictConfig, patch: tuple[int, int, int]) -> dict[str, Any]:
    return {"step": list(window_step(patch, predict)), "weighting": predict.weighting}
