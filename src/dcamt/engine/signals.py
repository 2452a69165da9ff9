"""SIGINT and SIGTERM noted instead of obeyed at once, so that work is saved first."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """Work stopped on a signal after saving; the command line leaves with ``exit_code``."""

    def __init__(self, number: int, go_on: str = "continue with --resume"):
        super().__init__(f"stopped by {signal.Signals(number).name}; {go_on}")
        self.exit_code = 128 + number


def ignore_interrupts() -> None:
    """Leave Ctrl-C, which reaches every process of a terminal, to the one that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def stopped_by_signals(go_on: str) -> Iterator[None]:
    """SIGINT and SIGTERM raise Interrupted at once, so that what is being written is cleaned up."""

    def stop(received: list[int]) -> None:
        if len(received) == 1:  # a second one must not disturb the cleaning up
            raise Interrupted(received[0], go_on)

    with catch_signals(stop):
        yield


@contextmanager
def catch_signals(
    then: Callable[[list[int]], None] = lambda received: None,
) -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM are added to instead of ending the process at once.

    ``then`` is called with it after each.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        then(received)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: a notebook or a test; signals stay as they are
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
