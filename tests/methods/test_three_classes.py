"""Every method from a data set of three classes to a segmentation."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from dcamt import api
from dcamt.data.dataset import read_dataset
from dcamt.data.phantom import write_phantoms
from dcamt.data.volume import read_image, read_label
from dcamt.methods import METHODS
from dcamt.types import Batch, Progress


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five phantoms of background, atrium and veins, smaller than a patch along one axis."""
    root = tmp_path_factory.mktemp("three") / "data"
    write_phantoms(root, 5, (20, 18, 14), seed=3, labeled=2, val=1, classes=3)
    return root


class PowerCut(Exception):
    """Ends a training as nothing else would."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n not in ("dca-mt", "sassnet"))) for n in METHODS],
)
def test_a_method_trains_resumes_and_predicts(name, data, tmp_path, tiny, monkeypatch) -> None:
    kind, batches = METHODS[name], []
    step = kind.step

    def cut(self: object, batch: Batch, at: Progress, update: object) -> dict[str, torch.Tensor]:
        if at.iteration == 2 and len(batches) == 2:
            raise PowerCut
        batches.append(batch)
        return step(self, batch, at, update)

    monkeypatch.setattr(kind, "step", cut)
    settings = [s for s in tiny if not s.startswith("method.")]
    start = {"method": name, "splits": data / "splits.json", "set": settings, "quiet": True}
    with pytest.raises(PowerCut):
        api.train(data, tmp_path / "run", **start)
    batches.append(batches[-1])  # no second cut
    run = api.train(data, tmp_path / "run", resume=True, **start)
    assert {0, 1, 2} <= set(torch.cat([b.label_l.flatten() for b in batches]).tolist())
    with (run / "log.csv").open(newline="") as file:
        assert [row["iteration"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    scan = read_dataset(data).cases[-1].images[0]
    (path,) = (run / "validation").glob("*.nii.gz")
    label, image = read_label(path), read_image([scan])
    assert label.array.shape == image.array.shape[1:]
    np.testing.assert_allclose(label.affine, image.affine)
    assert set(np.unique(label.array)) <= {0, 1, 2}
