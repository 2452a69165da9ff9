"""What a method costs: parameters and multiply-accumulates, counted without computing anything."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dcamt.errors import InputError
from dcamt.methods import METHODS
from dcamt.methods.method import Method
from dcamt.networks.vnet import STRIDE, VNet


def method_cost(
    method: str, patch: Sequence[int], channels: int = 1, classes: int = 2, width: int = 16
) -> dict[str, int]:
    """``parameters`` of all networks and ``macs`` of predicting one patch of ``patch`` voxels."""
    if method not in METHODS:
        raise InputError(f"method '{method}' is unknown; known methods: {', '.join(METHODS)}")
    check_patch(patch)
    check_sizes(channels, classes, width)
    with torch.device("meta"):
        kind = METHODS[method]
        model = kind(kind.Config(), partial(VNet, channels, classes, width))
    return count(model, channels, patch)


def method_names() -> tuple[str, ...]:
    """Every method there is, as the command line names it."""
    return tuple(METHODS)


def check_patch(patch: Sequence[int]) -> None:
    """InputError unless a V-Net can take patches of that size."""
    if len(patch) != 3 or any(size < STRIDE or size % STRIDE for size in patch):
        raise InputError(f"--patch {list(patch)}: give three sides, each a multiple of {STRIDE}")


def check_sizes(channels: int, classes: int, width: int) -> None:
    """InputError unless there can be a V-Net of these sizes."""
    for name, value, least in (
        ("channels", channels, 1),
        ("classes", classes, 2),
        ("width", width, 1),
    ):
        if value < least:
            raise InputError(f"--{name} {value}: ask for at least {least}")


def count(model: Method, channels: int, patch: Sequence[int]) -> dict[str, int]:
    """``parameters`` and ``macs`` of a method on the device ``meta``.

    Convolutions, linear layers and attention products count one multiply-accumulate per
    multiplication, batch norm two per voxel and channel, as the literature's tables do.
    """
    model.eval()
    image = torch.empty(1, channels, *patch, device="meta")
    normalised = 0

    def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal normalised
        normalised += output.numel()

    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.register_forward_hook(add)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.predict(image)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "macs": counter.get_total_flops() // 2 + 2 * normalised,
    }
