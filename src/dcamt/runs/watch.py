"""A folder watched: what arrives there is segmented once it is whole."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from dcamt.data.dataset import Case
from dcamt.data.formats import parts_of
from dcamt.data.scans import scans_so_far
from dcamt.errors import InputError
from dcamt.escape import printable

SETTLE = 10.0
"""Seconds between two looks. A scan that is the same in both has arrived."""

_CHANGED = (
    "changed after it was segmented; remove its segmentation and start again to segment it anew"
)
_Look = tuple[tuple[str, int, int], ...]
"""Name, bytes and time of change of every file of a scan."""


def watch(
    folder: Path,
    channels: int,
    out: Path,
    settle: float,
    segment: Callable[[Sequence[Case]], dict[str, str]],
    console: Console,
) -> NoReturn:
    """Call ``segment`` with the scans that arrived in ``folder``, until a signal ends it.

    ``out`` may lie in it; no scan is looked for there. ``segment`` passes over what is segmented
    already and returns why scans could not be segmented; such a scan is tried again when its files
    change.
    """
    seen: dict[str, _Look] = {}
    done: dict[str, _Look] = {}
    segmented: set[str] = set()
    noticed: set[str] = set()
    told: set[str] = set()
    console.print(printable(f"watching {folder}; end it with Ctrl-C"))
    while True:
        try:
            scans, problems = scans_so_far(folder, channels, out.resolve())
        except OSError as error:  # a file was moved away meanwhile: the next look sees what is left
            scans, problems = [], [f"{folder}: cannot be read ({error.strerror or error})"]
        looks = {scan.name: _look(scan) for scan in scans}
        arrived = []
        for scan in scans:
            if seen.get(scan.name) != looks[scan.name] or done.get(scan.name) == looks[scan.name]:
                continue
            if scan.name not in segmented:
                arrived.append(scan)
            else:
                problems.append(f"{scan.images[0]}: {_CHANGED}")
        for problem in problems:
            if problem in noticed - told:  # it is no passing one, of files on their way
                told.add(problem)
                console.print(printable(problem))
        if arrived:
            failed = segment(arrived)
            done |= {scan.name: looks[scan.name] for scan in arrived}
            segmented |= {scan.name for scan in arrived} - failed.keys()
        seen, noticed = looks, set(problems)
        time.sleep(settle)


def _look(scan: Case) -> _Look:
    try:
        files = [part for image in scan.images for part in parts_of(image)]
        found = [(path, path.stat()) for path in files]
    except (InputError, OSError):  # half a header, or gone meanwhile: not whole yet
        return ()
    return tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in found)
