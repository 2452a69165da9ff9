"""Peak memory of ``dcamt predict`` on a large scan: a Markdown row.

    python benchmarks/bench_memory.py                       # 3 minutes on 2 cores
    python benchmarks/bench_memory.py --resampled           # the scan has other voxels than the run

The scan is 512x512x400 voxels of int16 with scale and offset, left and back first as scanners
write it; the run is a DCA-MT of two classes, as narrow as can be: a network's width decides what
one window takes, and the whole-volume arrays, which hold the peak, do not depend on it.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
from fresh_process import tree_memory

from dcamt import api
from dcamt.data.phantom import write_phantoms

SIZE = (512, 512, 400)
SETTINGS = (
    "device=cpu",
    "network.width=1",
    "data.patch=[112,112,80]",
    "data.spacing=[1,1,1]",
    "predict.overlap=0",
    "train.iterations=1",
    "train.validate_every=0",
    "method.heads=1",
    "method.head_size=4",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=SIZE, help="voxels of the scan")
    parser.add_argument("--resampled", action="store_true", help="voxels of 0.98 mm, not 1")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        place = Path(folder)
        run = make_run(place)
        scan = write_scan(place, options.size, 0.98 if options.resampled else 1.0)
        peak, seconds = peak_memory(run, scan, place / "out")
    size = "x".join(map(str, options.size))
    print("| scan | classes | peak (GiB) | peak (GB) | seconds |\n|---|---|---|---|---|")
    what = f"{size} int16{', resampled' if options.resampled else ''}"
    print(f"| {what} | 2 | {peak / 1024:.2f} | {peak * 2**20 / 1e9:.2f} | {seconds:.0f} |")


def make_run(place: Path) -> Path:
    """A run of one iteration on small phantoms."""
    write_phantoms(place / "data", 5, (20, 18, 16), seed=0, labeled=2, val=1)
    splits = place / "data" / "splits.json"
    return api.train(place / "data", place / "run", splits=splits, set=SETTINGS, quiet=True)


def write_scan(place: Path, size: tuple[int, int, int], spacing: float) -> Path:
    """Noise around a bright block, never 0, so that nothing is cropped away."""
    rng = np.random.default_rng(0)
    array = rng.integers(1, 200, size, np.int16)
    array[tuple(slice(n // 3, 2 * n // 3) for n in size)] += 800
    image = nib.Nifti1Image(array, np.diag([-spacing, -spacing, spacing, 1.0]))
    image.header.set_slope_inter(0.5, -1024)
    path = place / "scan.nii.gz"
    nib.save(image, path)
    return path


def peak_memory(run: Path, scan: Path, out: Path) -> tuple[float, float]:
    """Highest memory (MiB) of the command and its seconds."""
    command = [sys.executable, "-m", "dcamt.cli", "predict", run, scan, "--out", out, "--quiet"]
    begin, peak = time.monotonic(), 0.0
    process = subprocess.Popen([str(part) for part in command])
    while process.poll() is None:
        peak = max(peak, tree_memory(process.pid))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"predict failed with exit code {process.returncode}")
    return peak, time.monotonic() - begin


if __name__ == "__main__":
    main()
