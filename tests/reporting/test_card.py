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
    assert "Not a medical device" in card and "DCA-MT: two V-Nets" in card
    assert row(card, "trained with labels") == [f"{cases['labeled']} cases"]
    assert row(card, "trained without labels") == [f"{cases['unlabeled']} cases"]
    assert row(card, "iterations") == ["3"]
    scores = json.loads((tiny_run / "validation.json").read_text())
    assert row(card, "mean")[0].startswith(f"{100 * scores['mean']['dice']:.2f}")
    assert f"{cases['val']} validation case" in card


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


def test_a_run_without_validation_claims_no_figures(tiny_run, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_run, bare)
    (bare / "validation.json").unlink()
    assert "None: the run has no validation cases" in api.card([bare])
    with pytest.raises(InputError, match="no such run folder"):
        api.card([tmp_path / "nothing"])
