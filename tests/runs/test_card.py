"""The model card, of runs that were really trained."""

import json
import re
import shutil

import pytest

from dcamt import api
from dcamt.errors import InputError


@pytest.fixture(scope="module")
def cases(phantoms):
    split = json.loads((phantoms / "splits.json").read_text())
    return {part: len(names) for part, names in split.items()}


def row(card, name):
    """The cells of the table row that begins with ``name``."""
    line = next(line for line in card.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("| ").split("|")[1:]]


def test_a_run_states_data_protocol_and_figures(tiny_run, cases):
    card = api.card([tiny_run])
    assert card.startswith("# Model card: dca-mt on Phantom\n")
    assert "Not a medical device" in card and "DCA-MT: two networks" in card
    assert row(card, "trained with labels") == [f"{cases['labeled']} cases"]
    assert row(card, "trained without labels") == [f"{cases['unlabeled']} cases"]
    assert row(card, "iterations") == ["3"]
    scores = json.loads((tiny_run / "validation.json").read_text())
    assert row(card, "mean")[0].startswith(f"{100 * scores['mean']['dice']:.2f}")
    assert f"{cases['val']} validation case" in card


def test_what_the_data_set_stated_is_recorded_when_the_run_begins(tiny_run, tmp_path):
    """It may have moved since: a card that cannot read it must not say that it states nothing."""
    assert json.loads((tiny_run / "data.json").read_text()) == {
        "name": "Phantom",
        "licence": "",
        "chosen": [],
    }
    assert row(api.card([tiny_run]), "licence of the data")[0].startswith("not stated by the data")
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    for licence, shown in (("CC BY-SA 4.0", "CC BY-SA 4.0"), ("x" * 900, "x" * 200 + " ...")):
        (run / "data.json").write_text(json.dumps({"name": "Elsewhere", "licence": licence}))
        card = api.card([run])
        assert card.startswith("# Model card: dca-mt on Elsewhere\n")
        assert row(card, "licence of the data") == [shown]
        assert f"whose licence ({shown}) also binds" in card
    (run / "data.json").unlink()  # as older runs
    card = api.card([run])
    assert card.startswith("# Model card: dca-mt on data\n")
    assert row(card, "licence of the data") == ["not recorded: ask who gave you the data"]
    (run / "data.json").write_text("[]")
    with pytest.raises(InputError, match=r"data\.json: must hold"):
        api.card([run])


def test_other_metrics_are_shown(tiny_run, phantoms, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    for folder, metrics in ((run, "nsd,hd"), (other, "dice,nsd")):
        shutil.copytree(tiny_run, folder)
        api.evaluate(folder / "validation", phantoms, folder / "validation.json", metrics=metrics)
    card = api.card([run])
    assert "| class | NSD (%) | HD (mm) |\n|---|---|---|\n" in card
    assert "NSD is within 1 mm." in card
    assert "Worst structure" not in card
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(re.sub(r"(?m)^seed: .*$", "seed: 7", config))
    assert "| class | NSD (%) |\n" in api.card([run, other])
    for options in ({"unit": "voxels"}, {"tolerance": 2.0}):
        api.evaluate(
            other / "validation", phantoms, other / "validation.json", metrics="nsd", **options
        )
        with pytest.raises(InputError, match="another unit or with another tolerance"):
            api.card([run, other])


def test_several_runs_show_the_spread_over_seeds(tiny_run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(re.sub(r"(?m)^seed: .*$", "seed: 7", config))
    scores = json.loads((other / "validation.json").read_text())
    first = scores["mean"]["dice"]
    scores["mean"]["dice"] = first + 0.02
    (other / "validation.json").write_text(json.dumps(scores))
    card = api.card([tiny_run, other])
    # Two values 0.02 apart: the sample standard deviation is 0.02 / sqrt(2).
    assert row(card, "mean")[0] == f"{100 * (first + 0.01):.2f} ± 1.41"
    assert "7, " in row(card, "seeds")[0]


def test_runs_of_different_settings_are_refused(tiny_run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("momentum: 0.9", "momentum: 0.8"))
    with pytest.raises(InputError, match=r"differs from .* in more than the seed"):
        api.card([tiny_run, other])


@pytest.mark.parametrize("key", ["teacher", "federation", "init"])
def test_runs_of_different_origin_are_refused(tiny_run, tmp_path, key):
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    versions = json.loads((other / "versions.json").read_text())
    (other / "versions.json").write_text(json.dumps({**versions, key: "another"}))
    with pytest.raises(InputError, match=r"differs from .* in more than the seed"):
        api.card([tiny_run, other])


def test_a_run_without_validation_claims_no_figures(tiny_run, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_run, bare)
    (bare / "validation.json").unlink()
    assert "None: the run has no validation cases" in api.card([bare])
    with pytest.raises(InputError, match="no such run folder"):
        api.card([tmp_path / "nothing"])
