"""Scans segmented one after the other, or several at once in processes of their own."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast

import torch
from rich.console import Console

from dcamt.config import PredictConfig
from dcamt.data.dataset import Case
from dcamt.data.formats.stored import gist
from dcamt.engine.signals import ignore_interrupts
from dcamt.errors import InputError, Unwritable
from dcamt.escape import printable
from dcamt.inference.predict import LOWER, Extras, predict_case
from dcamt.inference.predictor import Backend, check_backend, make_predictor
from dcamt.memory import told_of_memory
from dcamt.methods.method import Method
from dcamt.processes import cores, die_with_parent
from dcamt.records.run_folder import RunConfig
from dcamt.runs.build import load_run

_KILLED = f"its process was killed, perhaps for want of memory; {LOWER}"
TOLD_EVERY = 10.0
"""Seconds between two lines about a scan that takes long."""

Files = Mapping[str, Sequence[Path]]
"""What is written for each scan, by its name; its segmentation comes first."""
Outcome = tuple[str, ...] | InputError
"""What a user should know of a scan that is segmented, or why it is not."""
Segment = Callable[[Sequence[Case], Files], Iterator[tuple[Case, Outcome]]]
"""Segments scans and tells of each as soon as it is done."""


@dataclass(frozen=True)
class Request:
    """What `predict` was asked for; a process of its own can be told so."""

    run: Path
    weights: str
    windows: PredictConfig
    extras: Extras
    series: int | None
    accelerator: str
    backend: Backend


@contextmanager
def segmenter(
    request: Request, config: RunConfig, method: Method, at_once: int, console: Console
) -> Iterator[Segment]:
    """What segments scans with ``method``, that of the run, ``at_once`` at a time.

    Several at once are segmented in processes, which share the cores and take the GPUs in turn.
    They end with this context.
    """
    if at_once == 1:
        work = _work(request, config, method, torch.device(request.accelerator))
        yield partial(_one_by_one, work, console)
        return
    check_backend(request.backend, torch.device(request.accelerator))
    places = _Places(request, at_once)
    try:
        yield places.segment
    finally:
        places.close()


def segment_all(
    scans: Sequence[Case], files: Files, segment: Segment, console: Console, many: bool
) -> dict[str, str]:
    """Segment every scan that can be read; why the others could not, by their names.

    ``many`` says that one failure is told at once, as more scans are to come.
    """
    begin = time.monotonic()
    failed: dict[str, str] = {}
    told: set[str] = set()
    for done, (scan, outcome) in enumerate(segment(scans, files), 1):
        if isinstance(outcome, InputError):
            failed[scan.name] = str(outcome)
            if many:
                console.print(f"{done}/{len(scans)}  {outcome}")
            continue
        seconds = (time.monotonic() - begin) / done
        console.print(
            f"{done}/{len(scans)}  {printable(scan.name)}  {seconds:.1f} s a case  "
            f"{seconds * (len(scans) - done) / 60:.1f} min left"
        )
        for remark in (remark for remark in outcome if gist(remark) not in told):
            told.add(gist(remark))  # of many scans alike, the first one's will do
            console.print(printable(f"note: {scan.name}: {remark}"))
    return failed


# --------------------------------------------------------------------------------- in this process

Work = Callable[..., tuple[str, ...]]
"""`predict_case` with all but images, output and observer given."""


def _work(request: Request, config: RunConfig, method: Method, device: torch.device) -> Work:
    predictor = make_predictor(method, config.plan, device, request.backend)
    config = config.model_copy(update={"predict": request.windows})
    return partial(predict_case, predictor, config, extras=request.extras, series=request.series)


def _one_by_one(
    work: Work, console: Console, scans: Sequence[Case], files: Files
) -> Iterator[tuple[Case, Outcome]]:
    for scan in scans:
        yield scan, _outcome(work, scan, files[scan.name], _teller(scan.name, console))


def _outcome(
    work: Work, scan: Case, files: Sequence[Path], observe: Callable[[int, int], None]
) -> Outcome:
    try:
        _check_lengths(files)
        with told_of_memory(f"{scan.images[0]}: cannot be segmented", LOWER):
            return work(scan.images, files[0], observe=observe)
    except Unwritable:
        raise
    except InputError as error:  # other scans may be sound
        return error


def _teller(name: str, console: Console) -> Callable[[int, int], None]:
    """Tells of a scan that takes long how much of it is done, every now and then."""
    begin = last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < TOLD_EVERY or done == total:
            return
        last = now
        left = (now - begin) / done * (total - done)
        console.print(
            f"{printable(name)}: window {done} of {total}, {left / 60:.1f} min left of this scan"
        )

    return tell


def _check_lengths(files: Sequence[Path]) -> None:
    """InputError if a file system would not take one of these names."""
    there = next(folder for folder in files[0].absolute().parents if folder.is_dir())
    try:
        longest = os.pathconf(there, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        longest = 255
    for path in files:
        if len(os.fsencode(path.name)) > longest:
            raise InputError(
                f"{path}: the name is longer than the {longest} bytes that a name may have there; "
                "rename the scan"
            )


# ----------------------------------------------------------------------- in processes of their own


class _Places:
    """Processes that segment one scan each at a time. One that dies takes no other with it."""

    def __init__(self, request: Request, at_once: int) -> None:
        self.request = request
        self.threads = max(1, cores() // at_once)
        self.doors: list[Connection | None] = [None] * at_once
        self.processes: list[BaseProcess] = []

    def segment(self, scans: Sequence[Case], files: Files) -> Iterator[tuple[Case, Outcome]]:
        """Those that fail are tried again by themselves: several at once share the memory."""
        failed = []
        for scan, outcome in self._run(scans, files, len(self.doors)):
            if isinstance(outcome, InputError):
                failed.append(scan)
            else:
                yield scan, outcome
        yield from self._run(failed, files, 1)

    def _run(
        self, scans: Sequence[Case], files: Files, at_once: int
    ) -> Iterator[tuple[Case, Outcome]]:
        waiting, free = deque(scans), list(range(at_once))
        working: dict[Connection, tuple[int, Case]] = {}
        while waiting or working:
            while waiting and free:
                place, scan = free.pop(0), waiting.popleft()
                door = self.doors[place] or self._open(place)
                with suppress(OSError):  # it is gone already, as will be seen
                    door.send((scan, list(files[scan.name])))
                working[door] = place, scan
            for ready in wait(list(working)):
                door = cast(Connection, ready)
                place, scan = working.pop(door)
                free.append(place)
                try:
                    outcome = door.recv()
                except (EOFError, OSError):
                    self.doors[place] = None
                    outcome = InputError(f"{scan.images[0]}: {_KILLED}")
                if isinstance(outcome, Unwritable) or not isinstance(outcome, tuple | InputError):
                    raise outcome
                yield scan, outcome

    def _open(self, place: int) -> Connection:
        context = get_context("spawn")
        door, theirs = context.Pipe()
        given = (theirs, self.request, place, self.threads)
        process = context.Process(target=_serve, args=given, daemon=True)
        process.start()
        theirs.close()  # so that the door tells when the process is gone
        self.processes.append(process)
        self.doors[place] = door
        return door

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()


def _serve(door: Connection, request: Request, place: int, threads: int) -> None:
    """Segment each scan that comes through ``door``, and send back how it went."""
    die_with_parent()
    ignore_interrupts()  # the process that started this one ends it
    torch.set_num_threads(threads)
    device = torch.device(request.accelerator)
    if device.type == "cuda":
        device = torch.device("cuda", place % torch.cuda.device_count())
    work = None
    while True:
        scan, files = door.recv()
        try:
            if work is None:
                config, method = load_run(request.run, request.weights)
                work = _work(request, config, method, device)
            outcome: Outcome | Exception = _outcome(work, scan, files, lambda done, total: None)
        except Exception as error:
            outcome = error
        door.send(outcome)
