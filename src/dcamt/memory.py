"""Memory of the process and of the machine."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from dcamt.errors import InputError

# Parameters of glibc's mallopt(3) and its defaults.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_DEFAULTS = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keep freed memory for the next tensor instead of handing it back to the system at once.

    On a CPU every activation of a 3D network is tens of megabytes, which glibc takes from and
    returns to the system each time; the system then clears every page anew, up to a quarter of
    an iteration's time. What was kept is handed back at the end. Does nothing without glibc.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError, TypeError):  # macOS, Windows, musl
        yield
        return
    mallopt(_TRIM_THRESHOLD, -1)
    mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        for parameter, value in _DEFAULTS.items():
            mallopt(parameter, value)
        trim(0)


def check_fits(needed: float, what: str) -> None:
    """InputError if ``what`` takes more bytes of memory than this process may have.

    Says nothing where the system does not tell.
    """
    held = most_memory()
    if needed > held:
        raise InputError(
            f"{what} takes {needed / 1e9:.3g} GB of memory, but there are {held / 1e9:.3g} here"
        )


def most_memory() -> float:
    """Bytes of the machine's memory, or of this process's limit where that is lower."""
    try:
        import resource  # noqa: PLC0415

        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    except (ImportError, AttributeError, ValueError, OSError):
        return float("inf")
    return machine if limit == resource.RLIM_INFINITY else min(machine, limit)
