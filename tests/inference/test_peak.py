"""Memory that ``predict`` takes: told beforehand, and what happens where there is too little."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dcamt import api

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells and limits")

MEASURE = """
import json, re, sys, threading, time
from pathlib import Path
from dcamt import api
from dcamt.inference import predict

def resident():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search("VmRSS:\\\\s*(\\\\d+)", status)[1])

read, tell = predict.read_image, predict.peak_memory
seen, told, done = [], [], threading.Event()

def watch():
    while not done.wait(0.01):
        seen.append(resident())

def note_start(*arguments):
    seen.append(resident())
    threading.Thread(target=watch, daemon=True).start()
    return read(*arguments)

def note_told(*arguments, **named):
    told.append(tell(*arguments, **named))
    return told[0]

predict.read_image, predict.peak_memory = note_start, note_told
run, scan, out, extras = sys.argv[1:]
api.predict(run, scan, out, device="cpu", overlap=0, quiet=True, **json.loads(extras))
done.set()
print(json.dumps([told[0], max(seen) - seen[0]]))
"""


def scan(path: Path, size: tuple[int, int, int], spacing: float) -> Path:
    """Noise that is nowhere 0, left and back first as scanners write it."""
    values = np.random.default_rng(0).integers(1, 200, size, np.int16)
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([-spacing, -spacing, spacing, 1.0])), path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, phantoms: Path, tiny: list[str]) -> Path:
    """A run whose windows are large enough for a large scan."""
    out = tmp_path_factory.mktemp("runs") / "large-windows"
    settings = [*tiny, "data.patch=[64,64,64]", "data.spacing=[1,1,1]", "train.iterations=1"]
    return api.train(phantoms, out, splits=phantoms / "splits.json", set=settings, quiet=True)


@pytest.mark.parametrize(
    ("size", "spacing", "extras"),
    [
        ((256, 256, 128), 1.0, {}),
        pytest.param((160, 160, 96), 1.5, {}, marks=pytest.mark.slow),
        pytest.param(
            (224, 224, 96),
            1.0,
            {"probabilities": True, "uncertainty": True},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["plain", "resampled", "maps"],
)
def test_what_is_told_is_what_is_taken(run, tmp_path, size, spacing, extras) -> None:
    path = scan(tmp_path / "a.nii.gz", size, spacing)
    arguments = [str(run), str(path), str(tmp_path / "out"), json.dumps(extras)]
    command = [sys.executable, "-c", MEASURE, *arguments]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    told, taken = json.loads(done.stdout.splitlines()[-1])
    print(f"told / taken: {told / taken:.2f}, {taken / 1e6:.0f} MB")
    assert 0.8 < told / taken < 1.4


def dcamt(limit: int, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """The command in ``limit`` bytes of address space."""

    def confine() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    command = [sys.executable, "-m", "dcamt.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=confine, check=False)


def test_a_scan_that_cannot_fit_is_refused_and_the_others_are_segmented(tiny_run, tmp_path) -> None:
    scan(tmp_path / "in" / "a_vast.nii.gz", (20, 20, 20), 60.0)
    scan(tmp_path / "in" / "b_large.nii.gz", (400, 400, 300), 1.0)
    scan(tmp_path / "in" / "z_sound.nii.gz", (20, 18, 16), 1.0)
    done = dcamt(1_600_000_000, "predict", tiny_run, tmp_path / "in", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "out").glob("*.nii*")] == ["z_sound.nii.gz"]
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"dcamt: {tmp_path / 'in' / 'a_vast.nii.gz'}: ")
    assert "GB are free here (of 1.6 GB); crop the scan" in last
    assert last.endswith("; these have no segmentation either: b_large")


IN_BETWEEN = """
import json
import sys
from functools import partial
from pathlib import Path
import numpy as np, torch
from dcamt.data.dataset import Case
from dcamt.reporting.console import plain_console
from dcamt.runs.segment import _one_by_one, segment_all

def work(images, output, observe):
    {"numpy": partial(np.ones, 10**9), "torch": partial(torch.ones, 10**9),
     "sound": partial(Path(output).write_text, "done")}[output.stem]()
    return ()

folder = Path(sys.argv[1])
scans = [Case(name, (folder / name,), None) for name in ("numpy", "torch", "sound")]
files = {scan.name: [folder / f"{scan.name}.txt"] for scan in scans}
quiet = plain_console(quiet=True)
print(json.dumps(segment_all(scans, files, partial(_one_by_one, work, quiet), quiet, many=True)))
"""


def test_memory_that_ends_in_between_does_not_stop_the_others(tmp_path: Path) -> None:
    def confine() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (3_000_000_000, 3_000_000_000))

    command = [sys.executable, "-c", IN_BETWEEN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=confine, check=False)
    assert (tmp_path / "sound.txt").read_text() == "done", done.stderr
    failed = json.loads(done.stdout)
    assert failed.keys() == {"numpy", "torch"}
    assert failed["numpy"].startswith(
        f"{tmp_path / 'numpy'}: cannot be segmented: there is not enough memory for another 8 GB "
        "(this process may use 3 GB); crop the scan, lower predict.batch"
    )


def test_a_training_that_does_not_fit(phantoms, tmp_path, tiny) -> None:
    large = [*tiny, "network.width=64", "data.patch=[112,112,80]"]
    sets = [part for value in large for part in ("--set", value)]
    splits = phantoms / "splits.json"
    done = dcamt(
        2_000_000_000, "train", phantoms, "--splits", splits, "--out", tmp_path / "run", *sets
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("dcamt: this training does not fit: there is not enough memory")
    assert "(this process may use 2 GB); lower train.labeled_batch" in last


def test_labels_that_are_too_large_to_be_measured(tmp_path: Path) -> None:
    label = np.zeros((420, 420, 320), np.uint8)
    label[10:-10, 10:-10, 10:-10] = 1
    (tmp_path / "labels").mkdir()
    nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / "labels" / "case.nii.gz")
    folder, out = tmp_path / "labels", tmp_path / "scores.json"
    done = dcamt(1_050_000_000, "evaluate", folder, folder, "--out", out)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(f"dcamt: {folder / 'case.nii.gz'}: ")
    assert "1.05 GB" in done.stderr
