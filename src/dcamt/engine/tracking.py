"""MLflow beside TensorBoard: one MLflow run for each run folder (docs/tracking.md)."""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dcamt.config import TrainConfig
from dcamt.errors import InputError
from dcamt.files import read_json, write_text
from dcamt.records.run_folder import read_config
from dcamt.records.scores import read_scores

FOLDER = "mlflow"
"""In the run folder: the local store, and which MLflow run this is."""
_EXPERIMENT = "dcamt"
_NEEDED = ("mlflow", "sqlalchemy", "alembic")
"""MLflow, and what its local store is kept with."""
_WAIT = 600
"""Seconds between two attempts to reach a server that did not answer."""
_PARAMETERS, _NUMBERS = 100, 1000
"""How many of each MLflow takes in one message."""


def check_tracker(settings: TrainConfig) -> None:
    """InputError if MLflow is asked for but not installed."""
    if settings.tracker == "mlflow" and not all(map(find_spec, _NEEDED)):
        raise InputError(
            "train.tracker = mlflow: MLflow is not installed; run `pip install 'dcamt[mlflow]'`, "
            "or leave the setting out"
        )


def finish_tracking(run: Path, settings: TrainConfig) -> None:
    """Give the MLflow run of ``run``, if it has one, scores and report after training."""
    if settings.tracker == "mlflow":
        scores = run / "validation.json"
        means = read_scores(scores)["mean"] if scores.exists() else {}
        MlflowRun(run).finish(means, (run / "report.html",))


class MlflowRun:
    """The MLflow run of a run folder, which is made if there is none yet.

    It lies in the store that the environment variable MLFLOW_TRACKING_URI names, else in the run
    folder. A number that is there already is not sent again. Raises InputError if the store cannot
    be used, or is another one than the run began with.
    """

    def __init__(self, run: Path):
        mlflow = _import_mlflow()
        self._entities, self._errors = mlflow.entities, mlflow.exceptions.MlflowException
        self._waiting: list[Any] = []
        self._next_attempt = 0.0
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        folder = run.absolute() / FOLDER
        if not uri and "?" in str(folder):  # ends a path in the address of a store
            raise InputError(
                f"{run}: MLflow's store cannot lie below a folder with a ? in its name; choose "
                "another --out, or set the environment variable MLFLOW_TRACKING_URI"
            )
        folder.mkdir(exist_ok=True)
        record = folder / "run.json"
        if not uri and not record.exists():  # what was killed while it was made cannot be used
            for half in folder.glob("mlflow.db*"):
                half.unlink()
        try:
            self._client = mlflow.MlflowClient(uri or f"sqlite:///{folder / 'mlflow.db'}")
            if record.exists():
                self.id = str(read_json(record).get("run_id"))
                self._client.update_run(self.id, status="RUNNING")
            else:
                artifacts = None if uri else (folder / "artifacts").as_uri()
                self.id = self._create(artifacts, run.absolute().name)
                params = [self._entities.Param(*pair) for pair in _parameters(run)]
                for first in range(0, len(params), _PARAMETERS):
                    self._client.log_batch(self.id, params=params[first : first + _PARAMETERS])
                write_text(record, json.dumps({"run_id": self.id}) + "\n")
            self._sent = self._last_step()
        except self._errors as error:
            raise InputError(
                f"{run}: its MLflow run cannot be written ({_first_line(error)}); set the "
                "environment variable MLFLOW_TRACKING_URI to the store that the run began with, "
                "or leave it unset for the one in the run folder, and use --resume"
            ) from None

    def add(self, tag: str, value: float, step: int) -> None:
        """Note a number under a name."""
        if step > self._sent:
            metric = self._entities.Metric(tag, value, int(1000 * time.time()), step)
            self._waiting.append(metric)

    def flush(self) -> None:
        """Send what waits. A server that does not answer stops no training: it is asked later."""
        if self._waiting and time.monotonic() >= self._next_attempt:
            self._send()

    def close(self, failed: bool = False) -> None:
        """Send what waits; nothing can be added any more. ``failed``: the training did not end."""
        self._send("KILLED" if failed else None)

    def finish(self, scores: Mapping[str, Any], files: tuple[Path, ...]) -> None:
        """Note the mean ``scores`` of the validation cases, keep ``files``, and end the run."""
        for name, value in scores.items():
            if value is not None:
                metric = self._entities.Metric(f"report/{name}", value, int(1000 * time.time()), 0)
                self._waiting.append(metric)
        self._send("FINISHED", files)

    def _send(self, status: str | None = None, files: tuple[Path, ...] = ()) -> None:
        try:
            while self._waiting:
                self._client.log_batch(self.id, metrics=self._waiting[:_NUMBERS])
                del self._waiting[:_NUMBERS]
            for file in files:
                self._client.log_artifact(self.id, str(file))
            if status:
                self._client.set_terminated(self.id, status)
        except (self._errors, OSError) as error:
            self._next_attempt = time.monotonic() + _WAIT
            print(
                f"note: MLflow could not be written ({_first_line(error)}); the run goes on, and "
                "log.csv has every number",
                file=sys.stderr,
            )

    def _create(self, artifacts: str | None, name: str) -> str:
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        found = self._client.get_experiment_by_name(title)
        experiment = found.experiment_id if found else None
        if experiment is None:
            experiment = self._client.create_experiment(title, artifact_location=artifacts)
        created: str = self._client.create_run(experiment, run_name=name).info.run_id
        return created

    def _last_step(self) -> int:
        """The last iteration whose numbers are there, 0 if there is none."""
        names = [name for name in self._client.get_run(self.id).data.metrics if "loss/" in name]
        history = self._client.get_metric_history(self.id, names[0]) if names else []
        return max((metric.step for metric in history), default=0)


def _import_mlflow() -> Any:
    import mlflow  # noqa: PLC0415

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


def _parameters(run: Path) -> Iterator[tuple[str, str]]:
    """Every setting of a run but where its data lie: what MLflow may send to another machine."""
    config = read_config(run).model_dump(mode="json", exclude={"dataset": True, "plan": {"codes"}})

    def flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", str(value)

    return flat(config, "")


def _first_line(error: Exception) -> str:
    """What an error says, without the password that an address may hold."""
    line = (str(error).splitlines() or [""])[0][:200]
    return re.sub(r"//[^/@\s]*@", "//", line)
