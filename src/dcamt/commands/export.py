"""``dcamt export``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dcamt.commands.options import PathLike, Run, Weights, command


@command
def export(
    run: Run,
    out: Annotated[PathLike, typer.Option(help="Folder to write.")],
    *,
    weights: Weights = "last",
    megabytes: Annotated[float, typer.Option(help="Largest file of safetensors, MB.")] = 16,
    format: Annotated[
        Literal["safetensors", "onnx", "openvino", "bundle"],
        typer.Option(help="safetensors: for dcamt. The others: for other programs."),
    ] = "safetensors",
) -> list[Path]:
    """Write a run to hand on: for dcamt, ONNX Runtime, OpenVINO or MONAI.

    A model card goes with each; docs/exporting.md says what else and who reads it. Returns the
    files of weights; those of safetensors are in half precision and have at most ``megabytes``
    each. ONNX and bundle are written only if ONNX Runtime or TorchScript computes what PyTorch
    computes, OpenVINO (8 bits) only if Dice falls by no more than 0.2 points. No path, case name or
    split is carried over. Raises InputError if ``out`` holds anything but a part of this export.
    """
    from dcamt.data.outputs import refuse_within_dataset
    from dcamt.runs.export import export_run

    refuse_within_dataset(Path(out))
    return export_run(Path(run), Path(out), weights, megabytes, format)
