"""``dcamt predict``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dcamt.commands.options import Device, PathLike, Quiet, Run, Weights, command


@command
def predict(
    run: Run,
    input: Annotated[
        PathLike,
        typer.Argument(help="A scan (file or DICOM folder), a folder of scans or a data set."),
    ],
    out: Annotated[
        PathLike, typer.Option(help="Folder for the segmentations; for one scan also a file.")
    ],
    *,
    weights: Weights = "last",
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also a probability map of each class.")
    ] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Also maps of entropy and disagreement.")
    ] = False,
    largest_component: Annotated[
        bool, typer.Option("--largest-component", help="Keep the largest piece of each class.")
    ] = False,
    dicom_seg: Annotated[
        bool, typer.Option("--dicom-seg", help="Also a DICOM Segmentation, of DICOM scans.")
    ] = False,
    series: Annotated[
        int | None,
        typer.Option(help="Number of the series, from 1, if a DICOM folder holds several."),
    ] = None,
    format: Annotated[
        Literal["nii.gz", "nrrd", "mha", "h5"] | None,
        typer.Option(help="Format of segmentations and maps; default nii.gz."),
    ] = None,
    overlap: Annotated[float | None, typer.Option(help="Overlap of windows, 0 to below 1.")] = None,
    stride: Annotated[
        tuple[int, int, int] | None,
        typer.Option(help="Distance of windows in voxels, in place of the overlap."),
    ] = None,
    weighting: Annotated[
        Literal["gaussian", "constant"] | None,
        typer.Option(help="Weight of a window's voxels; default gaussian."),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = "auto",
    backend: Annotated[
        Literal["torch", "openvino"], typer.Option(help="openvino: faster on a CPU.")
    ] = "torch",
    jobs: Annotated[int, typer.Option(help="Scans segmented at once, each in a process.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Skip cases that are done.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Wait for more scans, until Ctrl-C.")
    ] = False,
    quiet: Quiet = False,
) -> list[Path]:
    """Segment scans; outputs have the scans' own size, affine and spacing.

    ``input`` is a scan, a folder of scans or a data set. Returns the files ``out``/CASE.nii.gz;
    for one scan ``out`` may be the file to write, such as seg.nrrd. Scans may have any of the
    formats in docs/data.md. Outputs are uint8, in the ``format`` nii.gz (unless given), nrrd, mha
    or h5. ``dicom_seg`` adds a DICOM Segmentation to each scan that is a folder of DICOM slices;
    ``series`` (from 1) chooses where such a folder holds several. ``overlap`` (fraction),
    ``stride`` (voxels along each axis, in its place) and ``weighting`` of the windows are the
    run's unless given. A folder ``out`` keeps a record of what made its segmentations,
    predict.json. Raises InputError if an output exists already, or others of another origin; with
    ``resume`` finished cases are skipped. A scan that cannot be read does not keep the others
    from being segmented: the InputError comes at the end. ``jobs`` scans are segmented at once, in
    processes that share the cores and take the GPUs in turn. ``watch`` goes on until Ctrl-C: a
    scan that arrives in the folder ``input`` is segmented as soon as its files have been the same
    for 10 seconds, once, also after a new start.
    """
    from dcamt.inference.predict import Extras
    from dcamt.runs.predict import segment_scans
    from dcamt.runs.watch import SETTLE

    return segment_scans(
        Path(run),
        Path(input),
        Path(out),
        Extras(
            probabilities=probabilities,
            uncertainty=uncertainty,
            largest_component=largest_component,
            dicom_seg=dicom_seg,
        ),
        {"overlap": overlap, "stride": stride, "weighting": weighting},
        weights=weights,
        series=series,
        format=format,
        device=device,
        backend=backend,
        jobs=jobs,
        resume=resume,
        settle=SETTLE if watch else None,
        quiet=quiet,
    )
