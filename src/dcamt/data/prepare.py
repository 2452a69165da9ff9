"""Prepared volumes on disk: read and resampled once, mapped into memory ever after.

A cache entry is named by a digest of the plan, the files and their sizes and dates, so that a
changed plan or file never meets an old entry. Images and labels have entries of their own: a case
whose label is hidden has no label entry to look at. An entry ends with a checksum of its array;
one that a disk has spoilt is built again. Processes may share a cache: each writes under a name of
its own and moves the whole file into place.
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
from dcamt.data.classes import check_label_values
from dcamt.data.dataset import VOLUMES_AT_ONCE, Case
from dcamt.data.formats import Stamps, stamps_of
from dcamt.data.look import Volumes
from dcamt.data.space import label_to_network, to_network
from dcamt.data.volume import aligned, check_channels, read_image, read_label
from dcamt.errors import InputError, Unwritable
from dcamt.files import atomic, remove_abandoned
from dcamt.memory import told_of_memory

_FORMAT = 3
"""Raised when prepared arrays change meaning, or their files change form."""
_CHECKSUM_BYTES = 8


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


@dataclass(frozen=True)
class _WithoutLabel(Prepared):
    """A case whose label is one value throughout; no file is opened for it but the image's."""

    value: int = 0

    @property
    def label(self) -> NDArray[np.int8]:
        """``(x, y, z)`` int8."""
        return np.broadcast_to(np.int8(self.value), self.image.shape[1:])


def without_label(case: Prepared, value: int = 0) -> Prepared:
    """``case`` as if all of it were background, for a training that has no use of labels.

    With IGNORE for ``value`` no voxel of it takes part in a loss that compares with labels.
    """
    return _WithoutLabel(case.name, case.image_path, None, value)


def cache_folder() -> Path:
    """``DCAMT_CACHE``, or ``dcamt`` in the user's cache folder.

    Raises InputError if neither is set and the user has no home folder.
    """
    if own := os.environ.get("DCAMT_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dcamt"
    except RuntimeError:
        raise InputError(
            "no home folder is known for the cache of prepared scans; set the environment variable "
            "DCAMT_CACHE to a folder"
        ) from None


def prepare(
    cases: Sequence[Case], plan: Plan, read: dict[Stamps, Volumes] | None = None
) -> list[Prepared]:
    """Prepare every case that the cache does not hold yet.

    ``read`` holds images and labels that are in memory already, by the state of their files when
    they were read; they are taken out of it. Raises InputError for files that cannot be used and
    for labels that do not fit their image.
    """
    remove_abandoned(cache_folder())
    waiting = read if read is not None else {}
    with ThreadPoolExecutor(VOLUMES_AT_ONCE) as pool:
        return list(pool.map(lambda case: _prepare(case, plan, waiting), cases))


def _prepare(case: Case, plan: Plan, waiting: dict[Stamps, Volumes]) -> Prepared:
    stamps = stamps_of(case.images)
    image_path = cache_folder() / f"{_key(plan, stamps)}.image.npy"
    label_path = None
    if case.label is not None:
        stamps += stamps_of([case.label])
        label_path = cache_folder() / f"{_key(plan, stamps)}.label.npy"
    volumes = waiting.pop(stamps, None)
    done = Prepared(case.name, image_path, label_path)
    if _usable(image_path) and (label_path is None or _usable(label_path)):
        return done
    image, label = volumes or read_case(case, plan.channels)
    with told_of_memory(f"{case.images[0]}: cannot be prepared", "crop it"):
        array, placement = to_network(image, plan)
    _save(image_path, array)
    if label is not None and case.label is not None and label_path is not None:
        values = np.unique(label.array).tolist()
        check_label_values(values, len(plan.classes), plan.ignore, case.label)
        _save(label_path, label_to_network(label, placement, plan))
    return done


def read_case(case: Case, channels: Sequence[str]) -> Volumes:
    """Image and label of a case; InputError if they cannot be read or do not belong together."""
    image = read_image(case.images)
    check_channels(image, channels, case.images[0])
    if case.label is None:
        return image, None
    label = read_label(case.label)
    label = aligned(image, label, case.images[0], case.label)
    return image, label


def _key(plan: Plan, stamps: Stamps) -> str:
    # The patch is cut later, and codes are for DICOM: neither decides what a prepared volume holds.
    content = json.dumps(
        [_FORMAT, plan.model_dump(mode="json", exclude={"patch", "codes"}), stamps]
    )
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _usable(path: Path) -> bool:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        with path.open("rb") as file:
            file.seek(-_CHECKSUM_BYTES, os.SEEK_END)
            return file.read() == _checksum(array)
    except Exception:  # a damaged header is parsed as Python, which may fail in any way
        return False


def _save(path: Path, array: NDArray[np.generic]) -> None:
    array = np.ascontiguousarray(array)
    try:
        with atomic(path) as temporary, temporary.open("wb") as file:
            # As np.save does it, which does not tell when the disk is full.
            header = np.lib.format.header_data_from_array_1_0(array)
            np.lib.format.write_array_header_1_0(file, header)
            file.write(array.data)
            file.write(_checksum(array))
    except Unwritable as error:
        raise Unwritable(f"{error}, named by the environment variable DCAMT_CACHE") from None


def _checksum(array: NDArray[np.generic]) -> bytes:
    """Sum of the array's elements as unsigned integers: seven times as quick as a CRC."""
    bits = array.view(f"u{array.itemsize}")
    return int(bits.sum(dtype=np.uint64)).to_bytes(_CHECKSUM_BYTES, "little")
