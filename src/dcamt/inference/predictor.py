"""A trained method made ready to predict, on PyTorch or on OpenVINO."""

import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dcamt.config import Plan
from dcamt.errors import InputError
from dcamt.methods.method import Method
from dcamt.networks.folding import fold_batch_norm, use_onednn
from dcamt.networks.vnet import channels_last

Backend = Literal["torch", "openvino"]


@dataclass(frozen=True)
class Predictor:
    """What sliding windows need of a method.

    ``branches`` maps windows ``(B, C, X, Y, Z)`` float32 on ``device`` to the probabilities of
    every branch, ``(N, B, K, X, Y, Z)`` float32 on ``device``.
    """

    branches: Callable[[Tensor], Tensor]
    device: torch.device


def make_predictor(
    method: Method, plan: Plan, device: torch.device, backend: Backend = "torch"
) -> Predictor:
    """A fast copy of ``method``, which stays as it is.

    Probabilities equal those of ``method`` in evaluation mode to 1e-4. Raises InputError if
    OpenVINO is asked for but not installed, or asked to use a GPU.
    """
    if backend == "openvino":
        return _openvino_predictor(method, plan, device)
    fast = deepcopy(method).eval().to(device)
    fold_batch_norm(fast)
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        use_onednn(fast)
    channels_last(fast)
    return Predictor(fast.branches, device)


class _Branches(nn.Module):
    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def forward(self, image: Tensor) -> Tensor:
        return self.method.branches(image)


def _openvino_predictor(method: Method, plan: Plan, device: torch.device) -> Predictor:
    if device.type != "cpu":
        raise InputError("backend openvino computes on the CPU; add --device cpu")
    openvino = _import_openvino()
    # Traced with two windows, so that no size of 1 is taken for a constant.
    example = torch.zeros(2, len(plan.channels), *plan.patch)
    with torch.no_grad():
        model = openvino.convert_model(
            _Branches(deepcopy(method).cpu().eval()),
            example_input=example,
            input=[-1, *example.shape[1:]],
        )
    options = {
        "INFERENCE_PRECISION_HINT": "f32",  # otherwise bfloat16 where the processor has it
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(model, "CPU", options)

    def branches(windows: Tensor) -> Tensor:
        return torch.from_numpy(compiled(np.ascontiguousarray(windows.numpy()))[0])

    return Predictor(branches, device)


def _import_openvino() -> Any:
    # OpenVINO reports its use over the network unless this package is absent; scans of patients
    # are no place for that.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino  # noqa: PLC0415
    except ImportError:
        raise InputError(
            "backend openvino: OpenVINO is not installed; run `pip install dcamt[openvino]`, or "
            "leave --backend out"
        ) from None
    return openvino
