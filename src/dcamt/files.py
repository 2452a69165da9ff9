"""Writing files so that a final name never holds half a file, and reading small ones safely."""

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from dcamt.errors import InputError, Unwritable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""The file in a folder by which a process holds it."""
ABANDONED = 24 * 3600
"""Seconds after which a file in the making that nobody has touched is nobody's."""
TEXT_LIMIT = 1 << 26
"""Bytes that a text file may have; the log of a million iterations has fewer."""
_IN_THE_MAKING = re.compile(r"\.tmp-(?P<machine>[0-9a-f]{8})-[0-9a-f]{32}")
"""Names of the folders in which files are made before they are moved into place."""
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)

SMALLEST_CONTENT = 1024
"""Bytes below which a file may be a placeholder."""
PLACEHOLDERS = (b"/annex/objects/", b"version https://git-lfs.github.com/")
"""What stands in files that git-annex and Git LFS keep elsewhere."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a file to write instead of ``path``; on success move it into place, else remove it.

    It has the same name, in a new folder beside ``path`` that is closed to others: nobody can
    have put a link in its place. Raises Unwritable when the disk is full or the folder cannot be
    written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _private_folder(path.parent) as folder:
            temporary = folder / path.name
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise Unwritable(
            f"{path}: cannot be written ({reason}); free space or choose another folder"
        ) from error


@contextmanager
def _private_folder(parent: Path) -> Iterator[Path]:
    """A new folder within ``parent``, removed at the end; held, so that it is known to be in use.

    What is yielded leads to it even where somebody else moves it away meanwhile and puts a link
    there, if the system has such paths.
    """
    folder, descriptor = _make_and_hold(parent)
    try:
        fixed = Path(f"/proc/self/fd/{descriptor}")
        yield fixed if fixed.is_dir() else folder
    finally:
        if descriptor is not None:
            os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)


def _make_and_hold(parent: Path) -> tuple[Path, int | None]:
    while True:
        folder = parent / f".tmp-{_machine()}-{secrets.token_hex(16)}"
        folder.mkdir(mode=0o700)
        with suppress(FileNotFoundError, BlockingIOError):
            descriptor = _hold(folder)
            if folder.is_dir():
                return folder, descriptor
        # Another process took it for an abandoned one before it was held.


def _hold(folder: Path) -> int | None:
    """Lock a folder, or return None where there are no locks; OSError if it is held, or a link."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


@cache
def _machine() -> str:
    """Tells this machine, since it was started, from others, without naming it: 8 hex digits."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:  # not Linux: every process is taken for another machine's
        return secrets.token_hex(4)
    return hashlib.sha256(boot).hexdigest()[:8]


@contextmanager
def alone(folder: Path) -> Iterator[int]:
    """Hold ``folder`` for this process; yields the descriptor of the lock, to hand to others.

    The system frees it when the last process that has it has ended, however that came. Raises
    InputError if another one holds the folder. Where the system has no such locks nothing is held.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | _NOFOLLOW, 0o644)
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
    return {name for name in names if name != LOCK and not _IN_THE_MAKING.fullmatch(name)}


def refuse_existing(
    out: Path, ours: bool = False, advice: str = "choose another --out", kind: str = ""
) -> None:
    """InputError if ``out`` holds something, unless it is ``ours``: to be gone on with, or anew.

    ``kind`` is what it should be to be ours: "comparison", say.
    """
    if holds(out) and not ours:
        fault = f" and is no {kind}" if kind else ""
        raise InputError(f"{out}: exists already{fault}; {advice}")


def remove_temporary(folder: Path) -> None:
    """Remove what a killed process left half-written in ``folder`` and below, which is ours alone.

    In a folder that other processes write to, see ``remove_abandoned``.
    """
    for parent, names, _ in os.walk(folder):
        for name in filter(_IN_THE_MAKING.fullmatch, list(names)):
            names.remove(name)
            shutil.rmtree(Path(parent, name), ignore_errors=True)  # leaves a link alone


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left half-written in a ``folder`` that several may write to.

    What a process of this machine is still writing stays, and so does, for a day, what may be of
    another machine.
    """
    for path in folder.glob(".tmp-*"):
        match = _IN_THE_MAKING.fullmatch(path.name)
        with suppress(OSError):  # in use, a link, or removed by another process at this moment
            if match:
                _remove_if_abandoned(path, match["machine"])


def _remove_if_abandoned(folder: Path, machine: str) -> None:
    descriptor = _hold(folder)
    try:
        ended = descriptor is not None and machine == _machine()
        if ended or time.time() - folder.stat().st_mtime > ABANDONED:
            shutil.rmtree(folder)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(content: Mapping[str, object], path: Path) -> None:
    """Write a JSON object atomically; InputError if the file cannot be written."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append(path: Path) -> TextIO:
    """Open a text file to add lines to, newly made where there is none; InputError for a link."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NOFOLLOW, 0o666)
    except OSError as error:
        raise Unwritable(f"{path}: cannot be written ({error.strerror}); remove it") from None
    return os.fdopen(descriptor, "a", newline="", encoding="utf-8")


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


def same_folder(first: Path, second: Path) -> bool:
    """Whether two paths lead to one and the same folder, by a link perhaps."""
    return first.exists() and second.exists() and first.samefile(second)


def leads_nowhere(path: Path) -> bool:
    """Whether a path is a link to what is not there, as git-annex leaves what is not fetched.

    A system says of such a link that there is no such file, though its name stands in the folder.
    """
    return path.is_symlink() and not path.exists()


def check_fetched(path: Path) -> None:
    """InputError for a file whose name is there, but whose content was never fetched.

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
