"""Trainings killed without warning, and what is left of them."""

import csv
import random
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open

from dcamt import api

ITERATIONS = 45


def settings_of(tiny, every):
    changed = {"train.iterations": ITERATIONS, "train.checkpoint_every": every,
               "train.validate_every": 9, "method.name": "mean-teacher"}  # fmt: skip
    kept = (s for s in tiny if not s.startswith("method."))
    return [*kept, *(f"{key}={value}" for key, value in changed.items())]


def start(data, run, settings):
    return subprocess.Popen(
        [sys.executable, "-m", "dcamt.cli", "train", data, "--out", run, "--resume", "--quiet",
         "--splits", data / "splits.json", *(part for s in settings for part in ("--set", s))],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def saved(run):
    """Iteration of the last checkpoint, 0 without one; fails where the file is not whole."""
    path = run / "last.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        return int(file.metadata()["state"].split('"iteration": ')[1].split(",")[0])


def kill_and_resume(data, run, settings, kills, rng):
    """Kill at random moments, ever further into the run, then let it finish."""
    for kill in range(kills):
        # Somewhere in this kill's share of the run, so that all of them hit a training at work.
        aim = rng.uniform(kill, kill + 1) / (kills + 1) * ITERATIONS
        process = start(data, run, settings)
        while saved(run) < aim and process.poll() is None:
            time.sleep(0.03)
        time.sleep(rng.uniform(0, 0.1))
        assert process.poll() is None, process.stderr.read()
        process.kill()
        process.wait()
        process.stderr.close()
        assert saved(run) >= aim
    process = start(data, run, settings)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def tensors(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize(
    ("kills", "every"), [(2, 1), pytest.param(10, 2, marks=pytest.mark.slow)]
)
def test_a_killed_run_ends_as_if_nothing_had_happened(phantoms, tiny, tmp_path, kills, every):
    settings = settings_of(tiny, every)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    api.train(phantoms, whole, splits=phantoms / "splits.json", set=settings, quiet=True)

    seed = random.randrange(10**6)
    print("moments drawn after seed", seed)
    kill_and_resume(phantoms, killed, settings, kills, random.Random(seed))

    for name in ("last", "best"):
        expected, metadata = tensors(whole / f"{name}.safetensors")
        found, more = tensors(killed / f"{name}.safetensors")
        assert metadata == more
        assert list(expected) == list(found)
        assert all(torch.equal(expected[k], found[k]) for k in expected)
    rows = [list(csv.reader((run / "log.csv").open())) for run in (whole, killed)]
    assert [row[0] for row in rows[1][1:]] == [str(i + 1) for i in range(ITERATIONS)]
    assert [row[:1] + row[2:] for row in rows[0]] == [row[:1] + row[2:] for row in rows[1]]

    def files(run):
        return sorted(str(p.relative_to(run)) for p in run.rglob("*") if "tfevents" not in p.name)

    assert files(whole) == files(killed)  # nothing half-written stays behind
    scores = [(run / "validation.json").read_text() for run in (whole, killed)]
    assert scores[0] == scores[1]


def test_a_run_killed_while_it_began_can_be_begun_again(phantoms, tiny, tmp_path):
    """The folder holds no config.yaml yet, but a part of what comes before it."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "split.json").write_text("{}")
    (run / ".tmp-1-versions.json").write_text("{")
    api.train(phantoms, run, splits=phantoms / "splits.json", set=tiny, resume=True, quiet=True)
    assert saved(run) == 3
    assert not list(run.glob(".tmp-*"))
