"""A trained run as the teacher of another one, and the record of which run it is."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dcamt.errors import InputError
from dcamt.files import read_json
from dcamt.inference.predictor import make_predictor
from dcamt.methods.method import Method
from dcamt.records.run_folder import RunConfig
from dcamt.runs.build import digest, load_run

KEY = "teacher"
"""In versions.json: method and digest of the teacher, never where it lies."""


def taught_by(run: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What the networks of ``run`` say, with its last weights, as `dcamt predict` computes it.

    Maps patches ``(B, C, X, Y, Z)`` float32 on ``device`` to the mean of their probabilities,
    ``(B, K, X, Y, Z)`` float32.
    """
    config, method = load_run(run)
    predictor = make_predictor(method, config.plan, device)
    return lambda image: predictor.branches(image).mean(0)


def record_of(config: RunConfig, method: Method) -> str:
    """What tells a teacher from any other: its method, and the SHA-256 of all that it is."""
    return f"{config.method.name} sha256:{digest(config, method)}"


def refuse_other_teacher(run: Path, record: str) -> None:
    """InputError if a run that was begun would go on with another teacher than its own."""
    kept = read_json(run / "versions.json").get(KEY)
    if kept != record:
        raise InputError(
            f"{run}: was begun with another teacher ({kept}), not {record}; give the run that it "
            "was begun with, or another --out"
        )
