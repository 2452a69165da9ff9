"""Files in the making: nobody can guess their name or have put a link in their place."""

import json
import os
import platform
import stat
import sys
from pathlib import Path

import pytest

from dcamt import api
from dcamt.errors import InputError
from dcamt.files import (
    LOCK,
    append,
    atomic,
    holds,
    refuse_existing,
    remove_temporary,
    write_json,
    write_text,
)
from dcamt.runs.jobs import Job, run_jobs


def test_a_file_is_made_in_a_folder_of_its_own_that_is_closed_to_others(tmp_path):
    seen = []
    for _ in range(2):
        with atomic(tmp_path / "a.nii.gz") as temporary:
            assert temporary.name == "a.nii.gz"
            (folder,) = [path for path in tmp_path.iterdir() if path.name != "a.nii.gz"]
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert holds(tmp_path) <= {"a.nii.gz"}
            temporary.write_bytes(b"new")
            assert (folder / "a.nii.gz").read_bytes() == b"new"
            seen.append(folder.name)
    assert len(set(seen)) == 2
    assert not any(platform.node().replace("-", "_") in name for name in seen)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]
    assert stat.S_IMODE((tmp_path / "a.nii.gz").stat().st_mode) & 0o600 == 0o600


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system has no such paths")
def test_a_link_put_in_the_place_of_the_folder_is_not_written_through(tmp_path):
    mine, strange = tmp_path / "mine", tmp_path / "strange"
    mine.mkdir()
    strange.mkdir()
    (mine / "a").write_text("mine")
    with atomic(strange / "a") as temporary:
        (folder,) = strange.iterdir()
        folder.rename(tmp_path / "moved")
        folder.symlink_to(mine)
        temporary.write_text("new")
    assert (mine / "a").read_text() == "mine"
    assert (strange / "a").read_text() == "new"
    assert list(mine.iterdir()) == [mine / "a"]


def test_links_under_names_that_could_be_guessed_are_not_written_through(
    tiny_run, phantoms, tmp_path
):
    """As a stranger would plant them: this machine, any process, every file that is written."""
    mine, out = tmp_path / "mine", tmp_path / "out"
    mine.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "split.json", "versions.json", "log.csv", "validation.json"):
        (run / name).write_bytes((tiny_run / name).read_bytes())
    machine = platform.node().replace("-", "_")
    scan = phantoms / "imagesTr" / "phantom_000.nii.gz"
    out.mkdir()
    for folder, name in ((run, "report.html"), (out, "phantom_000.nii.gz"), (out, "predict.json")):
        (folder / f".tmp-{machine}-{os.getpid()}-{name}").symlink_to(mine)
        (folder / f".tmp-{os.getpid()}-{name}").symlink_to(mine)
    api.report(run)
    api.predict(tiny_run, scan, out, quiet=True)
    assert mine.read_text() == "mine"
    assert (run / "report.html").is_file()
    assert (out / "phantom_000.nii.gz").is_file()


def test_lines_are_not_added_through_a_link(tmp_path):
    (tmp_path / "mine").write_text("mine\n")
    (tmp_path / "log.csv").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match=r"log\.csv: cannot be written"):
        append(tmp_path / "log.csv")
    assert (tmp_path / "mine").read_text() == "mine\n"
    for line in ("a\n", "b\n"):
        with append(tmp_path / "new.csv") as file:
            file.write(line)
    assert (tmp_path / "new.csv").read_text() == "a\nb\n"


def test_the_log_of_a_job_replaces_a_link(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "a.log").symlink_to(tmp_path / "mine")
    job = Job("a", ((sys.executable, "-c", "print(1)"),), tmp_path / "a.log")
    assert run_jobs([job], [{}], lambda job: None) == {}
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "a.log").read_text() == "1\n"


def test_a_name_of_the_greatest_length_is_written(tmp_path):
    path = tmp_path / ("x" * 255)
    write_text(path, "all of it")
    assert path.read_text() == "all of it"


def test_leftovers_are_removed_without_following_links(tmp_path):
    mine, run = tmp_path / "mine", tmp_path / "run"
    mine.mkdir()
    (mine / "a").write_text("mine")
    left = run / "validation" / f".tmp-{'0' * 8}-{'1' * 32}"
    left.mkdir(parents=True)
    (left / "a.nii.gz").write_bytes(b"half")
    (left / "link").symlink_to(mine)
    (run / f".tmp-{'0' * 8}-{'2' * 32}").symlink_to(mine)
    (run / ".tmp-notes").mkdir()
    remove_temporary(run)
    assert not left.exists()
    assert (mine / "a").read_text() == "mine"
    assert (run / ".tmp-notes").is_dir()
    assert holds(run) == {"validation", ".tmp-notes"}


def test_json_reads_back_as_it_was(tmp_path):
    content = {"b": [None, 0.1], "a": {"name": "\N{GREEK SMALL LETTER MU}m"}}
    write_json(content, tmp_path / "new" / "some.json")
    (file,) = (tmp_path / "new").iterdir()
    text = file.read_text(encoding="utf-8")
    assert json.loads(text) == content
    assert text.startswith('{\n  "b": [') and "\N{GREEK SMALL LETTER MU}" in text


def test_json_that_cannot_be_written(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="taken: cannot be written"):
        write_json({}, tmp_path / "taken")


def test_what_exists_is_refused_unless_it_is_ours(tmp_path):
    refuse_existing(tmp_path / "absent")
    (tmp_path / LOCK).touch()
    refuse_existing(tmp_path)  # a lock is nothing
    (tmp_path / "mine").touch()
    refuse_existing(tmp_path, ours=True)
    with pytest.raises(InputError, match=r": exists already; choose another --out$"):
        refuse_existing(tmp_path)
    with pytest.raises(InputError, match=r"mine: exists already and is no report; move it away$"):
        refuse_existing(tmp_path / "mine", advice="move it away", kind="report")
