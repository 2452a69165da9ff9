"""Processes killed, disks full, folders shared: what is left, and that a rerun completes.

Trainings that are killed are in engine/test_kill.py, comparisons in runs/test_compare.py.
"""

import multiprocessing
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dcamt import api
from dcamt.config import Normalization, Plan, load_config
from dcamt.data.dataset import Case
from dcamt.data.prepare import prepare
from dcamt.data.volume import read_label, write_volume
from dcamt.engine import checkpoint
from dcamt.errors import InputError
from dcamt.files import LOCK, atomic, holds, remove_abandoned, write_text
from dcamt.inference.predict import SUMMARY
from dcamt.runs.build import build_method
from dcamt.runs.predict import RECORD
from dcamt.runs.summary import CSV, JSON

PLAN = Plan(
    channels=("MR",), classes=("background", "one"), ignore=None, orientation="RAS",
    spacing=(1.0, 1.0, 1.0), crop=False, normalization=(Normalization(),), patch=(16, 16, 16),
)  # fmt: skip


def start(work, *arguments):
    """``work`` in a process of its own that has PyTorch loaded already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dcamt.runs.train", "dcamt.runs.predict"])
    process = context.Process(target=work, args=arguments)
    process.start()
    return process


def kill_while_writing(process, folder):
    """SIGKILL as soon as a file is in the making in ``folder``; whether one was left."""
    end = time.monotonic() + 120
    while not list(folder.glob(".tmp-*")):
        assert process.is_alive()
        assert time.monotonic() < end, "it wrote nothing"
    process.kill()
    process.join()
    return bool(list(folder.glob(".tmp-*")))


# ------------------------------------------------------------------------------------ checkpoints


def large_method():
    settings = ["network.width=6", "method.name=vnet"]
    return build_method(load_config(None, settings).model_copy(update={"plan": PLAN}))


def write_checkpoints(path):
    """One after the other; every weight of the n-th is n."""
    method, number = large_method(), 0
    while True:
        number += 1
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.fill_(number)
        checkpoint.save(path, method, {}, {"iteration": number, "best": None})


def test_a_checkpoint_is_whole_whenever_its_writer_is_killed(tmp_path):
    path, method, left = tmp_path / "last.safetensors", large_method(), 0
    for _ in range(3):
        process = start(write_checkpoints, path)
        before = path.stat().st_mtime_ns if path.exists() else 0
        while not path.exists() or path.stat().st_mtime_ns == before:
            assert process.is_alive()
            time.sleep(0.01)
        left += kill_while_writing(process, tmp_path)
        state = checkpoint.load(path, method)
        for parameter in method.parameters():
            assert (parameter == state["iteration"]).all()
    assert left > 0, "no kill came while a checkpoint was written"


# ------------------------------------------------------------------------------------- the cache


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("DCAMT_CACHE", str(folder))
    return folder


@pytest.fixture
def cases(tmp_path):
    """Three labelled scans of four megabytes each once prepared."""
    found = []
    for i in range(3):
        image, label = tmp_path / "scans" / f"{i}.nii", tmp_path / "labels" / f"{i}.nii"
        rng = np.random.default_rng(i)
        write_volume(image, rng.integers(0, 1000, (100, 100, 100)), np.eye(4))
        write_volume(label, rng.integers(0, 2, (100, 100, 100)), np.eye(4))
        found.append(Case(str(i), (image,), label))
    return found


def prepare_into(folder, cases, again):
    os.environ["DCAMT_CACHE"] = str(folder)
    prepare(cases, PLAN)
    while again:
        for path in folder.glob("*.npy"):
            path.unlink(missing_ok=True)
        prepare(cases, PLAN)


@pytest.fixture
def expected(cases, tmp_path, monkeypatch):
    """What the entries must hold, by file name."""
    folder = tmp_path / "other cache"
    with monkeypatch.context() as patch:
        patch.setenv("DCAMT_CACHE", str(folder))
        prepare(cases, PLAN)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_cache_is_whole_whenever_its_writer_is_killed(cases, own_cache, expected):
    left = 0
    for _ in range(4):
        left += kill_while_writing(start(prepare_into, own_cache, cases, True), own_cache)
        for path in own_cache.glob("*.npy"):
            if not path.name.startswith("."):
                assert path.read_bytes() == expected[path.name]
    assert left > 0, "no kill came while an entry was written"
    prepare(cases, PLAN)
    assert {path.name: path.read_bytes() for path in own_cache.iterdir()} == expected


def test_two_runs_fill_one_cache_at_the_same_time(cases, own_cache, expected):
    elsewhere = own_cache / f".tmp-{'0' * 8}-{'1' * 32}"  # of another machine that is at work
    elsewhere.mkdir()
    both = [start(prepare_into, own_cache, cases, False) for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    elsewhere.rmdir()
    assert {path.name: path.read_bytes() for path in own_cache.iterdir()} == expected


def test_only_what_nobody_writes_any_more_is_removed(tmp_path):
    held, free = tmp_path / "held", tmp_path / "free"
    process = start(hold_a_file_in_the_making, held)
    while not list(held.glob(".tmp-*")):
        assert process.is_alive()
        time.sleep(0.01)
    (mine,) = held.iterdir()
    remove_abandoned(held)
    assert list(held.iterdir()) == [mine]
    process.kill()
    process.join()
    remove_abandoned(held)
    assert not list(held.iterdir())

    other, old = f".tmp-{'0' * 8}-{'1' * 32}", f".tmp-{'0' * 8}-{'2' * 32}"
    for name in (other, old, ".tmp-x"):
        (free / name).mkdir(parents=True)
    (free / f".tmp-{'0' * 8}-{'3' * 32}").symlink_to(tmp_path)
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(free / old, (long_ago, long_ago))
    remove_abandoned(free)
    left = {path.name for path in free.iterdir()}
    assert left == {other, ".tmp-x", f".tmp-{'0' * 8}-{'3' * 32}"}
    assert held.exists()


def hold_a_file_in_the_making(folder):
    with atomic(folder / "a.npy") as temporary:
        temporary.write_bytes(b"half")
        time.sleep(600)


def test_a_full_disk_under_the_cache(cli, phantoms, tmp_path, tiny, small_disk, fill, monkeypatch):
    monkeypatch.setenv("DCAMT_CACHE", str(small_disk / "cache"))
    filler = fill(small_disk, 30_000)
    command = ["train", phantoms, "--out", tmp_path / "run", "--splits", phantoms / "splits.json",
               *(part for s in tiny for part in ("--set", s)), "--quiet"]  # fmt: skip
    code, _, errors = cli(*command)
    assert code == 2
    assert errors.count("\n") == 1
    assert "No space left" in errors
    assert "cache" in errors
    assert not list(small_disk.rglob(".tmp-*"))
    filler.unlink()
    assert cli(*command)[0] == 0


# ------------------------------------------------------------------------------------ predictions


def predict_into(run, scans, out):
    api.predict(run, scans, out, resume=True, quiet=True)


def test_predictions_are_whole_whenever_their_writer_is_killed(tiny_run, phantoms, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    out.mkdir()
    api.predict(tiny_run, phantoms, whole, quiet=True)
    expected = {path.name: read_label(path).array for path in whole.glob("*.nii.gz")}
    for done in range(3):
        process = start(predict_into, tiny_run, phantoms, out)
        while len(list(out.glob("phantom*"))) <= done:
            assert process.is_alive()
        process.kill()
        process.join()
        kept = sorted(out.glob("phantom*"))
        assert done < len(kept) < len(expected)
        for path in kept:
            np.testing.assert_array_equal(read_label(path).array, expected[path.name])
    dates = {path: path.stat().st_mtime_ns for path in kept}
    api.predict(tiny_run, phantoms, out, resume=True, quiet=True)
    assert {path.name for path in out.iterdir()} == {*expected, SUMMARY, CSV, JSON, RECORD, LOCK}
    assert {path: path.stat().st_mtime_ns for path in kept} == dates  # not made twice


def test_a_full_disk_under_the_predictions(cli, tiny_run, phantoms, tmp_path, small_disk, fill):
    out = small_disk / "out"
    out.mkdir()
    filler = fill(small_disk, 5 * 4096)  # room for some of six
    code, _, errors = cli("predict", tiny_run, phantoms, "--out", out, "--quiet")
    assert code == 2
    assert errors.count("\n") == 1
    assert "No space left" in errors
    kept = {path: read_label(path).array.sum() for path in out.glob("*.nii.gz")}
    assert 0 < len(kept) < 6
    filler.unlink()
    assert cli("predict", tiny_run, phantoms, "--out", out, "--resume", "--quiet")[0] == 0
    assert len(list(out.glob("*.nii.gz"))) == 6
    assert {path: read_label(path).array.sum() for path in kept} == kept


@pytest.mark.slow
def test_a_full_disk_under_a_comparison(cli, phantoms, small_disk, tiny):
    out = small_disk / "out"
    settings = [s for s in tiny if not s.startswith("method.")]
    command = ["compare", phantoms, "--out", out, "--methods", "vnet,mean-teacher", "--labeled",
               "2", "--seeds", "1", "--splits", phantoms / "splits.json", "--jobs", "1",
               *(part for s in settings for part in ("--set", s)), "--quiet"]  # fmt: skip
    code, _, errors = cli(*command)
    assert code == 2
    assert errors.count("\n") == 1
    assert "No space left" in errors
    assert not (out / "table.md").exists()
    assert not list(small_disk.rglob(".tmp-*"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    code, _, errors = cli(*command)
    assert code == 0, errors
    assert (out / "table.md").exists()


# ---------------------------------------------------------------------------- strangers' folders


@pytest.fixture
def strange(tiny_run, tmp_path):
    """``strange(name, old, new)``: a copy of a run with a text in one of its files replaced."""

    def make(name="", old="", new=""):
        run = Path(shutil.copytree(tiny_run, tmp_path / "strange", dirs_exist_ok=True))
        if name:
            text = (run / name).read_text()
            assert old in text
            (run / name).write_text(text.replace(old, new, 1))
        return run

    return make


@pytest.mark.parametrize("name", ["log.csv", "tensorboard", "validation"])
def test_a_resumed_run_does_not_write_through_links(strange, phantoms, tmp_path, name):
    run, mine = strange(), tmp_path / "mine"
    if (run / name).is_dir():
        shutil.rmtree(run / name)
        mine.mkdir()
    else:
        (run / name).unlink()
        mine.write_text("mine")
    (run / name).symlink_to(mine)
    with pytest.raises(InputError, match=f"{name}: is a link"):
        api.train(phantoms, run, resume=True, quiet=True)
    assert not list(mine.iterdir()) if mine.is_dir() else mine.read_text() == "mine"


def test_links_in_place_of_what_is_moved_are_replaced(strange, tmp_path):
    run, mine = strange(), tmp_path / "mine"
    mine.write_text("mine")
    (run / "report.html").unlink()
    (run / "report.html").symlink_to(mine)
    api.report(run)
    assert mine.read_text() == "mine"
    assert not (run / "report.html").is_symlink()


def test_names_of_classes_lead_nowhere(strange, phantoms, tmp_path):
    run = strange("config.yaml", "atrium", "'../../../x/atrium'")
    scan = phantoms / "imagesTr" / "phantom_000.nii.gz"
    out = tmp_path / "deep" / "deeper" / "out"
    api.predict(run, scan, out, probabilities=True, quiet=True)
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert len(list((out / "probabilities").iterdir())) == 2


HUGE = {
    "a network": ("width: 2", "width: 1000000", "does not fit"),
    "a network beyond counting": ("width: 2", f"width: {10**17}", "cannot be built"),
    "attention": ("heads: 1", "heads: 1000000000", "does not fit"),
    "a patch": ("patch: [16, 16, 16]\n", "patch: [16000, 16000, 16000]\n", "GB of memory"),
    "a patch off the stride": ("patch: [16, 16, 16]\n", "patch: [17, 16, 16]\n", "multiple"),
    "spacing": ("spacing: [", "spacing: [1.0e-9, 1.0e-9, 1.0e-9] #", "GB of memory"),
}


@pytest.mark.parametrize("what", HUGE)
def test_a_run_that_claims_a_huge_size_is_refused(strange, phantoms, tmp_path, what):
    old, new, words = HUGE[what]
    run = strange()
    head, plan, rest = (run / "config.yaml").read_text().partition("\nplan:")
    if old in plan + rest:
        (run / "config.yaml").write_text(head + plan + rest.replace(old, new, 1))
    else:
        (run / "config.yaml").write_text(head.replace(old, new, 1) + plan + rest)
    scan = phantoms / "imagesTr" / "phantom_000.nii.gz"
    with pytest.raises(InputError, match=words):
        api.predict(run, scan, tmp_path / "out", quiet=True)
    assert not holds(tmp_path / "out")


def test_a_checkpoint_that_claims_a_huge_size_is_refused(strange, phantoms, tmp_path):
    """A sparse file: a terabyte that takes no room on the disk."""
    run = strange()
    header = (
        b'{"__metadata__": {"kind": "dcamt checkpoint 1", "state": "{}"}, "network.x": '
        b'{"dtype": "F32", "shape": [250000000000], "data_offsets": [0, 1000000000000]}}'
    )
    with (run / "last.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 10**12)
    with pytest.raises(InputError, match=r"last\.safetensors"):
        api.predict(run, phantoms, tmp_path / "out", quiet=True)


@pytest.mark.parametrize("name", ["config.yaml", "last.safetensors"])
def test_a_pipe_in_place_of_a_file_is_refused(strange, phantoms, tmp_path, name):
    run = strange()
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(InputError, match=run.name):
        api.predict(run, phantoms, tmp_path / "out", quiet=True)


def test_a_message_is_one_printable_line(cli, tmp_path):
    folder = tmp_path / "a\nb\x1b[31m"
    folder.mkdir()
    code, _, errors = cli("inspect", folder)
    assert code == 2
    assert errors.count("\n") == 1
    assert errors.rstrip().isprintable()
    assert "a\\nb\\x1b[31m" in errors
    assert len(str(InputError("x" * 10**6))) < 1100


def test_a_case_name_as_long_as_a_name_may_be(tmp_path):
    path = tmp_path / f"{'x' * 240}\u00fc.nii.gz"
    write_text(path, "all of it")
    assert path.read_text() == "all of it"
    assert list(tmp_path.iterdir()) == [path]


def test_scores_are_not_written_over_a_scan(phantoms, tmp_path):
    out = tmp_path / "a.nii.gz"
    out.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"holds no scores"):
        api.evaluate(phantoms / "labelsTr", phantoms, out)
    assert out.read_bytes() == b"mine"
    for _ in range(2):
        api.evaluate(phantoms / "labelsTr", phantoms, tmp_path / "scores")
