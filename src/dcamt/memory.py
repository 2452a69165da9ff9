"""Memory: what this process may use, what is left of it, and what happens when there is no more.

Only Linux tells, by files below /proc and /sys/fs/cgroup; elsewhere nothing is known, and nothing
is refused.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path, PurePosixPath

from dcamt.errors import InputError

# Parameters of glibc's mallopt(3) and its defaults.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_DEFAULTS = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}
KEPT_UP_TO = 2_000_000
"""Voxels of a batch for which freed memory is kept: beyond it the blocks fit into one another so
badly that the peak grows by a third, and nothing is won."""
_kept = ContextVar("kept", default=False)
"""Whether memory is being kept now."""
_LIMITS = {"Max address space": "VmSize", "Max data size": "VmData"}
"""Limits of a process that bound its memory, and the line of its status that counts against each.
"""
_UNLIMITED = 1 << 62
"""Bytes from which on a control group of version 1 means that there is no limit."""
_SIGNS = (
    "out of memory",
    "not enough memory",
    "cannot allocate memory",
    "can't allocate memory",
    "failed to allocate",
    "failed to map segment",  # of a library that is loaded
    "could not create a primitive",  # oneDNN's own
    "bad_alloc",
    "seems to be oom",
    "can't start new thread",  # a thread is given a stack, for which there is no room
)
"""What libraries say when they are given no more memory, in small letters."""
_ASKED = re.compile(r"allocate ([\d.]+) ?(bytes|[KMGTP]iB)", re.IGNORECASE)
_UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "pib": 2**50}


@contextmanager
def kept_memory(voxels: int = 0) -> Iterator[None]:
    """Keep freed memory for the next tensor instead of handing it back to the system at once.

    On a CPU every activation of a 3D network is tens of megabytes, which glibc takes from and
    returns to the system each time; the system then clears every page anew, up to a quarter of
    an iteration's time. What was kept is handed back at the end. Does nothing without glibc, where
    a batch has more than ``KEPT_UP_TO`` voxels, or within another one.
    """
    if voxels > KEPT_UP_TO or _kept.get():
        yield
        return
    import ctypes  # noqa: PLC0415

    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError, TypeError):  # macOS, Windows, musl
        yield
        return
    mallopt(_TRIM_THRESHOLD, -1)
    mallopt(_MMAP_MAX, 0)
    token = _kept.set(True)
    try:
        yield
    finally:
        _kept.reset(token)
        for parameter, value in _DEFAULTS.items():
            mallopt(parameter, value)
        trim(0)


def check_fits(needed: float, what: str, advice: str) -> None:
    """InputError if ``what`` takes more bytes of memory than are free for this process now.

    ``advice`` says what the user can do. Says nothing where the system does not tell.
    """
    free = free_memory()
    if needed > free:
        raise InputError(
            f"{what} takes {_gigabytes(needed)} of memory, but {_gigabytes(free)} are free here "
            f"(of {_gigabytes(most_memory())}); {advice}"
        )


def check_address_space(needed: float, what: str) -> None:
    """InputError if `ulimit -v` or `-d` leaves ``what`` less than ``needed`` bytes.

    Libraries that are loaded into too little end the process, or hang.
    """
    free = min((limit - used for limit, used in _of_process(Path("/"))), default=float("inf"))
    if needed > free:
        raise InputError(
            f"{what} takes {_gigabytes(needed)} of address space, but `ulimit -v` leaves "
            f"{_gigabytes(max(0.0, free))}; raise that limit"
        )


def most_memory(root: Path = Path("/")) -> float:
    """Bytes of memory that this process may use, infinite where the system does not tell.

    The least of the machine's memory, the process's limits of address space and data (`ulimit -v`
    and `-d`) and the limits of its control groups (containers, batch systems), version 1 and 2.
    ``root`` is the folder that holds ``proc`` and ``sys``.
    """
    return min((limit for limit, _ in _bounds(root)), default=float("inf"))


def free_memory(root: Path = Path("/")) -> float:
    """Bytes that this process can still take now, infinite where the system does not tell.

    As ``most_memory``, less what is used of each; a cache of files that the system drops when
    memory is wanted counts as free.
    """
    return min((max(0.0, limit - used) for limit, used in _bounds(root)), default=float("inf"))


@contextmanager
def told_of_memory(what: str, advice: str) -> Iterator[None]:
    """Turn want of memory, on the processor or a GPU, into one InputError with the figures.

    ``what`` did not fit; ``advice`` says what to lower. Also a decorator.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"{what}: {lack_of_memory(error)}; {advice}") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, NumPy, PyTorch or a library below them had no more memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    if not isinstance(error, InputError) and any(sign in text for sign in _SIGNS):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def lack_of_memory(error: BaseException) -> str:
    """Such an error in words: what was asked for in one piece, and what there is."""
    text = str(error)
    found = _ASKED.search(text)
    asked = ""
    if found:
        size = float(found[1]) * _UNITS[found[2].lower()]
        asked = f" for another {_gigabytes(size)}"
    gpu = re.search(r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free", text)
    if gpu:
        there = f"the GPU has {gpu[1]}, {gpu[2]} of them free"
    elif most_memory() < float("inf"):
        there = f"this process may use {_gigabytes(most_memory())}"
    else:
        there = "the system has no more"
    return f"there is not enough memory{asked} ({there})"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB"


def _bounds(root: Path) -> Iterator[tuple[float, float]]:
    """Every limit that holds for this process, in bytes, and what is used of it."""
    machine = _fields(root / "proc/meminfo", ("MemTotal", "MemAvailable"))
    if "MemTotal" in machine:
        total = 1024 * machine["MemTotal"]
        yield total, total - 1024 * machine.get("MemAvailable", machine["MemTotal"])
    yield from _of_process(root)
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers in ("", "memory"):
            yield from _of_groups(root / "sys/fs/cgroup", path, version=1 if controllers else 2)


def _of_process(root: Path) -> Iterator[tuple[float, float]]:
    """The limits that this process was given itself, and what it uses of each."""
    status = _fields(root / "proc/self/status", _LIMITS.values())
    for line in _read(root / "proc/self/limits").splitlines():
        for name, used in _LIMITS.items():
            value = line.removeprefix(name).split()[:1]  # the soft limit, in bytes
            if line.startswith(name) and value and value[0].isdecimal():
                yield float(value[0]), 1024 * status.get(used, 0.0)


def _of_groups(mount: Path, path: str, version: int) -> Iterator[tuple[float, float]]:
    """Limit and use of the control group ``path`` and of every group that it lies in.

    A container may see its own group as the root, under a path that only the host can resolve.
    """
    tops = (mount, mount / "unified") if version == 2 else (mount / "memory",)
    names = ("memory.max", "memory.current", ("inactive_file", "active_file"))
    if version == 1:
        caches = ("total_inactive_file", "total_active_file")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", caches)
    limit, usage, caches = names
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    for top in tops:
        for depth in range(len(parts) + 1):
            group = top.joinpath(*parts[:depth])
            most = _read(group / limit).strip()
            if most.isdecimal() and int(most) < _UNLIMITED:
                kept = _fields(group / "memory.stat", caches)
                cached = sum(kept.get(name, 0.0) for name in caches)
                used = _read(group / usage).strip()
                yield float(most), max(0.0, float(used or 0) - cached)


def _fields(path: Path, names: Iterable[str]) -> dict[str, float]:
    """The numbers of ``names`` in lines ``NAME: NUMBER`` or ``NAME NUMBER``, as the system writes.

    Such files are read before every step that takes memory, so only these lines are looked at.
    """
    text = _read(path)
    found = ((name, re.search(rf"^{name}:?\s+(\d+)", text, re.MULTILINE)) for name in names)
    return {name: float(number[1]) for name, number in found if number}


def _read(path: Path) -> str:
    """The text of a file of the system, empty if it is not there."""
    with suppress(OSError, ValueError):
        return path.read_text(encoding="ascii", errors="replace")
    return ""
