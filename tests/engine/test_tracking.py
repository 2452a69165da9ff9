"""MLflow beside TensorBoard, with its real local store."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from importlib.util import find_spec

import pytest

from dcamt import api
from dcamt.engine import tracking
from dcamt.engine.tracking import MlflowRun
from dcamt.errors import InputError
from dcamt.records.run_folder import read_config

needs_mlflow = pytest.mark.skipif(
    not all(map(find_spec, ("mlflow", "sqlalchemy", "alembic"))),
    reason="MLflow is not installed: pip install 'dcamt[mlflow]'",
)
TRACKED = ("train.tracker=mlflow", "train.validate_every=2")


@pytest.fixture(autouse=True)
def no_store_of_the_users(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def client():
    """``client(store)`` reads a local store as MLflow itself does."""
    tracking._import_mlflow()
    from mlflow import MlflowClient  # noqa: PLC0415

    return lambda database: MlflowClient(f"sqlite:///{database}")


@pytest.fixture
def tracked(phantoms, tmp_path, tiny):
    """``tracked(name, ...)`` trains on phantoms with MLflow and returns the run folder."""
    settings = [s for s in tiny if not s.startswith("method.")]

    def run(name="run", changes=(), **options):
        options = {"splits": phantoms / "splits.json", "quiet": True, "method": "vnet"} | options
        return api.train(phantoms, tmp_path / name, set=[*settings, *TRACKED, *changes], **options)

    return run


def runs_of(found):
    (experiment,) = (e for e in found.search_experiments() if e.name == "dcamt")
    return found.search_runs([experiment.experiment_id])


def steps_of(found, run, name="loss/supervised"):
    return [metric.step for metric in found.get_metric_history(run.info.run_id, name)]


@needs_mlflow
def test_a_run_is_there_with_settings_curves_scores_and_report(tracked, client, phantoms):
    out = tracked()
    found = client(out / "mlflow" / "mlflow.db")
    (run,) = runs_of(found)
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["network.width"] == "2"
    assert run.data.params["train.augment.flip"] == str(list(read_config(out).train.augment.flips))
    lines = (out / "log.csv").read_text().splitlines()[1:]
    logged = found.get_metric_history(run.info.run_id, "loss/supervised")
    assert [m.step for m in logged] == [1, 2, 3]
    assert [f"{m.value:.6g}" for m in logged] == [line.split(",")[3] for line in lines]
    assert steps_of(found, run, "validation/dice") == [2, 3]
    mean = json.loads((out / "validation.json").read_text())["mean"]
    assert run.data.metrics["report/dice"] == pytest.approx(mean["dice"])
    (report,) = (out / "mlflow" / "artifacts").rglob("report.html")
    assert report.read_bytes() == (out / "report.html").read_bytes()
    # Neither where the data lie nor who trains is told.
    told = " ".join([*run.data.params.values(), *run.data.tags.values()])
    assert str(phantoms) not in told
    assert set(run.data.tags) == {"mlflow.runName"}
    assert run.info.user_id in ("", "unknown")


class PowerCut(Exception):
    pass


@needs_mlflow
@pytest.mark.slow
def test_a_resumed_run_is_the_same_mlflow_run_with_each_number_once(tracked, client, monkeypatch):
    """The power goes after numbers were sent, before the checkpoint that holds them."""
    changes = ["train.iterations=15", "train.checkpoint_every=12", "train.validate_every=0"]

    def cut(self, path, best):
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr("dcamt.engine.trainer.Trainer.save", cut)
        with pytest.raises(PowerCut):
            tracked(changes=changes)
    out = tracked(changes=changes, resume=True)
    found = client(out / "mlflow" / "mlflow.db")
    (run,) = runs_of(found)
    assert run.info.status == "FINISHED"
    assert steps_of(found, run) == list(range(1, 16))


@needs_mlflow
def test_a_store_that_was_killed_while_it_was_made_is_made_anew(tmp_path, tracked, client):
    begun = tracked(changes=["train.tracker=tensorboard"])
    out = tmp_path / "half"
    shutil.copytree(begun, out)
    config = out / "config.yaml"
    config.write_text(config.read_text().replace("tracker: tensorboard", "tracker: mlflow"))
    (out / "mlflow").mkdir()
    with sqlite3.connect(out / "mlflow" / "mlflow.db") as half:
        half.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        half.execute("INSERT INTO alembic_version VALUES ('75868b000000')")
    MlflowRun(out).close()
    assert len(runs_of(client(out / "mlflow" / "mlflow.db"))) == 1


@needs_mlflow
@pytest.mark.slow
def test_a_store_of_the_users_takes_all_runs(tracked, client, tmp_path, monkeypatch):
    database = tmp_path / "own.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.chdir(tmp_path)
    out = tracked("one")
    tracked("two", seed=1)
    assert {run.info.run_name for run in runs_of(client(database))} == {"one", "two"}
    assert [p.name for p in (out / "mlflow").iterdir()] == ["run.json"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI to the store that the run began"):
        tracked("one", resume=True)


@needs_mlflow
def test_a_store_that_fails_stops_no_training_and_gets_all_at_the_end(
    tracked, client, monkeypatch, capsys
):
    from mlflow import MlflowClient  # noqa: PLC0415
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    whole = MlflowClient.log_batch

    def away(self, run_id, metrics=(), params=(), **more):
        if metrics:
            raise MlflowException("API request to https://ann:secret@host/api failed")
        return whole(self, run_id, metrics, params, **more)

    log = tracking.MlflowRun.flush

    def flush(self):
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "log_batch", away)
            log(self)

    monkeypatch.setattr(MlflowRun, "flush", flush)
    out = tracked(changes=["train.validate_every=0"])
    said = capsys.readouterr().err
    assert "note: MLflow could not be written (API request to https://host/api failed)" in said
    found = client(out / "mlflow" / "mlflow.db")
    (run,) = runs_of(found)
    assert steps_of(found, run) == [1, 2, 3]


def test_without_mlflow_one_sentence_before_anything_is_written(
    cli, phantoms, tmp_path, tiny, monkeypatch
):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    out = tmp_path / "run"
    sets = [part for s in (*tiny, "train.tracker=mlflow") for part in ("--set", s)]
    code, _, err = cli("train", phantoms, "--out", out, *sets)
    assert (code, err.count("pip install 'dcamt[mlflow]'")) == (2, 1)
    assert err.splitlines()[-1].startswith("dcamt: train.tracker = mlflow: MLflow is not installed")
    assert not out.exists()


@needs_mlflow
@pytest.mark.slow
def test_nothing_is_reported_over_the_network(tiny_run, tmp_path):
    """A fresh process, which nothing marks as a test, asks for no address."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    program = """
import socket, sys
from pathlib import Path
def ask(*given, **more):
    print("ADDRESS", given[:1])
    raise OSError("no network here")
socket.getaddrinfo = ask
import dcamt
import monai
from dcamt.engine.tracking import MlflowRun
MlflowRun(Path(sys.argv[1])).finish({"dice": 0.5}, ())
from mlflow.telemetry.client import get_telemetry_client
from mlflow.telemetry.utils import _IS_IN_CI_ENV_OR_TESTING, is_telemetry_disabled
print("TESTING", _IS_IN_CI_ENV_OR_TESTING, "OFF", is_telemetry_disabled(), get_telemetry_client())
"""
    marks = ("PYTEST", "CI", "GITHUB", "MLFLOW", "DO_NOT_TRACK")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(marks)}
    command = [sys.executable, "-c", program, run]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=clean)
    assert "ADDRESS" not in done.stdout
    assert done.stdout.splitlines()[-1] == "TESTING False OFF True None"
    assert (run / "mlflow" / "mlflow.db").exists()
