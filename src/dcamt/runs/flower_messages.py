"""What the messages of a federation over real connections hold: plain values and weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import FiniteFloat, TypeAdapter
from torch import Tensor

from dcamt.federation import Protocol

APP = "the settings of the app"
REFUSED = 1000
"""Code of the answer of a site that cannot do its part."""


@dataclass(frozen=True)
class Sent:
    """What goes with the weights of a site; see ``Update``."""

    cases: int
    losses: dict[str, list[FiniteFloat]]


@dataclass(frozen=True)
class Kept(Sent):
    """What a site tells whose weights are to be masked. largest: the largest change of each."""

    largest: dict[str, FiniteFloat]


def protocol_of(given: Mapping[str, Any]) -> Protocol:
    keys = ("rounds", "iterations", "strategy", "proximal", "secure")
    return TypeAdapter(Protocol).validate_python({key: given[key] for key in keys})


def as_record(told: Any, weights: Mapping[str, Tensor] | None = None) -> RecordDict:
    record = RecordDict({"told": ConfigRecord({"json": json.dumps(told)})})
    if weights is not None:
        arrays = {name: Array(value.numpy()) for name, value in weights.items()}
        record["weights"] = ArrayRecord(arrays)
    return record


def weights_in(content: RecordDict) -> dict[str, Tensor]:
    arrays = content.array_records.get("weights", ArrayRecord())
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}
