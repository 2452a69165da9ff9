"""Networks on OpenVINO, Intel's program for fast inference on CPUs."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dcamt.config import Plan
from dcamt.errors import InputError

_STREAMS = 4  # windows that are computed side by side at most; each takes its own memory


def import_openvino() -> Any:
    """The package; InputError if it is not installed."""
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


@torch.no_grad()
def model_of(network: nn.Module, plan: Plan) -> Any:
    """``network``, on the CPU in evaluation mode, as a model for one window of the plan's patch."""
    example = torch.zeros(1, len(plan.channels), *plan.patch)
    return import_openvino().convert_model(
        network, example_input=example, input=[list(example.shape)]
    )


def streams() -> int:
    """Windows that are computed at a time.

    One window on each of a few streams is faster than batches, whose feature maps are too large for
    the caches, and than more threads on one window.
    """
    return min(torch.get_num_threads(), _STREAMS)


def compute_with(model: Any) -> Callable[[Tensor], list[Tensor]]:
    """A function of windows ``(B, C, X, Y, Z)`` that returns the model's output for each."""
    openvino = import_openvino()
    options = {
        "INFERENCE_PRECISION_HINT": "f32",  # otherwise bfloat16 where the processor has it
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": streams(),
    }
    compiled = openvino.Core().compile_model(model, "CPU", options)
    queue = openvino.AsyncInferQueue(compiled, streams())

    def compute(windows: Tensor) -> list[Tensor]:
        found: dict[int, Tensor] = {}

        def keep(request: Any, index: int) -> None:
            # A copy: the next window is written to the same memory.
            found[index] = torch.from_numpy(request.get_output_tensor().data.copy())

        queue.set_callback(keep)
        for index, window in enumerate(windows):
            queue.start_async(np.ascontiguousarray(window[None].numpy()), index)
        queue.wait_all()
        return [found[index] for index in range(len(windows))]

    return compute
