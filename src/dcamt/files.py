"""Writing files so that a final name never holds half a file, and reading small ones safely."""

import json
import os
import platform
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dcamt.errors import InputError, Unwritable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""The file in a folder by which a process holds it."""
TEMPORARY = ".tmp-"
"""Names that begin so are of files in the making: .tmp-MACHINE-PROCESS-NAME."""
ABANDONED = 24 * 3600
"""Seconds after which a file in the making that nobody has touched is nobody's."""
TEXT_LIMIT = 1 << 26
"""Bytes that a text file may have; the log of a million iterations has fewer."""

SMALLEST_CONTENT = 1024
"""Bytes below which a file may be a placeholder."""
PLACEHOLDERS = (b"/annex/objects/", b"version https://git-lfs.github.com/")
"""What stands in files that git-annex and Git LFS keep elsewhere."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on success move it into place, else remove it.

    The temporary name keeps the ending, which writers of volumes go by, and of a long name no
    more, as names have a limit. Raises Unwritable when the disk is full or the folder cannot be
    written.
    """
    end = os.fsencode(path.name)[-100:].decode(errors="ignore")
    temporary = path.with_name(f"{TEMPORARY}{_machine()}-{os.getpid()}-{end}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise Unwritable(
            f"{path}: cannot be written ({reason}); free space or choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def alone(folder: Path) -> Iterator[int]:
    """Hold ``folder`` for this process; yields the descriptor of the lock, to hand to others.

    The system frees it when the last process that has it has ended, however that came. Raises
    InputError if another one holds the folder. Where the system has no such locks nothing is held.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        nofollow = getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | nofollow, 0o644)
    except OSError as error:
        raise InputError(f"{folder / LOCK}: cannot be written ({error.strerror})") from None
    try:
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{folder}: another dcamt is at work there, perhaps a training that was left "
                "behind; wait for it or stop it"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield descriptor
    finally:
        os.close(descriptor)


def holds(folder: Path) -> set[str]:
    """Names of what lies in ``folder``, or of what is there instead; the lock is nothing.

    Nor is what a killed process left half-written.
    """
    found = folder.iterdir() if folder.is_dir() else [folder] if folder.exists() else []
    names = {path.name for path in found}
    return {name for name in names if name != LOCK and not name.startswith(TEMPORARY)}


def remove_temporary(folder: Path) -> None:
    """Remove what a killed process left half-written in ``folder`` and below, which is ours alone.

    In a folder that other processes write to, see ``remove_abandoned``.
    """
    for path in folder.rglob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left half-written in a ``folder`` that several may write to.

    What a process of this machine is still writing stays, and so does, for a day, what may be of
    another machine.
    """
    for path in folder.glob(f"{TEMPORARY}*"):
        with suppress(OSError):  # another process may remove it at the same moment
            if _is_abandoned(path):
                path.unlink()


def _is_abandoned(path: Path) -> bool:
    machine, _, rest = path.name.removeprefix(TEMPORARY).partition("-")
    process = rest.partition("-")[0]
    if machine == _machine() and process.isdecimal():
        return not _is_alive(int(process))
    return time.time() - path.stat().st_mtime > ABANDONED


def _machine() -> str:
    """This machine's name, without the character that ends it in a temporary name."""
    return platform.node().replace("-", "_").replace("/", "_") or "machine"


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_text(path: Path) -> str:
    """A UTF-8 text file, with or without a byte order mark.

    Raises InputError for what cannot be read, is no regular file (a pipe never ends), is larger
    than a text file of this program can be, or is not UTF-8.
    """
    check_fetched(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: cannot be read (it is no regular file); give a text file")
        if status.st_size > TEXT_LIMIT:
            raise InputError(
                f"{path}: has {status.st_size} bytes, too many for such a file; check the path"
            )
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not plain text (UTF-8); save it as such") from None


def leads_nowhere(path: Path) -> bool:
    """Whether a path is a link to what is not there, as git-annex leaves what is not fetched.

    A system says of such a link that there is no such file, though its name stands in the folder.
    """
    return path.is_symlink() and not path.exists()


def check_fetched(path: Path) -> None:
    """InputError for a file of which there is but the name: its content was never fetched.

    It is a link whose target is not there, or the short text that git-annex and Git LFS put in the
    place of a content. What is not there at all is not looked for.
    """
    advice = "fetch its content ('datalad get', 'git annex get' or 'git lfs pull')"
    if leads_nowhere(path):
        raise InputError(f"{path}: is a link whose target is not there; {advice}, or mend the link")
    try:
        small = path.is_file() and path.stat().st_size < SMALLEST_CONTENT
        start = path.read_bytes() if small else b""
    except OSError:  # whoever reads it says so
        return
    if start.startswith(PLACEHOLDERS):
        raise InputError(f"{path}: is a placeholder of a file that is not there; {advice}")


def parse_json(path: Path) -> Any:
    """What a JSON file holds; InputError if it is none."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "a value"
        raise InputError(
            f"{path}: cannot be read (not valid JSON: {where}); correct the file"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; InputError if there is none."""
    content = parse_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a JSON object {{...}}, not a list or a single value")
    return content


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """InputError if something in ``folder`` that is to be written to leads out of it.

    A folder that somebody else made could hold a link, and writing to it would change a file of
    the user.
    """
    for name in names:
        if (folder / name).is_symlink():
            raise InputError(
                f"{folder / name}: is a link, which would be written through; remove it"
            )
