"""Writing files so that a final name never holds half a file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dcamt.errors import InputError

TEMPORARY = ".tmp-"
"""Names that begin so are of files in the making."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on success move it into place, else remove it.

    The temporary name keeps the ending, which writers of volumes go by. Raises InputError when
    the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{path}: cannot be written ({reason}); free space or choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def remove_temporary(folder: Path) -> None:
    """Remove what a killed process left half-written in ``folder`` and below."""
    for path in folder.rglob(f"{TEMPORARY}*"):
        path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
