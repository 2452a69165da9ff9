"""Which scans to label next."""

import csv
import shutil

import numpy as np
import pytest
import torch

from dcamt import api
from dcamt.data.volume import write_volume
from dcamt.networks.vnet import VNet
from dcamt.runs.rank import bottleneck, spread


@pytest.fixture
def scans(tmp_path):
    """Four scans of noise."""
    for seed, name in enumerate("abcd"):
        values = np.random.default_rng(seed).normal(300, 60, (20, 18, 16)).astype(np.float32)
        write_volume(tmp_path / "scans" / f"{name}.nii.gz", values, np.eye(4))
    return tmp_path / "scans"


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_scan_has_its_place(cli, tiny_run, scans, tmp_path):
    out = tmp_path / "ranking.csv"
    code, _, err = cli("rank", tiny_run, scans, "--out", out)
    assert code == 0
    assert "4/4" in err
    found = table(out)
    assert list(found[0]) == ["rank", "case", "uncertainty", "disagreement"]
    assert [row["rank"] for row in found] == ["1", "2", "3", "4"]
    assert sorted(row["case"] for row in found) == list("abcd")
    for row in found:
        assert 0 < float(row["uncertainty"]) <= 1
        assert 0 <= float(row["disagreement"]) <= 1


def test_a_budget_lists_the_first_scans(cli, tiny_run, scans, tmp_path):
    whole, few = tmp_path / "whole.csv", tmp_path / "few.csv"
    assert cli("rank", tiny_run, scans, "--out", whole, "-q")[0] == 0
    assert cli("rank", tiny_run, scans, "--out", few, "--budget", "2", "-q")[0] == 0
    assert table(few) == table(whole)[:2]
    code, _, err = cli("rank", tiny_run, scans, "--out", tmp_path / "no.csv", "--budget", "0")
    assert code == 2
    assert "--budget 0: give a number of scans" in err


def test_cases_whose_label_the_run_has_are_not_asked_for(tiny_run, phantoms, tmp_path):
    found = api.rank(tiny_run, phantoms, tmp_path / "ranking.csv", quiet=True)
    assert len(found) == 3  # of six: two are labelled, and one validates
    exported = tmp_path / "exported"
    api.export(tiny_run, exported)  # it knows no case
    assert len(api.rank(exported, phantoms, tmp_path / "all.csv", quiet=True)) == 6


@pytest.mark.parametrize("text", ["{", '{"labeled": 3}'])
def test_a_broken_split_is_told_in_one_sentence(cli, tiny_run, scans, tmp_path, text):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (run / "split.json").write_text(text)
    code, _, err = cli("rank", run, scans, "--out", tmp_path / "ranking.csv", "-q")
    assert (code, err.count("\n")) == (2, 1)
    assert "split.json: " in err


def test_one_network_has_no_disagreement(cli, phantoms, tiny, tmp_path, scans):
    settings = [value for value in tiny if not value.startswith("method.")]
    run = api.train(
        phantoms,
        tmp_path / "run",
        method="vnet",
        splits=phantoms / "splits.json",
        set=settings,
        quiet=True,
    )
    out = tmp_path / "ranking.csv"
    assert cli("rank", run, scans, "--out", out, "--by", "uncertainty", "-q")[0] == 0
    found = table(out)
    assert {row["disagreement"] for row in found} == {""}
    values = [float(row["uncertainty"]) for row in found]
    assert values == sorted(values, reverse=True)


def test_a_random_order_is_that_of_the_seed(tiny_run, scans, tmp_path):
    orders = [
        [ranked.case for ranked in api.rank(tiny_run, scans, tmp_path / name, by="random")]
        for name in ("one.csv", "two.csv")
    ]
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == list("abcd")


def test_a_damaged_scan_does_not_keep_the_others_from_being_ranked(cli, tiny_run, scans, tmp_path):
    (scans / "b.nii.gz").write_bytes((scans / "b.nii.gz").read_bytes()[:-100])
    out = tmp_path / "ranking.csv"
    code, _, err = cli("rank", tiny_run, scans, "--out", out, "-q")
    assert (code, err.count("\n")) == (2, 1)
    assert "b.nii.gz" in err
    assert sorted(row["case"] for row in table(out)) == list("acd")


def test_a_ranking_replaces_nothing(cli, tiny_run, scans, tmp_path):
    out = tmp_path / "ranking.csv"
    out.write_text("mine")
    code, _, err = cli("rank", tiny_run, scans, "--out", out, "-q")
    assert (code, err.count("\n")) == (2, 1)
    assert "exists already" in err
    assert out.read_text() == "mine"


def test_a_ranking_is_not_written_among_the_files_of_a_data_set(cli, tiny_run, phantoms, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    out = data / "imagesTr" / "ranking.csv"
    assert cli("rank", tiny_run, data, "--out", out, "-q")[0] == 2
    assert not out.exists()


# ------------------------------------------------------------------------------------- the order


def test_scans_of_one_kind_do_not_fill_the_list():
    rng = np.random.default_rng(0)
    kinds = np.repeat([[0, 0, 9], [0, 9, 0], [9, 0, 0]], 10, axis=0)
    features = (kinds + rng.normal(0, 0.1, kinds.shape)).astype(np.float32)
    doubts = np.linspace(0.9, 0.1, 30)  # the first ten scans are the least sure
    order = spread(features, doubts)
    assert sorted(order) == list(range(30))
    assert sorted(i // 10 for i in order[:3]) == [0, 1, 2]
    assert order[0] == 0


def test_scans_that_are_copies_are_ordered_by_doubt():
    order = spread(np.ones((4, 3), np.float32), np.array([0.2, 0.4, 0.1, 0.3]))
    assert order == [1, 3, 0, 2]


def test_of_kinds_as_different_the_doubtful_ones_come_first():
    features = 5 * np.eye(6, dtype=np.float32)
    doubts = np.array([0.1, 0.5, 0.2, 0.6, 0.3, 0.4])
    assert spread(features, doubts) == [3, 1, 5, 4, 2, 0]


@pytest.mark.parametrize("shape", [(10, 40, 16), (16, 16, 16), (33, 20, 50)])
def test_an_image_of_any_size_has_one_vector_of_features(shape):
    network = VNet(width=2).eval()
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    found = bottleneck(network, image, (16, 16, 16), torch.device("cpu"))
    assert found.shape == (network.features,)
    assert np.isfinite(found).all()
