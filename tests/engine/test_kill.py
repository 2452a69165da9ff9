"""Trainings killed without warning, and what is left of them."""

import csv
import multiprocessing
import random
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open

from dcamt import api

ITERATIONS = 40


def settings_of(tiny, every):
    changed = {"train.iterations": ITERATIONS, "train.checkpoint_every": every,
               "train.validate_every": 9, "method.name": "mean-teacher"}  # fmt: skip
    kept = (s for s in tiny if not s.startswith("method."))
    return [*kept, *(f"{key}={value}" for key, value in changed.items())]


def start_command(data, run, settings):
    """The command as a user starts it: seconds until it trains."""
    return subprocess.Popen(
        [sys.executable, "-m", "dcamt.cli", "train", data, "--out", run, "--resume", "--quiet",
         "--splits", data / "splits.json", *(part for s in settings for part in ("--set", s))]
    )  # fmt: skip


def start_fork(data, run, settings):
    """A process of its own that has PyTorch loaded already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dcamt.runs.train"])
    options = {"splits": data / "splits.json", "set": settings, "resume": True, "quiet": True}
    process = context.Process(target=api.train, args=(data, run), kwargs=options)
    process.start()
    process.poll = lambda: process.exitcode
    process.wait = process.join
    return process


def saved(run):
    """Iteration of the last checkpoint, 0 without one; fails where the file is not whole."""
    path = run / "last.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        return int(file.metadata()["state"].split('"iteration": ')[1].split(",")[0])


def kill_and_resume(start, data, run, settings, kills):
    """Kill at random moments, ever further into the run, then let it finish."""
    seed = random.randrange(10**6)
    print("moments drawn after seed", seed)
    rng = random.Random(seed)
    for kill in range(kills):
        # Somewhere in this kill's share of the run, so that every one hits a training at work.
        aim = rng.uniform(kill, kill + 1) / (kills + 1) * ITERATIONS
        process = start(data, run, settings)
        while saved(run) < aim and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.05))
        assert process.poll() is None, "it ended before it was killed"
        process.kill()
        process.wait()
        assert saved(run) >= aim
    process = start(data, run, settings)
    process.wait()
    assert process.poll() == 0


def tensors(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize(
    ("start", "kills", "every"),
    [
        (start_fork, 2, 1),
        pytest.param(start_fork, 10, 1, marks=pytest.mark.slow),
        pytest.param(start_command, 10, 2, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_as_if_nothing_had_happened(
    phantoms, tiny, tmp_path, start, kills, every
):
    settings = settings_of(tiny, every)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    api.train(phantoms, whole, splits=phantoms / "splits.json", set=settings, quiet=True)
    kill_and_resume(start, phantoms, killed, settings, kills)

    for name in ("last", "best"):
        expected, metadata = tensors(whole / f"{name}.safetensors")
        found, more = tensors(killed / f"{name}.safetensors")
        assert metadata == more
        assert list(expected) == list(found)
        assert all(torch.equal(expected[k], found[k]) for k in expected)
    rows = []
    for run in (whole, killed):
        with (run / "log.csv").open(newline="") as file:
            rows.append([row[:1] + row[2:] for row in csv.reader(file)])  # all but the seconds
    assert [row[0] for row in rows[1][1:]] == [str(i + 1) for i in range(ITERATIONS)]
    assert rows[0] == rows[1]

    def files(run):
        return sorted(str(p.relative_to(run)) for p in run.rglob("*") if "tfevents" not in p.name)

    assert files(whole) == files(killed)  # nothing half-written stays behind
    scores = [(run / "validation.json").read_text() for run in (whole, killed)]
    assert scores[0] == scores[1]


def test_a_run_killed_while_it_began_can_be_begun_again(phantoms, tiny, tmp_path):
    """The folder holds no config.yaml yet, but a part of what comes before it."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "versions.json").write_text("{}")
    (run / "data.json").write_text("{}")
    half = run / f".tmp-{'0' * 8}-{'1' * 32}"
    half.mkdir()
    (half / "split.json").write_text("{")
    api.train(phantoms, run, splits=phantoms / "splits.json", set=tiny, resume=True, quiet=True)
    assert saved(run) == 3
    assert not list(run.glob(".tmp-*"))
