"""Runs with other plans, for what is exported, and the sites of a federation."""

import shutil

import nibabel as nib
import numpy as np
import pytest
import yaml

from dcamt.data.phantom import write_phantoms

PLANS = {
    "skull-stripped, another orientation and spacing": {
        "orientation": "LIA", "spacing": [1.3, 0.9, 1.7],
        "normalization": [{"scheme": "zscore", "masked": True}],
    },
    "a window, not cropped, windows by their stride": {
        "orientation": "PSR", "spacing": [0.8, 1.1, 0.6], "crop": False,
        "normalization": [
            {"scheme": "window", "low": 20.0, "high": 300.0, "mean": 100.0, "std": 50.0}
        ],
    },
    "from 0 to 1": {"normalization": [{"scheme": "minmax"}]},
}  # fmt: skip
STRIDE = {"stride": [5, 9, 16], "weighting": "constant", "overlap": 0.5, "batch": 3}


@pytest.fixture(scope="session")
def hospitals(tmp_path_factory):
    """A folder of three data sets: north, south and, without a label, east; read only."""
    root = tmp_path_factory.mktemp("sites")
    write_phantoms(root / "north", 5, (20, 18, 16), seed=3, labeled=2, val=1)
    write_phantoms(root / "south", 3, (18, 20, 16), seed=5, labeled=1, val=1)
    write_phantoms(root / "east", 2, (18, 16, 20), seed=7, labeled=1, val=1)
    for name in ("labelsTr", "splits.json", "dataset.json"):
        path = root / "east" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (root / "east" / "imagesTr").rename(root / "east" / "images")
    return root


@pytest.fixture(scope="session")
def settings(tiny):
    """Those of a tiny training but for its iterations, which a federation gives by rounds."""
    return [one for one in tiny if not one.startswith("train.iterations")]


@pytest.fixture(params=PLANS)
def other_plan(request, tiny_run, tmp_path):
    """The tiny run with another plan; its weights know nothing of that."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["plan"] |= PLANS[request.param]
    if "stride" in request.param:
        config["predict"] = STRIDE
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


@pytest.fixture
def turned_scan(phantoms, tmp_path):
    """A phantom that lies askew, with a hole and an empty border as scans without skull have."""
    image = nib.load(phantoms / "imagesTr" / "phantom_000.nii.gz").get_fdata(dtype=np.float32)
    image[:3] = image[:, :, -2:] = image[9:11, 8:10, 7:9] = 0
    turn = np.array([[0, -0.9, 0.1, 5], [1.2, 0, 0, -7], [0.1, 0, 1.1, 2], [0, 0, 0, 1]])
    path = tmp_path / "turned.nii.gz"
    nib.save(nib.Nifti1Image(image, turn), path)
    return path
