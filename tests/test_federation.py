"""What sites of a federation tell each other."""

import json
import math
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dcamt.config import DataConfig
from dcamt.data.dataset import Dataset, read_dataset
from dcamt.data.plan import Fingerprint, make_plan, sixteen
from dcamt.data.survey import fingerprint, survey
from dcamt.errors import InputError
from dcamt.federation import SiteUpdate, agree, average, refusal, summarise

CT = Dataset(Path("secret"), "secret", ("CT",), ("background", "liver"), None, ())


def scans(count, seed):
    """A fingerprint of so many scans, with intensities in whole HU."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(30, 60, (count, 3))
    return Fingerprint(
        whole=sizes,
        shapes=sizes - rng.integers(0, 5, (count, 3)),
        spacings=rng.uniform(0.7, 2.5, (count, 3)).round(3),
        inside=rng.uniform(0.5, 1, count),
        lost=0,
        foreground=rng.integers(-120, 300, (500, 1)).astype(np.float32),
    )


def pooled(*found):
    parts = {
        name: np.concatenate([getattr(one, name) for one in found])
        for name in ("whole", "shapes", "spacings", "inside", "foreground")
    }
    return Fingerprint(**parts, lost=0)


def update(value, cases=1):
    return SiteUpdate({"w": torch.full((2, 3), float(value)), "steps": torch.tensor(4)}, cases, {})


@pytest.mark.parametrize("window", [None, (-100.0, 200.0)])
def test_the_plan_is_that_of_all_scans_in_one_place(window):
    data = DataConfig(window=window)
    sites = {"north": scans(3, 1), "south": scans(5, 2)}
    summaries = {name: summarise(CT, found, data) for name, found in sites.items()}
    ours = agree(summaries, data, sixteen).model_dump()
    whole = make_plan(CT, pooled(*sites.values()), data).model_dump()
    (scaled,), (expected,) = ours.pop("normalization"), whole.pop("normalization")
    assert ours == whole
    assert scaled["scheme"] == "window"
    if window is None:  # in whole HU a histogram loses nothing
        assert scaled == pytest.approx(expected, abs=1e-4)
    else:
        assert scaled == pytest.approx(expected, abs=300 / 4095)


def test_a_summary_names_nobody_and_holds_no_intensity_that_is_not_needed(phantoms):
    dataset = read_dataset(phantoms)
    names = [case.name for case in dataset.cases]
    seen = survey(dataset, names, DataConfig())
    text = json.dumps(asdict(summarise(seen.dataset, fingerprint(seen.looks), DataConfig())))
    assert not any(name in text for name in (*names, str(phantoms), "phantom"))
    assert json.loads(text)["histograms"] == [None]  # each scan is scaled by itself
    assert len(text) < 5000


def test_scans_of_a_summary_come_in_order_of_size():
    found = scans(4, 1)
    turned = Fingerprint(
        **{n: getattr(found, n)[::-1] for n in ("whole", "shapes", "spacings", "inside")},
        lost=0,
        foreground=found.foreground[::-1],
    )
    assert summarise(CT, found, DataConfig()) == summarise(CT, turned, DataConfig())


def test_a_site_without_labels_needs_to_name_no_class():
    labelled = summarise(CT, scans(3, 1), DataConfig())
    bare = replace(scans(2, 2), foreground=np.empty((0, 1), np.float32))
    unlabelled = summarise(replace(CT, classes=()), bare, DataConfig())
    plan = agree({"a": unlabelled, "b": labelled}, DataConfig(), sixteen)
    assert plan.classes == ("background", "liver")
    with pytest.raises(InputError, match="no site has a label"):
        agree({"a": unlabelled}, DataConfig(), sixteen)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"classes": ["background", "tumour"]},
            "classes: background, liver and background, tumour",
        ),
        ({"channels": ["MR"]}, "channels: CT and MR"),
        ({"ignore": 2}, "the ignored label: None and 2"),
    ],
)
def test_sites_that_differ_are_told(change, what):
    one = summarise(CT, scans(2, 1), DataConfig())
    with pytest.raises(InputError, match=f"sites a and b differ in {what}"):
        agree({"a": one, "b": replace(one, **change)}, DataConfig(), sixteen)


def test_the_mean_counts_each_site_by_its_scans():
    found = average([update(1.0, cases=3), update(5.0, cases=1)])
    assert torch.equal(found["w"], torch.full((2, 3), 2.0))
    assert found["steps"] == 4
    assert found["steps"].dtype == torch.int64


def test_one_site_alone_gets_back_its_weights_to_the_last_bit():
    sent = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(average([SiteUpdate({"w": sent}, 7, {})])["w"], sent)


def test_the_mean_is_that_of_flower(monkeypatch):
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    flower = pytest.importorskip(
        "flwr.server.strategy.aggregate", reason="flwr is not installed: pip install flwr==1.42.0"
    )
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    draw = torch.Generator().manual_seed(0)
    sent = [SiteUpdate({"w": torch.randn(50, 3, generator=draw)}, n, {}) for n in (3, 8, 1)]
    (expected,) = flower.aggregate([([one.weights["w"].numpy()], one.cases) for one in sent])
    np.testing.assert_allclose(average(sent)["w"].numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("weights", "cases", "why"),
    [
        ({"w": torch.zeros(2, 3), "steps": torch.tensor(4)}, 1, None),
        ({"w": torch.full((2, 3), torch.nan), "steps": torch.tensor(4)}, 1, "w is not finite"),
        ({"w": torch.full((2, 3), torch.inf), "steps": torch.tensor(4)}, 1, "w is not finite"),
        ({"w": torch.zeros(3, 2), "steps": torch.tensor(4)}, 1, "w has another shape"),
        ({"w": torch.zeros(2, 3).half(), "steps": torch.tensor(4)}, 1, "w has another shape or"),
        ({"w": torch.zeros(2, 3)}, 1, "other weights"),
        ({"w": torch.zeros(2, 3), "steps": torch.tensor(4)}, 0, "no scan"),
    ],
)
def test_an_update_that_cannot_be_used_is_refused(weights, cases, why):
    found = refusal(SiteUpdate(weights, cases, {}), update(0).weights)
    assert found is None if why is None else why in found


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused(value) -> None:
    sent = update(0)
    assert refusal(replace(sent, losses={"dice": [0.1, 0.2]}), sent.weights) is None
    found = refusal(replace(sent, losses={"dice": [0.1, value]}), sent.weights)
    assert found == "the loss dice is not finite"
