"""``dcamt predict``: scans in, segmentations out, and a record of what made them."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from dcamt.config import PredictConfig
from dcamt.data.dataset import Case
from dcamt.data.folder import OTHER_FORMATS, remarks_on
from dcamt.data.formats import OUTPUT_FORMATS, dicom, ending_of
from dcamt.data.formats.dicom_seg import check_sources
from dcamt.data.outputs import refuse_within_dataset
from dcamt.data.scans import check_can_be_watched, find_scans, scans_so_far
from dcamt.engine.device import choose_device
from dcamt.engine.signals import stopped_by_signals
from dcamt.errors import InputError
from dcamt.escape import printable
from dcamt.files import alone, holds, read_json, refuse_links, remove_abandoned, write_text
from dcamt.inference.predict import EXTRA_FOLDERS, Extras, extra_files
from dcamt.inference.predictor import Backend
from dcamt.inference.sliding_window import check_stride
from dcamt.records.run_folder import RunConfig
from dcamt.reporting.console import plain_console
from dcamt.runs.build import digest, load_run
from dcamt.runs.segment import Request, Segment, segment_all, segmenter
from dcamt.runs.summary import CSV, JSON, refuse_other_summary, summary_of
from dcamt.runs.watch import watch
from dcamt.section import validated

RECORD = "predict.json"
"""Beside the segmentations of a folder: the weights and settings that made them."""
_BARE = {RECORD, CSV, JSON, *EXTRA_FOLDERS}
"""What a folder may hold in which nothing is segmented yet."""


def segment_scans(
    run: Path,
    input: Path,
    out: Path,
    extras: Extras,
    windows: Mapping[str, Any],
    *,
    weights: str = "last",
    series: int | None = None,
    format: str | None = None,
    device: str = "auto",
    backend: Backend = "torch",
    jobs: int = 1,
    resume: bool = False,
    settle: float | None = None,
    quiet: bool = False,
) -> list[Path]:
    """Segment what is at ``input`` with a run; see `dcamt.predict`. Returns the segmentations.

    ``windows`` are settings of PredictConfig that win over the run's. With ``settle``, in seconds,
    the folder ``input`` is watched. Segmentations of one folder have one origin: InputError if
    those in ``out`` were made by other weights or settings.
    """
    if jobs < 1:
        raise InputError(f"--jobs {jobs}: ask for at least 1")
    config, method = load_run(run, weights)
    config = _with_windows(config, windows)
    plan, watched = config.plan, settle is not None
    scans, unread = _scans_at(input, len(plan.channels), series, watched)
    outputs = _name_outputs(input, out, format, scans)
    single = out in outputs.values()
    folder = out.parent if single else out
    extras = replace(extras, summary=not single)

    def files_of(outputs: Mapping[str, Path]) -> dict[str, list[Path]]:
        return {
            name: [path, *chain(*extra_files(path, extras, plan.classes).values())]
            for name, path in outputs.items()
        }

    files = files_of(outputs)
    _check_place(input, out, scans, single)
    if extras.dicom_seg:
        check_sources(scan.images[0] for scan in scans)
    _check_names(files)
    refuse_links(folder, extras.folders())
    _refuse_existing(files, may_skip=not single, resume=resume or watched)
    accelerator, _ = choose_device(device, "32-true")
    request = Request(run, weights, config.predict, extras, series, accelerator, backend)
    ending = f".{format or OUTPUT_FORMATS[0]}"
    made_with = {**_settings(request), "sha256": digest(config, method), "format": ending}
    console = plain_console(stderr=True, quiet=quiet)
    for note in remarks_on(unread, skip=folder.resolve()):
        console.print(printable(note))
    again = "give the same command again" if single or watched else "continue with --resume"
    sum_up = None if single else summary_of(out, ending, plan.classes, run, weights, console)
    with (
        stopped_by_signals(again),
        segmenter(request, config, method, jobs, console) as segment,
        nullcontext() if single else _recorded(out, made_with, files),
    ):
        for place in (folder, *(folder / name for name in extras.folders())):
            remove_abandoned(place)

        def segment_all_of(scans: Sequence[Case]) -> dict[str, str]:
            files = files_of(_name_outputs(input, out, format, scans))
            failed = _segment_new(scans, files, segment, console, watched or len(scans) > 1)
            if sum_up is not None:
                sum_up()
            return failed

        if settle is not None:
            watch(input, len(plan.channels), folder, settle, segment_all_of, console)
        failed = segment_all_of(scans)
    if failed:
        first, *others = failed
        more = f"; these have no segmentation either: {', '.join(others)}" if others else ""
        raise InputError(failed[first] + more)
    return list(outputs.values())


def _scans_at(
    input: Path, channels: int, series: int | None, watched: bool
) -> tuple[list[Case], list[Path]]:
    """The scans at ``input``, of a watched folder those so far, and the files that are none."""
    unread: list[Path] = []
    if watched:
        check_can_be_watched(input)
        scans, _ = scans_so_far(input, channels)
    else:
        scans = find_scans(input, channels, unread)
    if series is not None and not watched and not any(scan.images[0].is_dir() for scan in scans):
        raise InputError(f"{input}: is no folder of DICOM slices; leave out --series")
    return scans, unread


def _segment_new(
    scans: Sequence[Case],
    files: Mapping[str, Sequence[Path]],
    segment: Segment,
    console: Console,
    many: bool,
) -> dict[str, str]:
    """Segment what is not segmented yet; why some could not be. ``many`` as in `segment_all`."""
    _check_names(files)
    todo = [scan for scan in scans if not all(map(os.path.lexists, files[scan.name]))]
    return segment_all(todo, files, segment, console, many)


def _with_windows(config: RunConfig, windows: Mapping[str, Any]) -> RunConfig:
    given = {key: value for key, value in windows.items() if value is not None}
    if "overlap" in given:
        given.setdefault("stride", None)  # the run's stride would win otherwise
    values = config.predict.model_dump() | given
    settings = validated(PredictConfig, values, "predict")
    check_stride(config.plan.patch, settings)
    return config.model_copy(update={"predict": settings})


# ------------------------------------------------------------------------------- where it goes


def _name_outputs(
    input: Path, out: Path, format: str | None, scans: Sequence[Case]
) -> dict[str, Path]:
    """The segmentation of each scan: files in the folder ``out``, or ``out`` itself for one."""
    if format not in (None, *OUTPUT_FORMATS):
        raise InputError(f"format {format!r} is unknown; choose {', '.join(OUTPUT_FORMATS)}")
    ending = ending_of(out.name)
    if ending is None and out.suffix.lower() in OTHER_FORMATS:
        ending = out.suffix.lower()
    if ending is None or out.is_dir():
        return {scan.name: out / f"{scan.name}.{format or OUTPUT_FORMATS[0]}" for scan in scans}
    if ending in dicom.ENDINGS:
        raise InputError(
            f"{out}: name a folder; --dicom-seg writes DICOM Segmentations in it, beside the others"
        )
    if ending[1:] not in OUTPUT_FORMATS:
        raise InputError(
            f"{out}: no segmentation is written as {ending}; choose {', '.join(OUTPUT_FORMATS)}"
        )
    if format not in (None, ending[1:]):
        raise InputError(f"{out}: is no {format} by its name; leave out --format, or rename it")
    if [scan.images for scan in scans] != [(input,)]:
        raise InputError(
            f"{out}: is the name of one file, but {input} is a folder of scans; name a folder"
        )
    return {scans[0].name: out}


def _check_place(input: Path, out: Path, scans: Sequence[Case], single: bool) -> None:
    """InputError if segmentations would lie among scans, slices or labels."""
    refuse_within_dataset(out, input if input.is_dir() else None)
    images = {image.absolute() for scan in scans for image in scan.images}
    place = out.resolve()
    folders = {image.parent.resolve() for image in images}
    if input.is_dir():  # scans may come there later
        folders.add(input.resolve())
    series = [image.resolve() for image in images if image.is_dir()]
    if (not single and place in folders) or any(place.is_relative_to(one) for one in series):
        raise InputError(f"{out}: is the folder of the scans; choose another --out")


def _check_names(files: Mapping[str, Sequence[Path]]) -> None:
    """InputError if two files would have one name."""
    named = Counter(path for own in files.values() for path in own)
    if path := next((path for path, times in named.items() if times > 1), None):
        raise InputError(
            f"two probability maps would be named {path.name}; rename a case, or leave out "
            "--probabilities"
        )


def _refuse_existing(files: Mapping[str, Sequence[Path]], may_skip: bool, resume: bool) -> None:
    existing = _existing(files)
    if existing and not (resume and may_skip):
        more = ", or skip finished cases with --resume" if may_skip else ""
        raise InputError(
            f"{existing[0]}: exists already ({len(existing)} in all); choose another --out{more}"
        )


def _existing(files: Mapping[str, Sequence[Path]]) -> list[Path]:
    return [path for own in files.values() for path in own if os.path.lexists(path)]


# ------------------------------------------------------------------------------ what it is made of


def _settings(request: Request) -> dict[str, Any]:
    """What decides a segmentation beside the network and the format."""
    return {
        "weights": request.weights,
        **request.windows.model_dump(mode="json"),
        "largest_component": request.extras.largest_component,
        "series": request.series,
        "backend": request.backend,
    }


@contextmanager
def _recorded(
    out: Path, made_with: Mapping[str, Any], files: Mapping[str, Sequence[Path]]
) -> Iterator[None]:
    """Hold the folder ``out``, and note there what its segmentations are made with, if any are."""
    _refuse_others(out, made_with, files)
    with alone(out):
        _refuse_others(out, made_with, files)  # another may have begun in between
        if not (out / RECORD).exists() or read_json(out / RECORD) != made_with:
            write_text(out / RECORD, json.dumps(made_with, indent=1) + "\n")
        try:
            yield
        finally:
            if not _existing(files) and holds(out) <= _BARE:
                (out / RECORD).unlink()


def _refuse_others(
    out: Path, made_with: Mapping[str, Any], files: Mapping[str, Sequence[Path]]
) -> None:
    """InputError if segmentations of another origin would lie beside the new ones."""
    refuse_other_summary(out)
    if not os.path.lexists(out / RECORD):
        if existing := _existing(files):
            raise InputError(
                f"{existing[0]}: exists already, and no {RECORD} says what made it; choose another "
                "--out"
            )
        return
    kept = read_json(out / RECORD)
    if not kept.keys() >= made_with.keys():
        raise InputError(f"{out / RECORD}: is not of `dcamt predict`; choose another --out")
    if holds(out) <= _BARE:
        return  # it was killed before anything was segmented
    for key, value in made_with.items():
        if kept[key] != value:
            differ = f"with {key} = {kept[key]}, not {value}"
            differ = "by other weights" if key == "sha256" else differ
            raise InputError(f"{out}: its segmentations were made {differ}; choose another --out")
