"""What every process that dcamt starts has in common.

It imports nothing from the current folder, which may be a stranger's data set, and it does not
outlive the process that started it.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def cores() -> int:
    """Cores that this process may use, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def child_environment() -> dict[str, str]:
    """This process's environment, for a Python that keeps the current folder off its path."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    if named := os.environ.get("PYTHONPATH"):
        # An empty entry, as `PYTHONPATH=$PYTHONPATH:more` often leaves, is the current folder.
        kept = [folder for folder in named.split(os.pathsep) if folder not in ("", os.curdir)]
        environment["PYTHONPATH"] = os.pathsep.join(kept)
    return environment


@contextmanager
def safe_path() -> Iterator[None]:
    """What multiprocessing starts meanwhile imports nothing from the current folder either.

    Its children look where their parent does, and a notebook looks in the current folder. The
    environment is at the end as it was.
    """
    environment, path = dict(os.environ), sys.path
    os.environ.update(child_environment())
    sys.path = [folder for folder in path if folder]  # "" is the current folder
    try:
        yield
    finally:
        sys.path = path
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


def die_with_parent() -> None:
    """End this process of multiprocessing as soon as the one that started it is gone.

    Otherwise it would train on, unseen, when its parent was killed.
    """
    import multiprocessing  # noqa: PLC0415  (every command imports this file)
    import threading  # noqa: PLC0415

    parent = multiprocessing.parent_process()
    if parent is not None:

        def wait() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=wait, daemon=True).start()
