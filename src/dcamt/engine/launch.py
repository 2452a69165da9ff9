"""Training in several processes: signals reach them, and what ends one ends all, in a sentence."""

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lightning_fabric import Fabric
from torch.distributed import DistNetworkError
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from dcamt.engine.signals import Interrupted, catch_signals
from dcamt.engine.together import Lost
from dcamt.errors import InputError, Unwritable
from dcamt.processes import die_with_parent

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # in each process that is started


def launch_processes(fabric: Fabric, work: Callable[[Fabric], None], out: Path) -> None:
    """Do ``work`` in several processes, which get the signal that this one gets.

    The same signal again ends them. Raises Interrupted after a signal, and InputError for that of
    a process and if one died.
    """

    def pass_on(received: list[int]) -> None:
        processes = multiprocessing.active_children()
        # After Ctrl-C a comparison sends SIGTERM as well: that is not the user asking again.
        if received.count(received[-1]) > 1 or not processes:
            for process in processes:
                process.kill()
            raise Interrupted(received[-1])
        for process in processes if os.name == "posix" else ():  # Windows tells them itself
            if process.pid is not None:
                os.kill(process.pid, received[-1])

    with catch_signals(pass_on) as stop:
        try:
            fabric.launch(partial(_interruptible, work))
        except (ProcessRaisedException, ProcessExitedException) as error:
            kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
            name = kind.rpartition(".")[2]
            if name in (InputError.__name__, Unwritable.__name__, Lost.__name__):
                raise InputError(message) from None
            if name == DistNetworkError.__name__:
                raise InputError(
                    f"{out}: the training processes could not reach one another ({message}); unset "
                    "MASTER_PORT, if it is set, and continue with --resume on a free port"
                ) from None
            if name == Interrupted.__name__:
                raise Interrupted(stop[0] if stop else signal.SIGTERM) from None
            if isinstance(error, ProcessRaisedException):
                raise
            if stop:
                raise Interrupted(stop[0]) from None
            raise InputError(
                f"{out}: one of the training processes died; continue with --resume"
            ) from None
    if stop:  # it came too late to be seen, and the rest of the run is still to do
        raise Interrupted(stop[0])


def _interruptible(work: Callable[[Fabric], None], fabric: Fabric) -> None:
    """Ctrl-C before the first iteration ends a process with an error, which the others hear of."""
    die_with_parent()
    try:
        work(fabric)
    except KeyboardInterrupt:
        raise Interrupted(signal.SIGINT) from None
