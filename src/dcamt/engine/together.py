"""Processes that torchrun started: the first one plans and writes, the others wait and train along.

Each of them runs the whole command; dcamt starts none itself then.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from dcamt.errors import InputError

_LONGEST_PLAN = timedelta(days=2)
"""How long the others wait until the data are prepared; torchrun ends them if the first ends."""
_LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process")
"""What PyTorch says when another process has ended, in small letters."""


class Lost(InputError):
    """Another process of the training has ended."""

    exit_code = 2


def started_by_torchrun() -> bool:
    """Whether this process is one of several that torchrun started."""
    launched = dist.is_available() and dist.is_torchelastic_launched()
    return launched and int(os.environ["WORLD_SIZE"]) > 1


def follows() -> bool:
    """Whether this process is one of those, but not the first."""
    return started_by_torchrun() and int(os.environ["RANK"]) > 0


def machines_and_processes() -> tuple[int, int]:
    """Machines, and processes on each, that torchrun started."""
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    return int(os.environ["WORLD_SIZE"]) // here, here


def meet() -> None:
    """Wait until all processes that torchrun started are here; does nothing without torchrun."""
    if started_by_torchrun():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=_LONGEST_PLAN)


@contextmanager
def told_of_lost(out: Path) -> Iterator[None]:
    """Turn the end of another process into one InputError."""
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error).lower() for sign in _LOST):
            raise
        raise Lost(f"{out}: one of the training processes died; continue with --resume") from None
