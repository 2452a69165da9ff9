"""``dcamt federate``: several sites, one network, no scan that travels."""

import csv
import json
import shutil
import socket
import subprocess
import sys
import tomllib

import nibabel as nib
import pytest
import torch
import yaml
from safetensors.torch import load_file

from dcamt import api
from dcamt.engine.signals import Interrupted
from dcamt.errors import InputError
from dcamt.records.run_folder import read_config
from dcamt.runs import federate as federation
from dcamt.runs import rounds
from dcamt.runs.build import build_method


@pytest.fixture(scope="module")
def sites(hospitals):
    return [hospitals / name for name in ("north", "south", "east")]


@pytest.fixture(scope="module")
def run(sites, settings, tmp_path_factory, cache):
    """Two rounds of two iterations, made while nothing may connect anywhere; read only."""

    def connect(*given):
        raise AssertionError("something connects")

    out = tmp_path_factory.mktemp("federated") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect)
        return api.federate(sites, out, rounds=2, iterations=2, set=settings, quiet=True)


@pytest.fixture
def federated(sites, settings, tmp_path):
    """``federated(name, ...)`` trains in rounds of two iterations."""

    def make(name, folders=sites, **options):
        options = {"rounds": 2, "iterations": 2, "set": settings, "quiet": True} | options
        return api.federate(folders, tmp_path / name, **options)

    return make


def weights(folder):
    found = load_file(folder / "last.safetensors")
    return {name: value for name, value in found.items() if not name.startswith("optimizer/")}


def assert_same(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_it_leaves_an_ordinary_run(run, sites, tmp_path):
    scan = sites[0] / "imagesTr" / "phantom_000.nii.gz"
    api.predict(run, scan, tmp_path / "own.nii.gz", quiet=True)
    assert nib.load(tmp_path / "own.nii.gz").shape == nib.load(scan).shape
    text = api.report(run).read_text()
    assert "north (2 labelled, 2 unlabelled)" in text
    assert "its scans lie at several sites" in text
    assert "| federated | fedavg, 2 x 2 iterations; north (2 labelled" in api.card(run)
    (file,) = api.export(run, tmp_path / "exported")
    sent = {name: v.half() if v.ndim > 1 else v for name, v in weights(run).items()}
    assert_same(load_file(file), sent)


def test_validation_is_scored_at_the_sites_and_gathered_by_number(run):
    scores = json.loads((run / "validation.json").read_text())
    assert [row["case"] for row in scores["cases"]] == ["north 5", "south 3"]
    own = [
        json.loads((run / "sites" / name / "validation.json").read_text())["cases"][0]["dice"]
        for name in ("north", "south")
    ]
    assert [row["dice"] for row in scores["cases"]] == own
    assert scores["mean"]["dice"] == pytest.approx(sum(own) / 2)


def test_what_is_gathered_names_no_case_and_no_folder(run, sites):
    for path in run.iterdir():
        if path.suffix in (".json", ".yaml", ".csv"):
            text = path.read_text()
            assert "phantom_" not in text, path.name
            assert str(sites[0].parent) not in text, path.name


def test_a_site_without_labels_takes_part(run):
    with (run / "sites" / "east" / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert all(float(row["supervised_student"]) == 0 for row in rows)
    assert all(float(row["to_student"]) > 0 for row in rows)  # it learns from its scans


def test_one_site_alone_trains_as_dcamt_train_does_and_opens_no_hidden_label(
    sites, settings, federated, tmp_path
):
    data = shutil.copytree(sites[0], tmp_path / "north")
    for name in json.loads((data / "splits.json").read_text())["unlabeled"]:
        (data / "labelsTr" / f"{name}.nii.gz").write_bytes(b"spoilt")
    alone = federated("alone", [data])
    usual = api.train(
        sites[0],
        tmp_path / "usual",
        splits=sites[0] / "splits.json",
        set=[*settings, "train.iterations=4"],
        quiet=True,
    )
    assert_same(weights(alone), weights(usual))
    rows = [list(csv.DictReader((r / "log.csv").open(newline=""))) for r in (alone, usual)]
    for one, other in zip(*rows, strict=True):
        for term in one.keys() - {"seconds", "val_dice"}:
            assert float(one[term]) == float(other[term])


def test_stopped_in_a_round_and_resumed_it_ends_with_the_same_weights(run, federated, monkeypatch):
    train, calls = federation.train_round, []

    def stopped(*given):
        if len(calls) == 4:
            raise Interrupted(15)
        calls.append(given[0].name)
        return train(*given)

    with monkeypatch.context() as patch:
        patch.setattr(federation, "train_round", stopped)
        with pytest.raises(Interrupted):
            federated("cut")
    resumed = federated("cut", resume=True)
    assert_same(weights(resumed), weights(run))
    rows = [(r / "log.csv").read_text().splitlines() for r in (resumed, run)]
    assert len(rows[0]) == len(rows[1]) == 5


def test_killed_while_it_begins_it_can_be_begun_again(run, federated, monkeypatch):
    def kill(*given):
        raise Interrupted(9)

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "save_config", kill)
        with pytest.raises(Interrupted):
            federated("cut")
    assert_same(weights(federated("cut", resume=True)), weights(run))


def test_killed_after_a_checkpoint_it_keeps_every_row(run, federated, tmp_path, monkeypatch):
    save = rounds.checkpoint.save

    def kill(path, *given):
        save(path, *given)
        if path == tmp_path / "cut" / "last.safetensors":
            raise Interrupted(9)

    with monkeypatch.context() as patch:
        patch.setattr(rounds.checkpoint, "save", kill)
        with pytest.raises(Interrupted):
            federated("cut")
    resumed = federated("cut", resume=True)
    assert_same(weights(resumed), weights(run))
    rows = [(r / "log.csv").read_text().splitlines() for r in (resumed, run)]
    assert [row.split(",")[0] for row in rows[0]] == [row.split(",")[0] for row in rows[1]]


def test_ranking_by_a_federation_says_that_it_knows_no_names(run, sites, tmp_path, capsys):
    api.rank(run, sites[0], tmp_path / "all.csv")
    assert "give the run folder of that site" in capsys.readouterr().err
    api.rank(run / "sites" / "north", sites[0], tmp_path / "own.csv")
    assert "warning" not in capsys.readouterr().err


def test_it_goes_on_with_the_same_sites_and_options_only(run, sites, settings, tmp_path):
    out = shutil.copytree(run, tmp_path / "run")
    for change, why in (
        ({"sites": sites[:2]}, "begun with other sites"),
        ({"rounds": 3}, "was begun as fedavg, 2 x 2 iterations"),
        ({"strategy": "fedbn"}, "was begun as fedavg"),
        ({"set": [*settings, "seed=1"]}, "begun with seed = 42, not 1"),
    ):
        given = {"sites": sites, "rounds": 2, "iterations": 2, "set": settings} | change
        with pytest.raises(InputError, match=why):
            api.federate(out=out, resume=True, quiet=True, **given)
    with pytest.raises(InputError, match="exists already"):
        api.federate(sites, out, rounds=2, iterations=2, set=settings)


def test_a_site_whose_training_breaks_down_is_left_out_and_the_round_goes_on(
    sites, settings, tmp_path, capsys
):
    broken = shutil.copytree(sites[1], tmp_path / "broken")
    told = "round 1 of 1: broken is left out: "
    for path in (broken / "imagesTr").iterdir():
        image = nib.load(path)
        nib.save(nib.Nifti1Image(image.get_fdata(dtype="f4") * 1e30, image.affine), path)
    changes = [*settings, "data.modality=normalized"]
    given = {"rounds": 1, "iterations": 2, "set": changes}
    out = api.federate([sites[0], broken], tmp_path / "run", **given)
    err = capsys.readouterr().err
    assert "round 1 of 1: north is done" in err
    assert told in err
    assert "broken in 1 of 1 rounds" in api.card(out)
    assert all(torch.isfinite(value).all() for value in weights(out).values())
    with pytest.raises(InputError, match="no site could be used in round 1"):
        api.federate([broken], tmp_path / "none", **given, quiet=True)
    assert told in capsys.readouterr().err  # also where all else is quiet


def test_weights_that_a_site_sends_are_looked_at_before_they_count(
    sites, federated, monkeypatch, capsys
):
    train = federation.train_round

    def poisoned(site, *given):
        sent = train(site, *given)
        if site.name == "south":
            next(iter(sent.weights.values()))[0] = torch.nan
        return sent

    with monkeypatch.context() as patch:
        patch.setattr(federation, "train_round", poisoned)
        two = federated("two", sites[:2], rounds=1, iterations=1, quiet=False)
    assert "south is left out: the weight" in capsys.readouterr().err
    assert_same(weights(two), weights(federated("one", sites[:1], rounds=1, iterations=1)))


def test_fedprox_holds_the_sites_together(sites, federated, settings):
    def moved(name, **options):
        run = federated(name, sites[1:2], rounds=1, iterations=3, set=steady, **options)
        start = build_method(read_config(run)).state_dict()
        found = weights(run)
        return sum(float((found[n] - start[n]).norm()) for n in found if n.endswith(".weight"))

    steady = [*settings, "train.decay_at=[]"]
    assert moved("close", strategy="fedprox", proximal=50.0) < 0.9 * moved("far")


def test_in_fedbn_every_site_keeps_its_own_batch_norm(sites, federated):
    run = federated("own", sites[:2], strategy="fedbn")
    shared, north, south = (
        weights(folder) for folder in (run, run / "sites" / "north", run / "sites" / "south")
    )
    kept = {n for n in shared if not torch.equal(north[n], south[n])}
    assert any(name.endswith("running_mean") for name in kept)
    stem = {name.rpartition(".")[0] for name in shared if name.endswith("running_mean")}
    assert {name.rpartition(".")[0] for name in kept} == stem
    for name in kept:  # the result has their mean, by 4 and 2 scans
        torch.testing.assert_close(shared[name], (4 * north[name] + 2 * south[name]) / 6)
    assert_same(
        {n: v for n, v in shared.items() if n not in kept},
        {n: v for n, v in north.items() if n not in kept},
    )


def test_a_site_without_labels_that_keeps_a_part_to_itself_is_told(federated, capsys):
    for options, told in (({"strategy": "fedbn"}, True), ({"share": "heads"}, True), ({}, False)):
        federated(str(options), rounds=1, iterations=1, quiet=False, **options)
        assert ("warning: east: has no labels" in capsys.readouterr().err) == told


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--rounds", "0"], "--rounds and --iterations: give whole numbers of at least 1"),
        (["--strategy", "fedprox", "--proximal", "-1"], "--proximal -1: give a number"),
        (["--set", "train.iterations=5"], "train.iterations: --rounds and --iterations say"),
        (["--set", "train.devices=2"], "a federation trains in one process"),
        (["--strategy", "fedbn", "--set", "network.name=segresnet"], "no batch norm"),
        (["--clip", "1"], "--clip and --noise: give both"),
        (["--clip", "nan", "--noise", "1"], "--clip nan: give a number above 0"),
        (["--clip", "1", "--noise", "1"], "such as network.name=segresnet"),
        (["--clip", "1", "--noise", "1", "--half"], "--half: leave it out with --clip"),
        (["--clip", "1", "--noise", "1", "--share", "heads"], "--share: leave it out with --clip"),
        (["--share", "attention", "--method", "vnet"], "method vnet has no cross-attention"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(sites, tmp_path, cli, options, why):
    code, _, err = cli("federate", sites[0], "--out", tmp_path / "run", "-q", *options)
    assert (code, err.count("\n")) == (2, 1)
    assert why in err
    assert not (tmp_path / "run").exists()


def test_two_sites_of_one_name_are_refused(sites, tmp_path):
    with pytest.raises(InputError, match="its name is that of"):
        api.federate([sites[0], sites[0]], tmp_path / "run")


def test_an_app_for_other_machines_holds_settings_and_no_code_and_no_path_of_a_site(
    tmp_path, cli, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text('dataset: /secret/scans\nnetwork: {name: "vnet"}\n')
    code, out, _ = cli(
        "federate", "south", "north \"2\"", "east", "--out", "shared", "--app", "app",
        "--rounds", 3, "--iterations", 7, "--strategy", "fedprox", "--half", "--seed", 5,
        "--share", "attention", "--config", recipe, "--set", "data.patch=[16,16,16]",
        "--timeout", 90,
    )  # fmt: skip
    assert (code, out) == (0, "app: app; to start it: flwr run app\n")
    assert [path.name for path in (tmp_path / "app").iterdir()] == ["pyproject.toml"]
    text = (tmp_path / "app" / "pyproject.toml").read_text()
    assert "secret" not in text
    given = tomllib.loads(text)["tool"]["flwr"]["app"]["config"]
    assert yaml.safe_load(given.pop("config")) == {
        "seed": 5, "network": {"name": "vnet"}, "data": {"patch": [16, 16, 16]},
    }  # fmt: skip
    assert given == {
        "sites": 'south,north "2",east', "out": str(tmp_path / "shared"), "resume": False,
        "rounds": 3, "iterations": 7, "strategy": "fedprox", "proximal": 0.01, "secure": False,
        "clip": 0.0, "noise": 0.0, "half": True, "share": "attention", "timeout": 90.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["a", "b", "--app", "app", "--secure"], "--secure: give at least 3 sites"),
        (["a", "b", "c", "--secure"], "--secure: is for sites on other machines"),
        (["a", "b", "c", "--app", "app", "--secure", "--half"], "--half: leave it out with"),
        (["a", "a", "--app", "app"], "a: is given twice"),
        (["a/b", "c", "--app", "app"], "a/b: with --app give names of sites"),
        (["a", "b", "--app", "app", "--timeout", "0"], "--timeout 0: give a number"),
        (["a", "b", "--app", "app", "--resume"], "--resume: with --app, give resume=true"),
        (["a", "b", "--app", "app", "--rounds", "0"], "--rounds and --iterations: give whole"),
    ],
)
def test_an_app_that_could_not_run_is_refused(tmp_path, monkeypatch, cli, options, why):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("federate", *options, "--out", "run")
    assert (code, err.count("\n")) == (2, 1)
    assert why in err
    assert not list(tmp_path.iterdir())


def test_a_federation_on_one_machine_loads_nothing_of_flower():
    code = "import sys, dcamt.runs.federate, dcamt.runs.federated_app; print('flwr' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_federation_is_tracked_to_its_end(federated, settings, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    out = federated("tracked", rounds=1, set=[*settings, "train.tracker=mlflow"])
    found = mlflow.MlflowClient(f"sqlite:///{out / 'mlflow' / 'mlflow.db'}")
    run = found.get_run(json.loads((out / "mlflow" / "run.json").read_text())["run_id"])
    assert run.info.status == "FINISHED"
    mean = json.loads((out / "validation.json").read_text())["mean"]
    assert run.data.metrics["report/dice"] == pytest.approx(mean["dice"])
