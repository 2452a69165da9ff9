"""What starts other processes: what they may import, and that none is left behind."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from dcamt.errors import InputError
from dcamt.files import alone
from dcamt.processes import child_environment

MODULES = (
    *("argparse", "collections", "copyreg", "csv", "dataclasses", "enum", "json", "logging"),
    *("multiprocessing", "pathlib", "pickle", "queue", "random", "re", "selectors", "signal"),
    *("sitecustomize", "socket", "struct", "subprocess", "tempfile", "threading", "typing"),
    *("usercustomize", "weakref", "zlib", "h5py", "lightning_fabric", "monai", "nibabel", "numpy"),
    *("pydantic", "rich", "safetensors", "scipy", "SimpleITK", "tensorboard", "torch", "typer"),
    *("yaml", "tqdm", "filelock", "openvino", "highdicom"),
)
"""Names that one or another process looks for."""


@pytest.fixture
def planted(phantoms, tmp_path):
    """A data set that holds modules which leave a mark, and the folder of the marks."""
    data, marks = tmp_path / "data", tmp_path / "marks"
    shutil.copytree(phantoms, data)
    marks.mkdir()
    for name in MODULES:
        (data / f"{name}.py").write_text(f"open({str(marks / name)!r}, 'w').close()\n")
    return data, marks


def run_in(folder, *arguments):
    """The command with ``folder`` as the current one."""
    command = [Path(sys.executable).with_name("dcamt"), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def options(tiny, *more):
    kept = [s for s in tiny if not s.startswith("method.")]
    return [part for s in (*kept, *more) for part in ("--set", s)]


def test_the_command_line_imports_nothing_from_the_current_folder(planted):
    data, marks = planted
    done = run_in(data, "inspect", ".")
    assert done.returncode == 0, done.stderr
    assert not list(marks.iterdir())


@pytest.mark.parametrize("name", ["dcamt", "dcamt.cli"])
def test_started_as_a_module_it_drops_the_current_folder_first(planted, name):
    """Python itself takes a few modules from there before: those that find a module by name."""
    data, marks = planted
    kept = ("enum", "json", "numpy", "random", "struct", "torch", "typer", "typing")
    for path in data.glob("*.py"):
        if path.stem not in kept:
            path.unlink()
    command = [sys.executable, "-m", name, "inspect", "."]
    done = subprocess.run(command, cwd=data, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(marks.iterdir())


def test_the_decoder_of_slices_imports_nothing_from_the_current_folder(
    planted, write_series, tiny_run, tmp_path
):
    data, marks = planted
    series = write_series(tmp_path / "ct", np.ones((20, 18, 16), np.int16), np.eye(4))
    for path in series.iterdir():
        head = pydicom.dcmread(path)
        head.compress(RLELossless, generate_instance_uid=False)
        pydicom.dcmwrite(path, head)
    done = run_in(data, "predict", tiny_run, series, "--out", tmp_path / "out.nii.gz")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.nii.gz").exists()
    assert not list(marks.iterdir())


@pytest.mark.slow
def test_commands_that_start_processes_import_nothing_from_the_current_folder(
    planted, tiny, tmp_path
):
    data, marks = planted
    splits = ("--splits", data / "splits.json")
    two = options(tiny, "train.devices=2", "train.workers=1")
    one = options(tiny, "train.iterations=1")
    commands = (
        ("train", ".", "--out", tmp_path / "run", *splits, "--method", "vnet", *two),
        ("compare", ".", "--out", tmp_path / "out", *splits, "--methods", "vnet", "--labeled", "2",
         "--seeds", "1", *one),
        ("cost", "--methods", "vnet", "--patch", "16", "16", "16", "--width", "2", "--iterations",
         "1", "--device", "cpu"),
    )  # fmt: skip
    for command in commands:
        done = run_in(data, *command)
        assert done.returncode == 0, done.stderr
        assert not list(marks.iterdir()), command[0]


NOTEBOOK = """
import os, sys
import dcamt
assert sys.path[0] == ""
dcamt.cost(methods="vnet", patch=(16, 16, 16), width=2, device="cpu", iterations=1)
assert [found.name for found in dcamt.doctor()][0] == "dcamt"
settings = ["train.devices=2", "method.name=vnet", *{settings!r}]
dcamt.train(".", {run!r}, splits="splits.json", set=settings, quiet=True)
assert sys.path[0] == "" and "PYTHONSAFEPATH" not in os.environ
assert "MASTER_PORT" not in os.environ
"""


@pytest.mark.slow
def test_what_a_notebook_starts_imports_nothing_from_the_current_folder(planted, tiny, tmp_path):
    """As there, the path begins with the current folder, and no file holds the program."""
    data, marks = planted
    settings = [s for s in tiny if not s.startswith("method.")]
    code = NOTEBOOK.format(settings=settings, run=str(tmp_path / "run"))
    # Tests that use Fabric by itself leave its port in this process.
    clean = {name: value for name, value in os.environ.items() if name != "MASTER_PORT"}
    subprocess.run([sys.executable, "-c", code], cwd=data, env=clean, check=True)
    assert (tmp_path / "run" / "report.html").exists()
    assert not list(marks.iterdir())


SPAWN = """
import multiprocessing, os, sys, time
from dcamt.processes import die_with_parent, safe_path
def work():
    die_with_parent()
    time.sleep(600)
if __name__ == "__main__":
    os.chdir({data!r})
    sys.path.insert(0, "")
    with safe_path():
        process = multiprocessing.get_context("spawn").Process(target=work)
        process.start()
    print(process.pid, flush=True)
    time.sleep(600)
"""


def is_alive(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def ends_soon(process, seconds=5):
    end = time.monotonic() + seconds
    while is_alive(process) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_alive(process)


def test_a_child_imports_nothing_planted_and_ends_with_its_parent(planted, tmp_path):
    data, marks = planted
    (tmp_path / "start.py").write_text(SPAWN.format(data=str(data)))
    parent = subprocess.Popen([sys.executable, tmp_path / "start.py"], stdout=subprocess.PIPE)
    child = int(parent.stdout.readline())
    time.sleep(1)
    assert is_alive(child)
    parent.kill()
    parent.wait()
    assert ends_soon(child)
    assert not list(marks.iterdir())


def test_an_empty_part_of_the_path_is_not_handed_on(planted, monkeypatch):
    """PYTHONPATH=$PYTHONPATH:more, where it was not set before."""
    data, marks = planted
    monkeypatch.setenv("PYTHONPATH", f":{data.parent}:.")
    command = [sys.executable, "-c", "import random, struct, sys; print(sys.path)"]
    done = subprocess.run(
        command, cwd=data, env=child_environment(), capture_output=True, text=True, check=True
    )
    assert str(data.parent) in done.stdout
    assert not list(marks.iterdir())
    subprocess.run(command, cwd=data, check=True)
    assert {path.name for path in marks.iterdir()} >= {"sitecustomize", "struct", "random"}


def children_of(process):
    tasks = Path(f"/proc/{process}/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


def below(process):
    """Every process that stems from one."""
    found = children_of(process)
    return found + [pid for child in found for pid in below(child)]


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["train.devices=2", "train.workers=1"])
def test_nobody_trains_on_when_the_training_is_killed(phantoms, tiny, tmp_path, setting):
    run = tmp_path / "run"
    command = ["train", phantoms, "--out", run, "--splits", phantoms / "splits.json", "--method",
               "vnet", "--resume", "--quiet"]  # fmt: skip
    endless = options(tiny, "train.iterations=1000000", setting)
    process = subprocess.Popen([sys.executable, "-m", "dcamt", *map(str, [*command, *endless])])
    while not (run / "log.csv").exists():
        assert process.poll() is None
        time.sleep(0.05)
    others = below(process.pid)
    assert others
    process.kill()
    process.wait()
    assert all(ends_soon(pid) for pid in others)
    time.sleep(0.5)  # until the system has freed what they held
    with alone(run):
        size = (run / "log.csv").stat().st_size
        time.sleep(2)
        assert (run / "log.csv").stat().st_size == size


COMPARING = """
import os, sys
from pathlib import Path
from dcamt.files import alone
from dcamt.runs.jobs import Job, run_jobs
folder = Path(sys.argv[1])
code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
with alone(folder) as lock:
    job = Job("a", ((sys.executable, "-c", code),), folder / "a.log")
    run_jobs([job], [{}], lambda job: None, keep_open=(lock,))
"""


def test_a_job_whose_comparison_was_killed_holds_its_folder(tmp_path):
    folder = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", COMPARING, folder])
    while not (folder / "a.log").exists() or not (folder / "a.log").read_text().strip():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    job = int((folder / "a.log").read_text())
    assert is_alive(job)
    with pytest.raises(InputError, match="left behind"), alone(folder):
        pass
    os.kill(job, signal.SIGKILL)
    assert ends_soon(job)
    with alone(folder):
        pass


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_sentence(phantoms, tiny, tmp_path, monkeypatch):
    command = ("train", phantoms, "--out", tmp_path / "run", "--splits", phantoms / "splits.json",
               "--method", "vnet", "--resume", *options(tiny, "train.devices=2"))  # fmt: skip
    with socket.create_server(("", 0)) as busy:
        monkeypatch.setenv("MASTER_PORT", str(busy.getsockname()[1]))
        done = run_in(tmp_path, *command)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "MASTER_PORT" in done.stderr.splitlines()[-1]
    monkeypatch.delenv("MASTER_PORT")
    done = run_in(tmp_path, *command)
    assert done.returncode == 0, done.stderr
