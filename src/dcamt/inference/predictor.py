"""A trained method made ready to predict, on PyTorch or on OpenVINO."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dcamt.config import Plan
from dcamt.errors import InputError
from dcamt.inference.live import live_values
from dcamt.inference.openvino_model import compute_with, import_openvino, model_of, streams
from dcamt.methods.method import Method
from dcamt.networks.convolution import channels_last
from dcamt.networks.folding import fold

Backend = Literal["torch", "openvino"]


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
    fold(fast)
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
        import_openvino()


class _Branches(nn.Module):
    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def forward(self, image: Tensor) -> Tensor:
        return self.method.branches(image)


def _openvino_predictor(method: Method, plan: Plan, device: torch.device, live: float) -> Predictor:
    compute = compute_with(model_of(_Branches(deepcopy(method).cpu().eval()), plan))

    def branches(windows: Tensor) -> Tensor:
        return torch.cat(compute(windows), dim=1)

    return Predictor(branches, device, method.networks, streams(), live)
