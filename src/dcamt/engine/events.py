"""TensorBoard's event files, which as its own writer makes them bear the name of the computer."""

import secrets
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class Events:
    """A new event file in ``folder``; what earlier ones hold after step ``start`` is void."""

    def __init__(self, folder: Path, start: int):
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time_ns()}.{secrets.token_hex(4)}"
        self._file = RecordWriter((folder / name).open("xb"))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        restart = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=time.time(), step=start + 1, session_log=restart))

    def add(self, tag: str, value: float, step: int) -> None:
        """Note a number under a name."""
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Write what waits."""
        self._file.flush()

    def close(self) -> None:
        """Write what waits; nothing can be added any more."""
        self._file.close()

    def _write(self, event: Event) -> None:
        self._file.write(event.SerializeToString())
