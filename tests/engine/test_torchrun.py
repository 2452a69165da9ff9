"""Training in processes that torchrun started: one run, to the weights of one process."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
SETTINGS = (
    *("device=cpu", "network.width=2", "data.patch=[32,16,16]", "train.iterations=4"),
    *("train.checkpoint_every=2", "train.validate_every=2", "train.learning_rate=0.001"),
)


def command(phantoms, out, *more, torchrun=(), settings=SETTINGS):
    start = ["-m", "torch.distributed.run", *torchrun] if torchrun else []
    options = [part for setting in settings for part in ("--set", setting)]
    given = ["train", phantoms, "--out", out, "--splits", phantoms / "splits.json"]
    given += ["--method", "vnet", *more, *options]
    return [str(part) for part in (sys.executable, *start, "-m", "dcamt", *given)]


def run(*given, **named):
    return subprocess.run(command(*given, **named), capture_output=True, text=True, check=False)


def check_same(first: Path, second: Path) -> None:
    one, other = (load_file(out / "last.safetensors") for out in (first, second))
    assert one.keys() == other.keys()
    for name, value in one.items():
        if name.startswith("optimizer"):
            continue  # gradients are larger than what they change, and so is their rounding
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5, msg=name)
    columns = [
        [line.split(",") for line in (out / "log.csv").read_text().splitlines()]
        for out in (first, second)
    ]
    assert [row[0] for row in columns[0]] == [row[0] for row in columns[1]]
    dices = [[float(row[-1]) for row in rows[1:] if row[-1]] for rows in columns]
    assert len(dices[0]) == 2
    assert dices[1] == pytest.approx(dices[0], abs=1e-3)


@pytest.fixture
def alone(phantoms, tmp_path):
    done = run(phantoms, tmp_path / "one")
    assert done.returncode == 0, done.stderr
    return tmp_path / "one"


def test_torchrun_trains_to_the_weights_of_one_process_and_the_first_alone_prints(
    phantoms, tmp_path, alone
):
    done = run(phantoms, tmp_path / "two", torchrun=("--nproc-per-node", "2"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report.html") == 1
    assert done.stderr.count("validation Dice") == 2
    check_same(alone, tmp_path / "two")


def test_two_machines_train_to_the_weights_of_one_process(phantoms, tmp_path, alone):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    groups = []
    for number in range(2):
        where = ("--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", "1")
        where += ("--master-addr", "127.0.0.1", "--master-port", str(port))
        groups.append(subprocess.Popen(command(phantoms, tmp_path / "two", torchrun=where)))
    assert [group.wait(timeout=300) for group in groups] == [0, 0]
    check_same(alone, tmp_path / "two")


def test_a_run_goes_on_in_another_number_of_processes(phantoms, tmp_path, alone):
    out = tmp_path / "run"
    two = [*SETTINGS, "train.devices=2"]
    process = subprocess.Popen(command(phantoms, out, settings=two))
    while not (out / "last.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = run(phantoms, out, "--resume", settings=[*SETTINGS, "train.devices=1"])
    assert done.returncode == 0, done.stderr
    check_same(alone, out)


def test_what_cannot_be_planned_is_one_sentence(phantoms, tmp_path):
    wrong = (*SETTINGS, "data.patch=[15,16,16]")
    done = run(phantoms, tmp_path / "run", torchrun=("--nproc-per-node", "2"), settings=wrong)
    assert done.returncode != 0
    assert done.stderr.count("dcamt: ") == 1
    assert "multiple of" in done.stderr


def test_a_process_that_dies_ends_the_others_and_the_run_goes_on(phantoms, tmp_path, alone):
    out, two = tmp_path / "run", ("--nproc-per-node", "2")
    process = subprocess.Popen(
        command(phantoms, out, torchrun=two), stderr=subprocess.PIPE, text=True
    )
    while not (out / "last.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.01)
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    workers = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    os.kill(max(workers), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert errors.count("one of the training processes died; continue with --resume") == 1
    assert "RuntimeError" not in errors
    done = run(phantoms, out, "--resume", torchrun=two)
    assert done.returncode == 0, done.stderr
    check_same(alone, out)
