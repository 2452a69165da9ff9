"""How soon `dcamt view` shows a scan of 512 x 512 x 400 voxels with its segmentation.

    python benchmarks/bench_view.py [--folder FOLDER] [--times 3]

Draws both (210 MB of int16, gzipped), serves them and opens the page in Chromium, which draws with
the processor here as there is no graphics card. The time runs from the request of the page to the
first slices with their overlay; the structures in 3D follow. Prints a line a time, with what
reading and packing took of it, and the load of the machine.
"""

import argparse
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from dcamt.runs.serve import make_server
from dcamt.runs.view import show

SHAPE = (512, 512, 400)
AFFINE = np.diag([-0.8, -0.8, 1.0, 1.0])
ARGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


def draw(folder: Path) -> None:
    """A body of noise with an ellipsoid of 180 x 150 x 130 voxels, as a large organ is."""
    noise = np.random.default_rng(0).integers(-30, 30, SHAPE[:2], np.int16)
    x, y, z = (np.arange(n, dtype=np.float32) for n in SHAPE)
    flat = ((x[:, None] - 250) / 90) ** 2 + ((y - 260) / 75) ** 2
    body = ((x[:, None] - 256) / 230) ** 2 + ((y - 256) / 180) ** 2 < 1
    scan, label = np.empty(SHAPE, np.int16), np.zeros(SHAPE, np.uint8)
    for k in range(SHAPE[2]):
        inside = flat + ((z[k] - 210) / 65) ** 2 < 1
        scan[..., k] = np.where(body, 40 + 80 * inside + np.roll(noise, 37 * k, 0), -1000)
        label[..., k] = inside
    nib.openers.Opener.default_compresslevel = 1
    nib.save(nib.Nifti1Image(scan, AFFINE), folder / "scan.nii.gz")
    nib.save(nib.Nifti1Image(label, AFFINE), folder / "segmentation.nii.gz")


def main() -> None:
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--times", type=int, default=3)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    if not (folder / "segmentation.nii.gz").exists():
        draw(folder)
    shown = show([folder / "scan.nii.gz", folder / "segmentation.nii.gz"])
    server = make_server(shown.page, shown.cases)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    answers, took = server.answers, []

    def timed(path: str, query: str) -> tuple[str, bytes] | None:
        begin = time.monotonic()
        found = answers(path, query)
        took.append((path, time.monotonic() - begin, len(found[1]) if found else 0))
        return found

    server.answers = timed
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGS)
        for _ in range(arguments.times):
            took.clear()
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            begin, before = time.monotonic(), os.times()
            page.goto(server.address)
            # Set once all that was asked of the graphics card is on the screen.
            page.wait_for_selector("#viewer[data-shown=scan]", timeout=300_000)
            seconds, after = time.monotonic() - begin, os.times()
            busy = after.user + after.system - before.user - before.system
            (_, reading, size) = next(one for one in took if one[0].startswith("case"))
            print(
                f"{seconds:.1f} s, of them {reading:.1f} s reading ({busy:.1f} s of processor), "
                f"{size / 1e6:.1f} MB sent; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
            )
            page.close()
        browser.close()
    server.shutdown()
    if arguments.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
