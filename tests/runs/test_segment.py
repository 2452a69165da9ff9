"""Several scans at once, and scans that arrive one by one."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dcamt import api
from dcamt.data.dataset import Case
from dcamt.data.scans import scans_so_far
from dcamt.data.volume import write_volume
from dcamt.errors import InputError
from dcamt.inference.predict import Extras
from dcamt.reporting.console import plain_console
from dcamt.runs.build import load_run
from dcamt.runs.segment import Request, segmenter
from dcamt.runs.watch import watch


def write_scan(path, seed=0):
    values = np.random.default_rng(seed).normal(300, 60, (20, 18, 16)).astype(np.float32)
    write_volume(path, values, np.eye(4))


@pytest.fixture
def scans(tmp_path):
    """Three scans of noise."""
    for seed, name in enumerate("abc"):
        write_scan(tmp_path / "scans" / f"{name}.nii.gz", seed)
    return tmp_path / "scans"


def dcamt(*arguments):
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "dcamt", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for(path, process, seconds=120):
    begin = time.monotonic()
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() - begin < seconds, f"no {path.name}"
        time.sleep(0.1)


# -------------------------------------------------------------------------------- several at once


def test_several_at_once_give_the_same_segmentations(tiny_run, scans, tmp_path, capsys):
    (scans / "bad.nii.gz").write_bytes(b"\x1f\x8b no scan")
    for jobs in (1, 2):
        with pytest.raises(InputError, match=r"bad\.nii\.gz"):
            api.predict(tiny_run, scans, tmp_path / str(jobs), jobs=jobs)
    for name in "abc":
        one, two = (tmp_path / jobs / f"{name}.nii.gz" for jobs in "12")
        assert one.read_bytes() == two.read_bytes()
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("4/4  ")]
    assert "bad.nii.gz" in told[1]  # side by side what fails comes last


class _Deadly(type(Path())):
    """A path that ends whatever process it is sent to."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_scan_that_kills_its_process_takes_no_other_with_it(tiny_run, scans, tmp_path):
    cases = [
        Case(name, (kind(scans / f"{name}.nii.gz"),), None)
        for name, kind in (("a", type(scans)), ("b", _Deadly), ("c", type(scans)))
    ]
    files = {case.name: [tmp_path / f"{case.name}.nii.gz"] for case in cases}
    config, method = load_run(tiny_run)
    request = Request(tiny_run, "last", config.predict, Extras(), None, "cpu", "torch")
    with segmenter(request, config, method, 2, plain_console(quiet=True)) as segment:
        found = {case.name: outcome for case, outcome in segment(cases, files)}
    assert found["a"] == found["c"] == ()
    assert "b.nii.gz: its process was killed" in str(found["b"])
    assert [path.exists() for (path,) in files.values()] == [True, False, True]


def test_fewer_than_one_at_once_are_refused(tiny_run, scans, tmp_path):
    with pytest.raises(InputError, match="--jobs 0: ask for at least 1"):
        api.predict(tiny_run, scans, tmp_path / "out", jobs=0)


def test_a_scan_that_takes_long_tells_how_much_is_done(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dcamt.runs.segment.TOLD_EVERY", 0.0)
    write_volume(tmp_path / "a.nii.gz", np.zeros((100, 18, 16), np.float32), np.eye(4))
    api.predict(tiny_run, tmp_path / "a.nii.gz", tmp_path / "out", overlap=0.5)
    told = re.findall(
        r"a: window (\d+) of 24, \d\.\d min left of this scan", capsys.readouterr().err
    )
    assert 0 < int(told[0]) < 24


def test_prediction_loads_neither_monai_nor_fabric(tiny_run, scans, tmp_path):
    """To import them takes longer than to segment a scan."""
    code = (
        "import sys; from dcamt import api; "
        "api.predict(*sys.argv[1:], quiet=True); "
        "print({'monai', 'lightning_fabric', 'scipy.stats', 'torch._dynamo'} & {*sys.modules})"
    )
    arguments = [tiny_run, scans / "a.nii.gz", tmp_path / "out"]
    found = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "set()\n"


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
@pytest.mark.parametrize("jobs", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_ctrl_c_ends_it_in_one_sentence_and_leaves_nothing_half_done(
    tiny_run, scans, tmp_path, jobs
):
    for k in range(40):
        write_scan(scans / f"more{k}.nii.gz", k)
    out = tmp_path / "out"
    process = dcamt("predict", tiny_run, scans, "--out", out, "--jobs", jobs)
    wait_for(out / "a.nii.gz", process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "dcamt: stopped by SIGINT; continue with --resume"
    assert "Traceback" not in said
    api.predict(tiny_run, scans, out, resume=True, quiet=True)
    assert len(list(out.glob("*.nii.gz"))) == 43
    assert not list(out.glob(".tmp-*"))


# ------------------------------------------------------------------------------- a folder watched


def watched(run, folder, out):
    """A process that watches, and looks five times a second."""
    code = (
        "import sys; from dcamt.runs import watch; watch.SETTLE = 0.2; "
        "from dcamt.cli import main; main()"
    )
    command = ["predict", run, folder, "--out", out, "--watch"]
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, command)], stderr=subprocess.PIPE, text=True
    )


def end(process):
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    return said


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
def test_what_arrives_whole_is_segmented_once_and_a_kill_loses_nothing(tiny_run, scans, tmp_path):
    arriving, out = tmp_path / "arriving", tmp_path / "out"
    arriving.mkdir()
    process = watched(tiny_run, arriving, out)
    try:
        wait_for(out / "predict.json", process)  # it watches an empty folder
        shutil.copy(scans / "a.nii.gz", arriving)
        wait_for(out / "a.nii.gz", process)
        # One that comes in two pieces, the second of them later.
        whole = (scans / "b.nii.gz").read_bytes()
        (arriving / "b.nii.gz").write_bytes(whole[:200])
        time.sleep(1.5)
        assert not (out / "b.nii.gz").exists()
        process.kill()
        process.wait()
        first = (out / "a.nii.gz").stat().st_mtime_ns
        process = watched(tiny_run, arriving, out)
        (arriving / "b.nii.gz").write_bytes(whole)
        wait_for(out / "b.nii.gz", process)
        shutil.copy(scans / "c.nii.gz", arriving / "a.nii.gz")
        shutil.copy(scans / "c.nii.gz", arriving)
        wait_for(out / "c.nii.gz", process)
        time.sleep(1.0)
        said = end(process)
    finally:
        process.kill()
    assert "a.nii.gz: changed after it was segmented" in said
    assert (out / "a.nii.gz").stat().st_mtime_ns == first
    assert {path.name for path in out.glob("*.nii.gz")} == {"a.nii.gz", "b.nii.gz", "c.nii.gz"}


def test_a_folder_that_cannot_be_read_for_a_while_ends_no_watching():
    """Told once it is seen twice. No system can list a folder of so long a name."""
    said = io.StringIO()
    given = (
        Path("x" * 300),
        1,
        Path("out"),
        0.5,
        lambda arrived: {},
        Console(file=said, width=2000),
    )
    watching = threading.Thread(target=watch, args=given, daemon=True)
    watching.start()
    begin = time.monotonic()
    while "cannot be read (File name too long)" not in said.getvalue():
        assert watching.is_alive() and time.monotonic() - begin < 30
        time.sleep(0.05)
    assert watching.is_alive()


def test_only_a_folder_of_scans_can_be_watched(tiny_run, scans, phantoms, tmp_path):
    for place in (scans / "a.nii.gz", tmp_path / "nowhere"):
        with pytest.raises(InputError, match="is no folder of scans"):
            api.predict(tiny_run, place, tmp_path / "out", watch=True)
    with pytest.raises(InputError, match="give the folder of its images"):
        api.predict(tiny_run, phantoms, tmp_path / "out", watch=True)
    with pytest.raises(InputError, match="is the name of one file"):
        api.predict(tiny_run, scans, tmp_path / "out.nii.gz", watch=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="is the folder of the scans"):
        api.predict(tiny_run, empty, empty, watch=True)
    assert not list(empty.iterdir())


def test_a_scan_that_lacks_a_channel_has_not_arrived(tmp_path):
    for name in ("a_0000", "a_0001", "b_0000"):
        write_scan(tmp_path / f"{name}.nii.gz")
    found, problems = scans_so_far(tmp_path, 2)
    assert [case.name for case in found] == ["a"]
    assert len(problems) == 1 and "case b has 1 channel file(s)" in problems[0]


def test_a_name_does_not_depend_on_what_else_arrives(tmp_path):
    write_scan(tmp_path / "a_0000.nii.gz")
    assert [case.name for case in scans_so_far(tmp_path, 1)[0]] == ["a"]
    write_scan(tmp_path / "b.nii.gz")
    assert [case.name for case in scans_so_far(tmp_path, 1)[0]] == ["a", "b"]


def test_a_series_that_lies_too_deep_is_told(tmp_path, write_series):
    """As a router leaves it: the slices have no ending. Segmentations may lie in the folder too."""
    series = tmp_path / "inbox" / "patient" / "study" / "series"
    for path in write_series(series, np.zeros((4, 4, 3)), np.eye(4)).iterdir():
        path.rename(path.with_suffix(""))
    write_scan(tmp_path / "inbox" / "out" / "deep" / "a.nii.gz")
    found, problems = scans_so_far(tmp_path / "inbox", 1, (tmp_path / "inbox" / "out").resolve())
    assert found == []
    (problem,) = problems
    assert problem.startswith(f"{tmp_path / 'inbox' / 'patient'}: holds scans further down")


def test_of_two_scans_of_one_name_neither_is_taken(tmp_path):
    for name in ("a", "a_0000", "b"):
        write_scan(tmp_path / f"{name}.nii.gz")
    found, problems = scans_so_far(tmp_path, 1)
    assert [case.name for case in found] == ["b"]
    assert problems == [f"{tmp_path}: a and a_0000 are scans of one name; rename one of them"]
