"""Prepared volumes on disk: read and resampled once, mapped into memory ever after.

A cache entry is named by a digest of the plan, the files and their sizes and dates, so that a
changed plan or file never meets an old entry. Images and labels have entries of their own: a case
whose label is hidden has no label entry to look at.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcamt.config import Plan
from dcamt.data.dataset import Case, check_label_values
from dcamt.data.formats import parts_of
from dcamt.data.space import label_to_network, to_network
from dcamt.data.volume import check_channels, check_same_grid, read_image, read_label
from dcamt.errors import InputError
from dcamt.files import atomic

_FORMAT = 1
"""Raised when prepared arrays change meaning."""


@dataclass(frozen=True)
class Prepared:
    """One case on the network's grid; arrays are mapped from disk when asked for."""

    name: str
    image_path: Path
    label_path: Path | None

    @property
    def image(self) -> NDArray[np.float32]:
        """``(C, x, y, z)`` float32, normalised."""
        array: NDArray[np.float32] = np.load(self.image_path, mmap_mode="r", allow_pickle=False)
        return array

    @property
    def label(self) -> NDArray[np.int8]:
        """``(x, y, z)`` int8 with IGNORE; only for labelled cases."""
        assert self.label_path is not None
        array: NDArray[np.int8] = np.load(self.label_path, mmap_mode="r", allow_pickle=False)
        return array


def cache_folder() -> Path:
    """``DCAMT_CACHE``, or ``dcamt`` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("DCAMT_CACHE") or Path(home) / "dcamt")


def prepare(cases: Sequence[Case], plan: Plan) -> list[Prepared]:
    """Prepare every case that the cache does not hold yet.

    Raises InputError for files that cannot be used and for labels that do not fit their image.
    """
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda case: _prepare(case, plan), cases))


def _prepare(case: Case, plan: Plan) -> Prepared:
    image_path = cache_folder() / f"{_key(plan, case.images)}.image.npy"
    label_path = None
    if case.label is not None:
        label_path = cache_folder() / f"{_key(plan, (*case.images, case.label))}.label.npy"
    done = Prepared(case.name, image_path, label_path)
    if _usable(image_path) and (label_path is None or _usable(label_path)):
        return done
    image = read_image(case.images)
    check_channels(image, plan.channels, case.images[0])
    array, placement = to_network(image, plan)
    _save(image_path, array)
    if case.label is not None and label_path is not None:
        label = read_label(case.label)
        check_same_grid(image, label, case.images[0], case.label)
        check_label_values(label, len(plan.classes), plan.ignore, case.label)
        _save(label_path, label_to_network(label, placement, plan))
    return done


def _key(plan: Plan, files: Sequence[Path]) -> str:
    try:
        parts = [part for file in files for part in parts_of(file)]
        stats = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in parts]
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None
    # The patch is cut later, so it does not decide what a prepared volume holds.
    content = json.dumps([_FORMAT, plan.model_dump(mode="json", exclude={"patch"}), stats])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _usable(path: Path) -> bool:
    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return True


def _save(path: Path, array: NDArray[np.generic]) -> None:
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
