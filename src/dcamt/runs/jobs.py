"""Commands in processes of their own, as many at once as there are places for them."""

import os
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dcamt.engine.signals import Interrupted, catch_signals
from dcamt.errors import InputError
from dcamt.files import append
from dcamt.processes import child_environment, cores

_PAUSE = 0.05  # seconds between looks at the processes


@dataclass(frozen=True)
class Job:
    """Commands that run one after the other; what they print goes to the file ``log``."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    log: Path


def places(accelerator: str, at_once: int | None, devices: int = 1) -> list[dict[str, str]]:
    """The environment variables of each place where a job can run.

    ``at_once`` is the number of places; None for one a core on a CPU and one a GPU on ``cuda``.
    Each gets its share of the cores and, of the GPUs, ``devices`` of its own; places beyond their
    number share them. Raises InputError for fewer than one place.
    """
    if at_once is not None and at_once < 1:
        raise InputError(f"--jobs {at_once}: ask for at least 1")
    gpus = torch.cuda.device_count() if accelerator == "cuda" else 0
    count = at_once or (max(1, gpus // devices) if gpus else cores())
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // count))}
    if not gpus:
        return [threads] * count
    # A user who hides GPUs names the visible ones; their names count, not their positions.
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else [str(i) for i in range(gpus)]
    taken = [[names[(i * devices + k) % gpus] for k in range(devices)] for i in range(count)]
    return [{**threads, "CUDA_VISIBLE_DEVICES": ",".join(own)} for own in taken]


def run_jobs(
    jobs: Iterable[Job],
    environments: Sequence[Mapping[str, str]],
    finished: Callable[[Job], None],
    keep_open: Sequence[int] = (),
) -> dict[str, str]:
    """Run every job, one in each environment at a time, and call ``finished`` after each success.

    A job that fails does not stop the others; the result maps its name to the last line it
    printed. ``keep_open`` are file descriptors that the processes inherit. On SIGINT or SIGTERM
    the processes are told to stop, waited for, and Interrupted is raised.
    """
    waiting, free = deque(jobs), list(range(len(environments)))
    active: dict[int, tuple[Job, int, subprocess.Popen[bytes]]] = {}
    failed: dict[str, str] = {}

    def start(place: int, job: Job, step: int) -> None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        if step == 0:
            job.log.unlink(missing_ok=True)
        with append(job.log) as log:
            active[place] = job, step, subprocess.Popen(
                job.commands[step],
                env={**child_environment(), **environments[place]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=keep_open,
            )  # fmt: skip

    with catch_signals() as stop:
        try:
            while (waiting or active) and not stop:
                while waiting and free:
                    start(free.pop(0), waiting.popleft(), 0)
                time.sleep(_PAUSE)
                for place, (job, step, process) in list(active.items()):
                    if process.poll() is None:
                        continue
                    del active[place]
                    if process.returncode == 0 and step + 1 < len(job.commands):
                        start(place, job, step + 1)
                        continue
                    free.append(place)
                    if process.returncode == 0:
                        finished(job)
                    elif not stop:
                        failed[job.name] = _last_line(job.log, process.returncode)
        finally:
            _end([process for _, _, process in active.values()], stop)
    if stop:
        raise Interrupted(stop[0], "give the same command again to go on")
    return failed


def _end(processes: Sequence["subprocess.Popen[bytes]"], stop: Sequence[int]) -> None:
    """Let every process save and leave; a second signal to us ends them at once."""
    for process in processes:
        process.terminate()
    while any(process.poll() is None for process in processes):
        time.sleep(_PAUSE)
        if len(stop) > 1:
            for process in processes:
                process.kill()


def _last_line(log: Path, code: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = lines[-1].removeprefix("dcamt: ") if lines else "printed nothing"
    return f"killed by signal {-code}" if code < 0 else last
