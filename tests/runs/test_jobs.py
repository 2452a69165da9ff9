import sys
import time

import pytest
import torch

from dcamt.engine.signals import Interrupted
from dcamt.errors import InputError
from dcamt.runs.jobs import Job, places, run_jobs


def job(folder, name, *codes):
    commands = tuple((sys.executable, "-c", code) for code in codes)
    return Job(name, commands, folder / "logs" / f"{name}.log")


def test_jobs_run_in_their_places_and_failures_stop_nobody(tmp_path):
    show = "import os; print(os.environ['PLACE'])"
    jobs = [
        job(tmp_path, "a", show, show),
        job(tmp_path, "b", "print('first'); raise SystemExit('dcamt: no such thing')", show),
        job(tmp_path, "c", show),
    ]
    finished = []
    failed = run_jobs(jobs, [{"PLACE": "here"}], lambda done: finished.append(done.name))
    assert finished == ["a", "c"]
    assert failed == {"b": "no such thing"}
    assert jobs[0].log.read_text() == "here\nhere\n"


def test_a_job_that_is_killed_stops_nobody(tmp_path):
    jobs = [
        job(tmp_path, "a", "import os; os.kill(os.getpid(), 9)", "print('never')"),
        job(tmp_path, "b", "print(1)"),
    ]
    finished = []
    failed = run_jobs(jobs, [{}], lambda done: finished.append(done.name))
    assert finished == ["b"]
    assert failed == {"a": "killed by signal 9"}


def test_as_many_run_at_once_as_there_are_places(tmp_path):
    """Each of the two waits for a file that the other one writes."""

    def meet(mine, other):
        return (
            f"import pathlib, time\npathlib.Path({str(tmp_path / mine)!r}).touch()\n"
            f"while not pathlib.Path({str(tmp_path / other)!r}).exists(): time.sleep(0.01)"
        )

    jobs = [job(tmp_path, "a", meet("a", "b")), job(tmp_path, "b", meet("b", "a"))]
    assert run_jobs(jobs, [{}, {}], lambda done: None) == {}


def test_a_signal_lets_the_processes_save(tmp_path):
    saving = (
        "import os, pathlib, signal, sys, time\n"
        "def save(*_):\n"
        f"    pathlib.Path({str(tmp_path / 'saved')!r}).write_text('all')\n"
        "    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)"
    )
    jobs = [job(tmp_path, "a", saving), job(tmp_path, "b", "print(1)")]
    begin = time.monotonic()
    with pytest.raises(Interrupted, match="same command again") as stopped:
        run_jobs(jobs, [{}], lambda done: None)
    assert stopped.value.exit_code == 143
    assert time.monotonic() - begin < 50
    assert (tmp_path / "saved").read_text() == "all"
    assert not jobs[1].log.exists()


def test_cores_and_gpus_are_shared_out(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert places("cpu", None) == [{"OMP_NUM_THREADS": "1"}] * 8
    assert places("cpu", 3) == [{"OMP_NUM_THREADS": "2"}] * 3
    found = [(p["OMP_NUM_THREADS"], p["CUDA_VISIBLE_DEVICES"]) for p in places("cuda", None)]
    assert found == [("4", "0"), ("4", "1")]
    assert [p["CUDA_VISIBLE_DEVICES"] for p in places("cuda", 3)] == ["0", "1", "0"]
    assert places("cuda", None, devices=2) == [
        {"OMP_NUM_THREADS": "8", "CUDA_VISIBLE_DEVICES": "0,1"}
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    assert [p["CUDA_VISIBLE_DEVICES"] for p in places("cuda", None)] == ["5", "GPU-7"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,6,5,4")
    found = [p["CUDA_VISIBLE_DEVICES"] for p in places("cuda", 3, devices=2)]
    assert found == ["7,6", "5,4", "7,6"]
    with pytest.raises(InputError, match="--jobs 0"):
        places("cpu", 0)
