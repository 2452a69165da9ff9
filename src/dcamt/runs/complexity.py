"""What a method costs: parameters and multiply-accumulates, counted without computing anything."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dcamt.config import MOST_CLASSES, Config, Normalization, Plan, load_config
from dcamt.data.plan import fits, multiples
from dcamt.errors import InputError
from dcamt.methods import METHODS
from dcamt.methods.method import Method
from dcamt.records.run_folder import RunConfig
from dcamt.runs.build import build_method, check_patch, check_segments, network_stride


def method_cost(
    method: str,
    patch: Sequence[int],
    channels: int = 1,
    classes: int = 2,
    width: int | None = None,
    set: Iterable[str] = (),
) -> dict[str, int]:
    """``parameters`` of all networks and ``macs`` of predicting one patch of ``patch`` voxels.

    ``set`` are ``key=value`` settings, such as ``network.name=unet``, and ``width`` is that of the
    network, None for its own. Raises InputError for what there is not.
    """
    config = load_config(None, [*set, f"method.name={method}"])
    config = with_plan(config, patch, channels, classes, width)
    with torch.device("meta"):
        model = build_method(config)
    return count(model, channels, patch)


def method_names() -> tuple[str, ...]:
    """Every method there is, as the command line names it."""
    return tuple(METHODS)


def with_plan(
    config: Config, patch: Sequence[int], channels: int, classes: int, width: int | None
) -> RunConfig:
    """``config`` with a plan for such patches, and that width if it is not None.

    Raises InputError unless the configured networks can take them.
    """
    for name, value, least in (
        ("channels", channels, 1),
        ("classes", classes, 2),
        ("width", width, 1),
    ):
        if value is not None and value < least:
            raise InputError(f"--{name} {value}: ask for at least {least}")
    if classes > MOST_CLASSES:
        raise InputError(f"--classes {classes}: ask for at most {MOST_CLASSES}")
    check_segments(config.method)
    spacing = config.data.spacing or (1.0, 1.0, 1.0)
    sides = (*patch, 1, 1, 1)[:3]
    stride = network_stride(config, (sides[0], sides[1], sides[2]), spacing)
    if len(patch) != 3 or min(patch) < 1 or not fits(patch, stride):
        raise InputError(
            f"--patch {list(patch)}: give three sides, each a multiple of {multiples(stride)}"
        )
    plan = Plan(
        channels=tuple(f"channel {i}" for i in range(channels)),
        classes=tuple(f"class {k}" for k in range(classes)),
        ignore=None,
        orientation="RAS",
        spacing=spacing,
        crop=False,
        normalization=(Normalization(),) * channels,
        patch=(patch[0], patch[1], patch[2]),
    )
    network = config.network
    if width is not None:
        network = network.model_copy(update={"width": width})
    planned = RunConfig(**{**dict(config), "plan": plan, "network": network})
    check_patch(planned)
    return planned


def count(model: Method, channels: int, patch: Sequence[int]) -> dict[str, int]:
    """``parameters`` and ``macs`` of a method on the device ``meta``.

    Convolutions, linear layers and attention products count one multiply-accumulate per
    multiplication, batch, instance and group norm two per voxel and channel, as the literature's
    tables do.
    """
    model.eval()
    image = torch.empty(1, channels, *patch, device="meta")
    normalised = 0

    def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal normalised
        normalised += output.numel()

    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d | nn.InstanceNorm3d | nn.GroupNorm):
            module.register_forward_hook(add)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.predict(image)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "macs": counter.get_total_flops() // 2 + 2 * normalised,
    }
