"""What keeps a damaged or hostile file from doing harm; every reader goes through here.

A header is a claim. Before memory is taken for what it promises, the promise is compared with the
size of the file; a name in it leads nowhere but below its own folder; and whatever a parser trips
over becomes one InputError.
"""

import contextlib
import io
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path

from dcamt.data.grid import Array, is_usable
from dcamt.errors import InputError
from dcamt.memory import check_fits, is_out_of_memory, lack_of_memory

DEFLATE_LIMIT = 1032
"""Bytes that one byte of a deflate stream (gzip, zlib, HDF5) can expand to, at most."""
HEADER_LIMIT = 1 << 16
"""Bytes within which a text header must end."""
WORKING_BYTES = 12
"""Memory that one voxel takes while it is read: as stored, as float32 and as a copy of that."""
_PIECE = 1 << 16
_MOST_LINKS = 40


@contextlib.contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever is raised while ``path`` is parsed as ``kind`` into one InputError.

    Parsers raise nearly every exception there is for damaged files, and their messages may quote
    the header: neither reaches the user.
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except Exception as error:
        if is_out_of_memory(error):
            lack = lack_of_memory(error)
            raise InputError(
                f"{path}: does not fit into memory; {lack}; crop or resample it"
            ) from None
        system = error.strerror if isinstance(error, OSError) and error.errno else None
        reason = system or f"it is damaged or not {kind}"
        raise InputError(
            f"{path}: cannot be read ({reason}); check it, or copy or export it again"
        ) from error


def file_size(path: Path) -> int:
    """Bytes of a regular file; InputError for anything else, such as a pipe that never ends."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path}: cannot be read (it is a folder); give a file")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: cannot be read (it is no regular file); give a file")
    return status.st_size


class Bounded(io.BufferedReader):
    """A file that is never asked for more bytes than it has, whatever length a header claims."""

    def __init__(self, path: Path):
        self._size = file_size(path)
        super().__init__(io.FileIO(path))

    def read(self, size: int | None = -1, /) -> bytes:
        """At most ``size`` bytes."""
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def contents(path: Path) -> bytes:
    """The bytes of a regular file that fits into memory."""
    _check_memory(path, file_size(path))
    return path.read_bytes()


def check_claim(path: Path, voxels: int, itemsize: int, stored: int, ratio: int = 1) -> None:
    """InputError if ``stored`` bytes, each expanding to ``ratio`` at most, cannot hold the voxels.

    More than fits into the memory that is free is refused as well, for a small compressed file
    may truly hold it.
    """
    if voxels * itemsize > stored * ratio:
        raise InputError(
            f"{path}: the header promises {voxels * itemsize} bytes, but the file has {stored}; it "
            "is truncated, so copy or export it again"
        )
    _check_memory(path, voxels * max(itemsize, WORKING_BYTES))


def inflate(path: Path, data: bytes, size: int) -> bytes:
    """The first ``size`` bytes of a gzip or zlib stream; the rest is read for its checksum only.

    Raises InputError for a stream that is damaged or holds less.
    """
    damaged = InputError(f"{path}: the compressed data are damaged; copy or export it again")
    parts, left = list[bytes](), size
    stream = zlib.decompressobj(wbits=47)  # gzip or zlib, told apart by their first bytes
    try:
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            while piece:
                if stream.eof:  # a gzip file may have several members, or be padded with zeros
                    piece = piece.lstrip(b"\0")
                    stream = zlib.decompressobj(wbits=47) if piece else stream
                part = stream.decompress(piece) if piece else b""
                parts.append(part[:left])
                left -= len(parts[-1])
                piece = stream.unused_data if piece else b""
    except zlib.error:
        raise damaged from None
    if not stream.eof or left:
        raise damaged
    return b"".join(parts)


def beside(header: Path, name: str) -> Path:
    """The data file that ``header`` names, which must lie in its folder or below.

    A link beside the header may lead out of the folder only into the store of a data manager; see
    _of_store. Anything else could make a stranger's header read files of the user.
    """
    places = _places(header.absolute())
    place = next((place for place in places if os.path.lexists(place.parent / name)), places[-1])
    entry = place.parent / name
    path = entry.resolve()
    linked = Path(name).name == name and entry.is_symlink()
    if path.is_relative_to(place.parent.resolve()) or (linked and _of_store(place, path)):
        if path.is_file():
            return path
        if linked:
            raise InputError(
                f"{header}: its data file {name} is a link to a file that is not there; fetch it "
                "first (git annex get, dvc pull), or copy it beside the header"
            )
        raise InputError(
            f"{header}: its data file {path.name} is missing; put it beside the header"
        )
    if linked:
        raise InputError(
            f"{header}: its data file {name} is a link that leads out of its own folder; copy the "
            "file itself there"
        )
    raise InputError(
        f"{header}: names a data file outside its own folder; put the file beside the header"
    )


def _places(path: Path) -> list[Path]:
    """A file as it was given, and what it leads to link by link."""
    places = [path]
    while places[-1].is_symlink() and len(places) < _MOST_LINKS:
        places.append(places[-1].parent / places[-1].readlink())
    return places


def _of_store(header: Path, data: Path) -> bool:
    """Whether ``data``, which a link beside ``header`` leads to, is kept by a data manager.

    DataLad, git-annex and DVC keep files in a store and put links in their place. Either both files
    are links into one store, a folder that does not hold the links themselves; or the data lie in
    the annex of the very repository that the header, a small text, is part of.
    """
    folder = header.parent.resolve()
    if header.is_symlink():
        store = Path(os.path.commonpath([header.resolve(), data]))
        return not folder.is_relative_to(store)
    return any(data.is_relative_to(up / ".git/annex/objects") for up in (folder, *folder.parents))


def check_axes(path: Path, affine: Array) -> None:
    """InputError if the affine gives voxels no size or no volume."""
    if not is_usable(affine):
        raise InputError(
            f"{path}: the header gives no usable geometry (a voxel spacing of 0, or axes that "
            "coincide); convert the volume again from its source"
        )


def _check_memory(path: Path, needed: int) -> None:
    check_fits(needed, f"{path}: reading it", "crop or resample it")
