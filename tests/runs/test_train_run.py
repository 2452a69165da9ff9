import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

import dcamt
from dcamt import api
from dcamt.config import load_config
from dcamt.engine.launch import launch_processes
from dcamt.engine.signals import Interrupted
from dcamt.errors import InputError
from dcamt.files import alone
from dcamt.runs import train as training
from dcamt.runs.build import build_method, load_run


@pytest.fixture
def trained(phantoms, tmp_path, tiny):
    """``trained(...)`` trains a tiny run and returns its folder."""

    def run(name="run", data=phantoms, changes=(), **options):
        options = {"splits": data / "splits.json", "quiet": True} | options
        return api.train(data, tmp_path / name, set=[*tiny, *changes], **options)

    return run


def split_of(run):
    return json.loads((run / "split.json").read_text())


def test_the_package_offers_the_commands():
    """In a fresh process, as modules called report and cost are imported on the way."""
    code = (
        "import dcamt, types\n"
        "for name in 2 * dcamt.__all__:\n"
        "    if name not in ('InputError', '__version__'):\n"
        "        assert isinstance(getattr(dcamt, name), types.FunctionType), name"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert dcamt.InputError is InputError
    with pytest.raises(AttributeError, match="nonsense"):
        _ = dcamt.nonsense


def test_paths_may_be_strings(tiny_run, phantoms, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    assert len(dcamt.inspect(str(phantoms)).cases) == 6
    assert dcamt.report(str(run)) == run / "report.html"
    assert dcamt.card(str(run)) == dcamt.card([run])
    with pytest.raises(InputError, match="no run is named"):
        dcamt.card([])


def test_all_labels_and_one_label(trained, phantoms):
    lists = json.loads((phantoms / "splits.json").read_text())
    training = [*lists["labeled"], *lists["unlabeled"]]
    all_ = split_of(trained("all", labeled="all"))
    assert sorted(all_["labeled"]) == sorted(training)
    assert all_["unlabeled"] == []
    three = split_of(trained("three", labeled=3))
    assert three["labeled"] == training[:3]
    assert three["unlabeled"] == training[3:]
    assert all_["val"] == three["val"] == lists["val"]


def test_a_drawn_split_serves_without_a_splits_file(trained):
    split = split_of(trained(splits=None, labeled=2))
    assert len(split["labeled"]) == 2
    assert len(split["val"]) == 1
    assert len(split["unlabeled"]) == 3


def test_without_validation_cases_there_is_no_validation(trained, phantoms, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    lists = json.loads((data / "splits.json").read_text())
    (data / "splits.json").write_text(json.dumps(lists | {"val": []}))
    run = trained(data=data, changes=["train.validate_every=1"])
    names = {p.name for p in run.iterdir()}
    assert {"last.safetensors", "report.html"} <= names
    assert not {"best.safetensors", "validation", "validation.json"} & names


def test_named_options_reach_the_configuration(trained):
    run = trained(method="mean-teacher", seed=11, iterations=2, device="cpu",
                  changes=["method={name: mean-teacher}", "train.iterations=2"])  # fmt: skip
    config = load_config(run / "config.yaml")
    assert (config.method.name, config.seed) == ("mean-teacher", 11)
    assert config.method.options == {"weight": 0.1, "ramp": 1.0, "decay": 0.99}
    with (run / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert set(rows[0]) > {"supervised", "consistency"}


def test_resume_goes_on_with_the_runs_own_configuration(trained):
    run = trained(changes=["train.augment.intensity=0.2"])
    before = (run / "config.yaml").read_text()
    assert trained(resume=True, changes=["train.augment.intensity=0.2"]) == run
    assert (run / "config.yaml").read_text() == before


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"seed": 99}, "seed = "),
        ({"changes": ["network.width=4"]}, "network.width = 2"),
        ({"changes": ["method.heads=2"]}, "method.heads = 1"),
    ],
)
def test_resume_refuses_other_settings(trained, given, key):
    run = trained()
    before = (run / "config.yaml").read_text()
    with pytest.raises(InputError, match=f"begun with {key}"):
        trained(resume=True, **given)
    assert (run / "config.yaml").read_text() == before


@pytest.mark.parametrize("value", ["1e-05", "0.00001"])
def test_resume_reads_a_number_as_the_method_does(trained, value):
    run = trained(changes=["method.mmd_weight=1e-05"])
    assert trained(resume=True, changes=[f"method.mmd_weight={value}"]) == run


def test_resume_refuses_other_cases(trained, phantoms, tmp_path):
    run = trained()
    before = (run / "config.yaml").read_text()
    assert trained(resume=True) == run
    assert trained(resume=True, labeled=np.int64(2)) == run
    lists = json.loads((phantoms / "splits.json").read_text())
    moved = {
        "labeled": lists["labeled"][:1],
        "unlabeled": [*lists["unlabeled"], lists["labeled"][1]],
    }
    (tmp_path / "other.json").write_text(json.dumps(lists | moved))
    others = ({"labeled": 3}, {"labeled": "all"}, {"splits": tmp_path / "other.json"})
    for other in others:
        with pytest.raises(InputError, match="begun with other cases"):
            trained(resume=True, **other)
    shutil.copytree(phantoms, tmp_path / "other")
    with pytest.raises(InputError, match="begun with the data set"):
        api.train(tmp_path / "other", run, resume=True, quiet=True)
    assert (run / "config.yaml").read_text() == before


def test_a_training_that_began_while_another_planned_is_left_alone(trained, tmp_path, monkeypatch):
    planned = training.plan_run

    def slowly(*args):
        found = planned(*args)
        monkeypatch.setattr(training, "plan_run", planned)
        trained(changes=["train.augment.intensity=0.2"])
        return found

    monkeypatch.setattr(training, "plan_run", slowly)
    with pytest.raises(InputError, match="exists already"):
        trained()
    config = load_config(tmp_path / "run" / "config.yaml")
    assert config.train.augment.intensity == 0.2


FAILURES = [
    ("dcamt.errors.InputError: a.nii: is broken; mend it", None, InputError, "mend it"),
    ("dcamt.errors.Unwritable: out: cannot be written", signal.SIGTERM, InputError, "written"),
    ("dcamt.engine.signals.Interrupted: stopped by SIGINT", None, Interrupted, "SIGTERM"),
    ("dcamt.engine.signals.Interrupted: stopped by SIGINT", signal.SIGINT, Interrupted, "SIGINT"),
    ("RuntimeError: a bug", signal.SIGTERM, ProcessRaisedException, "a bug"),
    ("", signal.SIGTERM, Interrupted, "SIGTERM"),
    ("", None, InputError, "died"),
]


@pytest.mark.parametrize(("last_line", "received", "kind", "words"), FAILURES)
def test_what_ends_a_process_ends_the_command(last_line, received, kind, words, monkeypatch):
    """Fabric stands in: real processes are in test_train.py, marked slow."""
    child = SimpleNamespace(pid=None, kill=lambda: None)
    monkeypatch.setattr(multiprocessing, "active_children", lambda: [child])

    def launch(work):
        if received:
            os.kill(os.getpid(), received)
        if last_line:
            raise ProcessRaisedException(f"Traceback\n  File\n{last_line}", 0, 1)
        raise ProcessExitedException("gone", 0, 1, 1)

    with pytest.raises(kind, match=words):
        launch_processes(SimpleNamespace(launch=launch), None, Path("out"))


def test_a_second_signal_ends_the_processes(monkeypatch):
    killed = []
    child = SimpleNamespace(pid=None, kill=lambda: killed.append(True))
    monkeypatch.setattr(multiprocessing, "active_children", lambda: [child])

    def launch(work):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it went on")

    with pytest.raises(Interrupted, match="SIGINT"):
        launch_processes(SimpleNamespace(launch=launch), None, Path("out"))
    assert killed == [True]


def test_two_trainings_in_one_folder_are_refused(trained):
    run = trained()
    before = (run / "report.html").stat().st_mtime_ns
    with alone(run), pytest.raises(InputError, match="another dcamt is at work there"):
        trained(resume=True)
    assert (run / "report.html").stat().st_mtime_ns == before


def test_a_lost_split_stops_a_resumed_run(trained):
    run = trained()
    for content in ("{", '{"other": []}', "[]"):
        (run / "split.json").write_text(content)
        with pytest.raises(InputError, match=r"split\.json"):
            trained(resume=True)


def test_a_lost_label_stops_a_resumed_run(trained, phantoms, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    lost = split_of(trained(data=data))["labeled"][0]
    (data / "labelsTr" / f"{lost}.nii.gz").unlink()
    with pytest.raises(InputError, match=f"{lost} has lost its label"):
        trained(data=data, resume=True)


def test_a_run_that_is_not_there_is_begun_and_said(trained, capsys):
    trained(resume=True, quiet=False)
    assert "nothing to resume" in capsys.readouterr().err
    trained(resume=True, quiet=False)
    assert "nothing to resume" not in capsys.readouterr().err


def test_a_data_set_that_moved_stops_a_resumed_run(trained, phantoms, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    trained(data=data)
    data.rename(tmp_path / "moved")
    for where in (data, tmp_path / "moved"):
        with pytest.raises(InputError, match=r"its data set .*data is not there"):
            trained(data=where, resume=True)
    data.symlink_to(tmp_path / "moved")
    trained(data=data, resume=True)


@pytest.mark.parametrize("method", ["dca-mt", "mean-teacher", "vnet"])
def test_the_seed_draws_the_first_weights(tiny_run, method):
    config = load_config(tiny_run / "config.yaml")
    plain = config.method.model_validate({"name": method})
    config = config.model_copy(update={"method": plain})
    one, two = build_method(config).state_dict(), build_method(config).state_dict()
    other = build_method(config.model_copy(update={"seed": 1})).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_load_run_restores_the_trained_weights(tiny_run):
    config, method = load_run(tiny_run)
    fresh = build_method(config).state_dict()
    loaded = method.state_dict()
    assert set(fresh) == set(loaded)
    assert any(not torch.equal(fresh[name], loaded[name]) for name in fresh)


def test_ignored_voxels_train_and_validate(phantoms, tmp_path, tiny):
    """A data set with an ignore value goes all the way; the value never becomes a class."""
    from dcamt.data.volume import read_label, write_volume  # noqa: PLC0415

    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    for path in (data / "labelsTr").glob("*.nii.gz"):
        label = read_label(path)
        array = label.array.copy()
        array[:5] = 2
        path.unlink()
        write_volume(path, array, label.affine)
    description = json.loads((data / "dataset.json").read_text())
    description["labels"] = {"background": 0, "atrium": 1, "ignore": 2}
    description["channel_names"] = {"0": "MR"}
    (data / "dataset.json").write_text(json.dumps(description))
    run = api.train(data, tmp_path / "run", splits=data / "splits.json", set=tiny, quiet=True)
    config = load_config(run / "config.yaml")
    assert (config.plan.classes, config.plan.ignore) == (("background", "atrium"), 2)
    rows = json.loads((run / "validation.json").read_text())["cases"]
    assert {row["class"] for row in rows} <= {"atrium", 1}
