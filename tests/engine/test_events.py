import platform
import socket

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dcamt import api
from dcamt.engine.events import Events


def write(folder, start, values):
    events = Events(folder, start)
    for step, value in enumerate(values, start + 1):
        events.add("loss/all", value, step)
    events.close()


def test_tensorboard_reads_the_numbers(tmp_path):
    write(tmp_path / "tensorboard", 0, [0.5, 0.25])
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss/all")
    assert [(event.step, event.value) for event in found] == [(1, 0.5), (2, 0.25)]


def test_what_is_made_again_replaces_what_was_lost(tmp_path):
    write(tmp_path, 0, [8, 7, 6, 5])
    write(tmp_path, 2, [4, 3, 2])
    found = EventAccumulator(str(tmp_path)).Reload().Scalars("loss/all")
    assert [(e.step, e.value) for e in found] == [(1, 8), (2, 7), (3, 4), (4, 3), (5, 2)]


def test_no_file_of_a_run_names_the_computer(phantoms, tiny, tmp_path, monkeypatch):
    for module, name in ((socket, "gethostname"), (platform, "node")):
        monkeypatch.setattr(module, name, lambda: "x-ray-4711")
    settings = [*(s for s in tiny if not s.startswith("method.")), "method.name=vnet"]
    api.train(phantoms, tmp_path / "run", splits=phantoms / "splits.json", set=settings, quiet=True)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any("tfevents" in path.name for path in files)
    for path in files:
        assert "x-ray" not in path.name
        assert b"x-ray" not in path.read_bytes()
