"""``dcamt pretrain``: scans alone teach, no label is opened, and it is as robust as training."""

import csv
import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dcamt import api
from dcamt.config import load_config
from dcamt.data.dataset import read_dataset
from dcamt.data.split import choose_split
from dcamt.errors import InputError
from dcamt.runs import train as training


@pytest.fixture
def settings(tiny):
    return [s for s in tiny if not s.startswith("method.")]


@pytest.fixture
def pretrained(phantoms, tmp_path, settings):
    """``pretrained(name, ...)`` pre-trains on phantoms and returns the folder."""

    def run(name="pre", data=phantoms, changes=(), **options):
        options = {"splits": data / "splits.json", "quiet": True} | options
        return api.pretrain(data, tmp_path / name, set=[*settings, *changes], **options)

    return run


@pytest.fixture
def data(phantoms, tmp_path):
    """A copy of the phantoms, to change files of."""
    shutil.copytree(phantoms, tmp_path / "data")
    return tmp_path / "data"


def assert_same(one, two):
    a, b = (load_file(run / "last.safetensors") for run in (one, two))
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_it_leaves_a_folder_like_any_other(pretrained, phantoms, tmp_path):
    run = pretrained(mask=0.5)
    names = {path.name for path in run.iterdir()} - {".lock"}
    assert names == {
        *("config.yaml", "data.json", "split.json", "versions.json"),
        *("last.safetensors", "log.csv", "report.html", "tensorboard"),
    }
    with (run / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert all(float(row["reconstruction"]) > 0 for row in rows)
    config = load_config(run / "config.yaml")
    assert config.method.model_dump() == {
        "name": "masked-reconstruction", "mask": 0.5, "block": 8
    }  # fmt: skip
    lists = json.loads((phantoms / "splits.json").read_text())
    split = json.loads((run / "split.json").read_text())
    assert sorted(split["unlabeled"]) == sorted([*lists["labeled"], *lists["unlabeled"]])
    assert split["labeled"] == split["val"] == split["test"] == []


def test_no_label_and_no_other_case_is_opened(pretrained, data):
    """Spoilt labels, validation and test cases change nothing, and so do labels that are gone."""
    lists = json.loads((data / "splits.json").read_text())
    lists |= {"unlabeled": lists["unlabeled"][:-1], "test": lists["unlabeled"][-1:]}
    (data / "splits.json").write_text(json.dumps(lists))
    whole = pretrained("whole", data)
    for label in (data / "labelsTr").iterdir():
        label.write_bytes(b"spoilt")
    for name in (*lists["val"], *lists["test"]):
        (data / "imagesTr" / f"{name}.nii.gz").write_bytes(b"spoilt")
    assert_same(whole, pretrained("spoilt", data))
    shutil.rmtree(data / "labelsTr")
    assert_same(whole, pretrained("gone", data))
    assert_same(whole, pretrained("gone", data, resume=True))
    with pytest.raises(InputError, match=lists["test"][0]):
        pretrained("all", data, splits=None)  # without a split the spoilt scans take part


def test_scans_that_nobody_described_will_do(pretrained, data, phantoms, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(phantoms / "imagesTr", plain / "images")
    run = pretrained("pre", plain, splits=None)
    split = json.loads((run / "split.json").read_text())
    assert len(split["unlabeled"]) == 6
    api.train(phantoms, tmp_path / "run", method="vnet", init=run, quiet=True,
              set=["network.width=2", "train.iterations=1", "data.patch=[16,16,16]", "device=cpu",
                   "train.validate_every=0"])  # fmt: skip


def test_a_drawn_split_keeps_the_validation_cases_of_training_apart(
    pretrained, phantoms, tmp_path, settings, capsys
):
    """Both draw by the same seed; with another one, training says what was seen."""
    run = pretrained(splits=None, seed=5)
    seen = json.loads((run / "split.json").read_text())["unlabeled"]
    changes = [*settings, "method.name=vnet", "train.iterations=1"]
    full = read_dataset(phantoms)
    draws = {seed: choose_split(full, None, None, seed, 0.2).val for seed in range(5, 40)}
    other = next(seed for seed, val in draws.items() if val != draws[5])
    for seed in (5, other):
        api.train(phantoms, tmp_path / f"run{seed}", seed=seed, init=run, set=changes)
        told = "warning: 1 case of validation or test (such as " in capsys.readouterr().err
        assert told == (seed == other) == bool({*draws[seed]} & {*seen})


class PowerCut(Exception):
    pass


def test_cut_and_resumed_it_ends_with_the_same_weights(pretrained, monkeypatch):
    whole = pretrained("whole", changes=["train.iterations=5", "train.checkpoint_every=2"])
    build = training.build_method

    def cut(config):
        method = build(config)
        step = method.step

        def at(batch, progress, update):
            if progress.iteration == 3:
                raise PowerCut
            return step(batch, progress, update)

        method.step = at
        return method

    changes = ["train.iterations=5", "train.checkpoint_every=2"]
    with monkeypatch.context() as patch:
        patch.setattr(training, "build_method", cut)
        with pytest.raises(PowerCut):
            pretrained("cut", changes=changes)
    assert_same(whole, pretrained("cut", changes=changes, resume=True))


def test_it_goes_on_with_its_own_settings_only(pretrained):
    run = pretrained()
    before = (run / "last.safetensors").read_bytes()
    assert pretrained(resume=True) == run
    with pytest.raises(InputError, match=r"begun with method\.mask = 0\.6, not 0\.5"):
        pretrained(resume=True, mask=0.5)
    with pytest.raises(InputError, match="exists already"):
        pretrained()
    assert (run / "last.safetensors").read_bytes() == before


def test_it_segments_nothing_and_says_so(cli, pretrained, phantoms, tmp_path, tiny_run):
    run = pretrained()
    scan, out = phantoms / "imagesTr" / "phantom_000.nii.gz", tmp_path / "out"
    for command in (
        ("predict", run, scan, "--out", out),
        ("export", run, "--out", out),
        ("card", run),
        ("train", phantoms, "--out", run, "--resume"),
    ):
        code, _, err = cli(*command)
        assert (code, err.count("\n")) == (2, 1)
        assert "which segment nothing; train from them with" in err
    for command in (
        ("train", phantoms, "--out", out, "--method", "masked-reconstruction"),
        ("compare", phantoms, "--out", out, "--methods", "vnet,masked-reconstruction"),
        ("cost", "--method", "masked-reconstruction"),
    ):
        code, _, err = cli(*command)
        assert (code, err.count("\n")) == (2, 1)
        assert "is for `dcamt pretrain`" in err
    code, _, err = cli("pretrain", phantoms, "--out", tiny_run, "--resume")
    assert code == 2
    assert "begun with method.name = dca-mt" in err
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--mask", "1"), "mask = 1.0"),
        (("--block", "0"), "block = 0"),
        (("--set", "method.mask=0.5"), "pretrain has no method; see --mask and --block"),
        (("--set", "network.name=net"), "'net' is unknown"),
        (("--set", "data.modality=ct"), "give the plan of a training"),
    ],
)
def test_what_cannot_be_is_one_sentence(cli, phantoms, tmp_path, options, words):
    out = tmp_path / "out"
    code, _, err = cli("pretrain", phantoms, "--out", out, *options)
    assert (code, err.count("\n")) == (2, 1)
    assert words in err
    assert not out.exists()


def test_the_plan_of_a_training_serves(pretrained, phantoms, tmp_path, tiny, settings):
    """With CT intensities are scaled by labelled voxels, which only a training has seen."""
    changes = [*tiny, "data.modality=ct", "train.iterations=1"]
    run = api.train(phantoms, tmp_path / "run", set=changes, quiet=True)
    plan = yaml.safe_load((run / "config.yaml").read_text())["plan"]
    out = api.pretrain(phantoms, tmp_path / "pre", plan=run / "config.yaml", quiet=True,
                       set=[s for s in settings if not s.startswith("data.")])  # fmt: skip
    assert yaml.safe_load((out / "config.yaml").read_text())["plan"] == plan


def test_the_method_of_a_recipe_is_for_others(pretrained, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: {name: dca-mt, paste: 0}\n")
    assert load_config(pretrained(config=recipe) / "config.yaml").method.options["block"] == 8
