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
        bool, typer.Option("--probabilities", help="Also a map per class.")
    ] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Also entropy and disagreement.")
    ] = False,
    largest_component: Annotated[
        bool, typer.Option("--largest-component", help="Keep one piece per class.")
    ] = False,
    dicom_seg: Annotated[
        bool, typer.Option("--dicom-seg", help="Also a DICOM Segmentation (scans in DICOM).")
    ] = False,
    series: Annotated[
        int | None, typer.Option(help="Which one, from 1, if a DICOM folder holds several.")
    ] = None,
    format: Annotated[
        Literal["nii.gz", "nrrd", "mha", "h5"] | None,
        typer.Option(help="Of segmentations and maps; default nii.gz."),
    ] = None,
    overlap: Annotated[float | None, typer.Option(help="Window overlap, 0 to below 1.")] = None,
    stride: Annotated[
        tuple[int, int, int] | None, typer.Option(help="Window stride in voxels, not overlap.")
    ] = None,
    weighting: Annotated[
        Literal["gaussian", "constant"] | None, typer.Option(help="Default gaussian.")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = "auto",
    backend: Annotated[
        Literal["torch", "openvino"], typer.Option(help="openvino: faster on a CPU.")
    ] = "torch",
    jobs: Annotated[int, typer.Option(help="Scans at once, each in a process.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Skip cases already done.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on with scans that arrive, until Ctrl-C.")
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
        Extras(probabilities, uncertainty, largest_component, dicom_seg),
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
