"""``dcamt cost``."""

from collections.abc import Iterable
from typing import Annotated, Any

import typer

from dcamt.commands.options import Device, Sets, command, with_commas


@command
def cost(
    method: Annotated[str, typer.Option(help="Training method.")] = "dca-mt",
    patch: Annotated[tuple[int, int, int], typer.Option(help="Patch size in voxels.")] = (
        112,
        112,
        80,
    ),
    channels: Annotated[int, typer.Option(help="Image channels.")] = 1,
    classes: Annotated[int, typer.Option(help="Classes with background.")] = 2,
    width: Annotated[
        int | None, typer.Option(help="Width of the network; default its own.")
    ] = None,
    *,
    set: Sets = (),
    methods: Annotated[
        str | Iterable[str] | None,
        typer.Option(help="Measure these against V-Net: NAME,NAME,... or all."),
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(help="Iterations to measure; default 20 (GPU) or 3 (CPU).")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to measure.")] = "auto",
) -> dict[str, Any]:
    """Parameters and multiply-accumulates; with --methods also time and memory, beside V-Net.

    ``set`` are settings such as ``network.name=unet``. Returns ``parameters`` of all networks of
    ``method`` and ``macs`` of predicting one patch. With ``methods`` it returns ``device``,
    ``memory`` (what it measures) and ``rows``: name, parameters, macs, iteration_ms, memory_mb
    (10^6 bytes), volume_s and ``ratio``, these as multiples of V-Net's. Raises InputError for a
    method, a patch, a number or a device that cannot be used.
    """
    if methods is None:
        from dcamt.runs.complexity import method_cost

        return method_cost(method, patch, channels, classes, width, set)
    from dcamt.runs.timing import measure

    sizes = (patch, channels, classes, width)
    return measure(with_commas(methods), *sizes, device, iterations, set)
