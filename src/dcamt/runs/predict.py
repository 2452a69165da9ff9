"""``dcamt predict``: scans in, segmentations out, and a record of what made them."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from dcamt.config import PredictConfig, validated
from dcamt.data.dataset import Case
from dcamt.data.folder import remarks_on
from dcamt.data.formats import ending_of
from dcamt.data.formats.dicom_seg import check_sources
from dcamt.data.formats.stored import gist
from dcamt.data.outputs import refuse_within_dataset
from dcamt.data.scans import find_scans
from dcamt.engine.device import make_fabric
from dcamt.errors import InputError, Unwritable
from dcamt.escape import printable
from dcamt.files import alone, holds, read_json, refuse_links, remove_abandoned, write_text
from dcamt.inference.predict import EXTRA_FOLDERS, LOWER, Extras, extra_files, predict_case
from dcamt.inference.predictor import Backend, make_predictor
from dcamt.inference.sliding_window import window_overlap
from dcamt.memory import told_of_memory
from dcamt.records.run_folder import RunConfig
from dcamt.reporting.terminal import plain_console
from dcamt.runs.build import digest, load_run

OUTPUT_FORMATS = ("nii.gz", "nrrd", "mha", "h5")
RECORD = "predict.json"
"""Beside the segmentations of a folder: the weights and settings that made them."""
_BARE = {RECORD, *EXTRA_FOLDERS}
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
    resume: bool = False,
    quiet: bool = False,
) -> list[Path]:
    """Segment what is at ``input`` with a run; see `dcamt.predict`. Returns the segmentations.

    ``windows`` are settings of PredictConfig that win over the run's. Segmentations of one folder
    have one origin: InputError if those in ``out`` were made by other weights or settings.
    """
    config, method = load_run(run, weights)
    config = _with_windows(config, windows)
    plan = config.plan
    unread: list[Path] = []
    scans = find_scans(input, len(plan.channels), unread)
    if series is not None and not any(scan.images[0].is_dir() for scan in scans):
        raise InputError(f"{input}: is no folder of DICOM slices; leave out --series")
    outputs = _name_outputs(input, out, format, scans)
    single = out in outputs.values()
    folder = out.parent if single else out
    _check_place(input, out, scans, single)
    if extras.dicom_seg:
        check_sources(scan.images[0] for scan in scans)
    files = {
        name: [path, *chain(*extra_files(path, extras, plan.classes).values())]
        for name, path in outputs.items()
    }
    _check_names(files)
    refuse_links(folder, extras.folders())
    _refuse_existing(files, may_skip=not single, resume=resume)
    made_with = {
        "weights": weights,
        "sha256": digest(config, method),
        "format": ending_of(next(iter(outputs.values())).name),
        **config.predict.model_dump(mode="json"),
        "largest_component": extras.largest_component,
        "series": series,
        "backend": backend,
    }
    fabric = make_fabric(device, "32-true")
    predictor = make_predictor(method, plan, fabric.device, backend)
    work = partial(predict_case, predictor, config, extras=extras, series=series)
    console = plain_console(stderr=True, quiet=quiet)
    for note in remarks_on(unread, skip=folder.resolve()):
        console.print(printable(note))
    with nullcontext() if single else _recorded(out, made_with, files):
        for place in (folder, *(folder / name for name in extras.folders())):
            remove_abandoned(place)
        todo = [scan for scan in scans if not all(map(os.path.lexists, files[scan.name]))]
        _segment(todo, files, work, console)
    return list(outputs.values())


def _with_windows(config: RunConfig, windows: Mapping[str, Any]) -> RunConfig:
    given = {key: value for key, value in windows.items() if value is not None}
    if "overlap" in given:
        given.setdefault("stride", None)  # the run's stride would win otherwise
    values = config.predict.model_dump() | given
    settings = validated(PredictConfig, values, "predict")
    window_overlap(config.plan.patch, settings)  # refuses a stride that skips voxels
    return config.model_copy(update={"predict": settings})


# ------------------------------------------------------------------------------- where it goes


def _name_outputs(
    input: Path, out: Path, format: str | None, scans: Sequence[Case]
) -> dict[str, Path]:
    """The segmentation of each scan: files in the folder ``out``, or ``out`` itself for one."""
    if format not in (None, *OUTPUT_FORMATS):
        raise InputError(f"format {format!r} is unknown; choose {', '.join(OUTPUT_FORMATS)}")
    ending = ending_of(out.name)
    if ending is None or out.is_dir():
        return {scan.name: out / f"{scan.name}.{format or OUTPUT_FORMATS[0]}" for scan in scans}
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
    among = not single and place in {image.parent.resolve() for image in images}
    if among or any(place.is_relative_to(i.resolve()) for i in images if i.is_dir()):
        raise InputError(f"{out}: is the folder of the scans; choose another --out")


def _check_names(files: Mapping[str, Sequence[Path]]) -> None:
    """InputError if two files would have one name."""
    ((path, times),) = Counter(path for own in files.values() for path in own).most_common(1)
    if times > 1:
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


# ---------------------------------------------------------------------------------------- the work


def _segment(
    scans: Sequence[Case],
    files: Mapping[str, Sequence[Path]],
    work: Callable[[Sequence[Path], Path], tuple[str, ...]],
    console: Console,
) -> None:
    """Segment every scan that can be read; then InputError if some could not.

    ``files`` are those of each scan, its segmentation first.
    """
    begin = time.monotonic()
    failed: dict[str, str] = {}
    told: set[str] = set()
    for done, scan in enumerate(scans, 1):
        try:
            _check_lengths(files[scan.name])
            with told_of_memory(f"{scan.images[0]}: cannot be segmented", LOWER):
                remarks = work(scan.images, files[scan.name][0])
        except Unwritable:
            raise
        except InputError as error:  # the others may be sound
            failed[scan.name] = str(error)
            if len(scans) > 1:  # of a single scan it is told at the end
                console.print(f"{done}/{len(scans)}  {error}")
            continue
        seconds = (time.monotonic() - begin) / done
        console.print(
            f"{done}/{len(scans)}  {printable(scan.name)}  {seconds:.1f} s a case  "
            f"{seconds * (len(scans) - done) / 60:.1f} min left"
        )
        for remark in (remark for remark in remarks if gist(remark) not in told):
            told.add(gist(remark))  # of many scans alike, the first one's will do
            console.print(printable(f"note: {scan.name}: {remark}"))
    if failed:
        first, *others = failed
        more = f" (nor have the scans {', '.join(others)} a segmentation)" if others else ""
        raise InputError(failed[first] + more)


def _check_lengths(files: Sequence[Path]) -> None:
    """InputError if a file system would not take one of these names."""
    there = next(folder for folder in files[0].absolute().parents if folder.is_dir())
    try:
        longest = os.pathconf(there, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        longest = 255
    for path in files:
        if len(os.fsencode(path.name)) > longest:
            raise InputError(
                f"{path}: the name is longer than the {longest} bytes that a name may have there; "
                "rename the scan"
            )
