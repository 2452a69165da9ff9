"""Containers and servers: no name, no home, another encoding, no shared memory."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from dcamt.data.prepare import cache_folder

NOBODY = 12345
"""A user id that has no entry in /etc/passwd."""


def environment(**changes: str | None) -> dict[str, str]:
    """Ours with ``changes``; None takes a variable out."""
    merged = {**os.environ, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def run(*command: object, **changes: str | None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True, text=True, errors="replace", env=environment(**changes), check=False,
    )  # fmt: skip


DCAMT = (sys.executable, "-m", "dcamt.cli")


@pytest.fixture
def nobody() -> tuple[str, ...]:
    """What a command is put behind to run as NOBODY, who may read whatever root may."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can become another user, by setpriv")
    right = "dac_read_search"
    prefix = (
        "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
        f"--inh-caps=+{right}", f"--ambient-caps=+{right}", f"--bounding-set=-all,+{right}",
    )  # fmt: skip
    if run(*prefix, "true").returncode:
        pytest.skip("this system does not let root become another user")
    return prefix


@pytest.fixture
def place(phantoms: Path) -> Iterator[Path]:
    """A folder of NOBODY with a copy of the phantoms in ``data``; pytest's own are root's alone."""
    with TemporaryDirectory() as name:
        shutil.copytree(phantoms, Path(name) / "data")
        for path in (Path(name), *Path(name).rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        yield Path(name)


NAMELESS: dict[str, str | None] = dict.fromkeys(("USER", "LOGNAME", "LNAME", "USERNAME", "HOME"))


def training(phantoms: Path, out: Path, tiny: list[str]) -> list[object]:
    sets = [part for value in tiny for part in ("--set", value)]
    return ["train", phantoms, "--splits", phantoms / "splits.json", "--out", out, *sets]


@pytest.mark.slow
def test_a_user_id_without_a_name(nobody, place, tiny) -> None:
    """As a container runs it: no entry in /etc/passwd, no USER, no HOME."""
    data, out = place / "data", place / "run"
    nameless: dict[str, str | None] = {**NAMELESS, "DCAMT_CACHE": str(place / "cache")}
    for arguments in (
        training(data, out, tiny),
        ["predict", out, data / "imagesTr", "--out", place / "found"],
        ["evaluate", place / "found", data, "--out", place / "scores.json"],
    ):
        done = run(*nobody, *DCAMT, *arguments, **nameless)
        assert done.returncode == 0, f"{arguments[0]}: {done.stderr}"
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_without_a_home_the_variable_of_the_cache_is_named(nobody, place, tiny):
    arguments = training(place / "data", place / "run", tiny)
    unset = {"DCAMT_CACHE": None, "XDG_CACHE_HOME": None}
    done = run(*nobody, *DCAMT, *arguments, **NAMELESS, **unset)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "dcamt: no home folder is known for the cache of prepared scans; set the environment "
        "variable DCAMT_CACHE to a folder"
    )


@pytest.mark.slow
def test_a_home_that_cannot_be_written_to(phantoms, tiny, tmp_path) -> None:
    (tmp_path / "home").write_text("a file")
    home: dict[str, str | None] = {"HOME": str(tmp_path / "home"), "DCAMT_CACHE": None}
    arguments = training(phantoms, tmp_path / "run", tiny)
    done = run(*DCAMT, *arguments, **home, XDG_CACHE_HOME=None)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"dcamt: {tmp_path / 'home' / '.cache' / 'dcamt'}")
    assert last.endswith("choose another folder, named by the environment variable DCAMT_CACHE")


def test_the_cache_lies_where_the_environment_says(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/caches")
    monkeypatch.setenv("DCAMT_CACHE", "/scratch/mine")
    assert cache_folder() == Path("/scratch/mine")
    monkeypatch.delenv("DCAMT_CACHE")
    assert cache_folder() == Path("/scratch/caches/dcamt")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/someone/.cache/dcamt")


@pytest.mark.parametrize(
    "encoding",
    [
        pytest.param({"PYTHONIOENCODING": "latin-1"}, marks=pytest.mark.slow),
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["latin-1", "ascii", "C"],
)
def test_a_terminal_that_lacks_characters_gets_others(phantoms, tmp_path, encoding) -> None:
    labels = phantoms / "labelsTr"
    done = run(*DCAMT, "evaluate", labels, phantoms, "--out", tmp_path / "a.json", **encoding)
    assert done.returncode == 0, done.stderr
    assert "mean" in done.stdout
    assert "100.00" in done.stdout
    done = run(*DCAMT, "inspect", phantoms, "--all", **encoding)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_without_shared_memory_workers_are_refused_in_a_sentence(nobody, place, tiny):
    arguments = training(place / "data", place / "run", [*tiny, "train.workers=1"])
    # It may be mounted more than once, one over the other.
    script = 'umount --lazy /dev/shm || exit; while umount --lazy /dev/shm; do :; done; exec "$@"'
    hidden = ("unshare", "--mount", "sh", "-c", script, "sh")
    if shutil.which("unshare") is None or run(*hidden, "true").returncode:
        pytest.skip("this system does not let root hide /dev/shm from a process")
    done = run(*hidden, *nobody, *DCAMT, *arguments, DCAMT_CACHE=str(place / "cache"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "processes cannot share memory here" in done.stderr
    assert "train.workers=0" in done.stderr
    assert not (place / "run").exists()
