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
from dcamt.inference.live import live_values
from dcamt.methods.method import Method
from dcamt.networks.folding import fold_batch_norm
from dcamt.networks.vnet import channels_last

Backend = Literal["torch", "openvino"]
_STREAMS = 4  # windows that OpenVINO computes side by side at most; each takes its own memory


@dataclass(frozen=True)
class Predictor:
    """What sliding windows need of a method.

    ``branches`` maps windows ``(B, C, X, Y, Z)`` float32 on ``device`` to the probabilities of
    every branch, ``(N, B, K, X, Y, Z)`` float32 on ``device``. ``networks`` is N, ``streams`` the
    number of windows that are computed at a time, 0 for a whole batch, and ``live`` the number of
    float32 values that the networks hold at once for each voxel of a window, 0 on a GPU.
    """

    branches: Callable[[Tensor], Tensor]
    device: torch.device
    networks: int = 1
    streams: int = 0
    live: float = 0.0


def make_predictor(
    method: Method, plan: Plan, device: torch.device, backend: Backend = "torch"
) -> Predictor:
    """A fast copy of ``method``, which stays as it is.

    On a CPU, probabilities equal those of ``method`` in evaluation mode to 1e-4. Raises InputError
    if OpenVINO is asked for but not installed, or asked to use a GPU.
    """
    check_backend(backend, device)
    fast = deepcopy(method).eval().to(device)
    fold_batch_norm(fast)
    channels_last(fast)
    live = live_values(fast, len(plan.channels)) if device.type == "cpu" else 0.0
    if backend == "openvino":
        return _openvino_predictor(method, plan, device, live)
    return Predictor(fast.branches, device, method.networks, live=live)


def check_backend(backend: Backend, device: torch.device) -> None:
    """InputError if OpenVINO is asked for but not installed, or asked to use a GPU."""
    if backend == "openvino":
        if device.type != "cpu":
            raise InputError("backend openvino computes on the CPU; add --device cpu")
        _import_openvino()


class _Branches(nn.Module):
    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def forward(self, image: Tensor) -> Tensor:
        return self.method.branches(image)


def _openvino_predictor(method: Method, plan: Plan, device: torch.device, live: float) -> Predictor:
    openvino = _import_openvino()
    example = torch.zeros(1, len(plan.channels), *plan.patch)
    with torch.no_grad():
        model = openvino.convert_model(
            _Branches(deepcopy(method).cpu().eval()),
            example_input=example,
            input=[list(example.shape)],
        )
    # One window at a time on each of a few streams: faster than batches, whose feature maps are
    # too large for the caches, and than more threads on one window.
    threads = torch.get_num_threads()
    streams = min(threads, _STREAMS)
    options = {
        "INFERENCE_PRECISION_HINT": "f32",  # otherwise bfloat16 where the processor has it
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": streams,
    }
    compiled = openvino.Core().compile_model(model, "CPU", options)
    queue = openvino.AsyncInferQueue(compiled, streams)

    def branches(windows: Tensor) -> Tensor:
        found: dict[int, Tensor] = {}

        def keep(request: Any, index: int) -> None:
            # A copy: the next window is written to the same memory.
            found[index] = torch.from_numpy(request.get_output_tensor().data.copy())

        queue.set_callback(keep)
        for index, window in enumerate(windows):
            queue.start_async(np.ascontiguousarray(window[None].numpy()), index)
        queue.wait_all()
        return torch.cat([found[index] for index in range(len(windows))], dim=1)

    return Predictor(branches, device, method.networks, streams, live)


def _import_openvino() -> Any:
    # OpenVINO reports its use over the network unless this package is absent; scans of patients
    # are no place for that.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino  # noqa: PLC0415
    except ImportError:
        raise InputError(
            "backend openvino: OpenVINO is not installed; run `pip install 'dcamt[openvino]'`, or "
            "leave --backend out"
        ) from None
    return openvino
