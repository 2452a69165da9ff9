"""What the messages of a federation over real connections hold: plain values and weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import FiniteFloat, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dcamt.errors import InputError
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
    """The protocol among other values."""
    keys = ("rounds", "iterations", "strategy", "proximal", "secure")
    return TypeAdapter(Protocol).validate_python({key: given[key] for key in keys})


def as_record(told: Any, weights: Mapping[str, Tensor] | None = None) -> RecordDict:
    """Values for JSON, and weights, which go as one array: Flower sends each by itself."""
    record = RecordDict({"told": ConfigRecord({"json": json.dumps(told)})})
    if weights is not None:
        rows = {name: value.contiguous() for name, value in weights.items()}
        packed = np.frombuffer(save(rows), np.uint8)
        record["weights"] = ArrayRecord({"safetensors": Array(packed)})
    return record


def weights_in(content: RecordDict) -> dict[str, Tensor]:
    """The weights of a record, none if it has none; InputError if they cannot be read."""
    if "weights" not in content.array_records:
        return {}
    try:
        return load(content.array_records["weights"]["safetensors"].numpy().tobytes())
    except (KeyError, TypeError, ValueError, SafetensorError):
        raise InputError("its weights cannot be read") from None
