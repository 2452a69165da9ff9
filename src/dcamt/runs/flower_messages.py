"""What the messages of a federation over real connections hold: plain values and weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import FiniteFloat, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dcamt.errors import InputError
from dcamt.federation import Protocol
from dcamt.runs.half import halved, restored

APP = "the settings of the app"
REFUSED = 1000
"""Code of the answer of a site that cannot do its part."""


@dataclass(frozen=True)
class Sent:
    """What goes with the weights of a site; see ``SiteUpdate``."""

    cases: int
    losses: dict[str, list[FiniteFloat]]


@dataclass(frozen=True)
class Kept(Sent):
    """What a site tells whose weights are to be masked.

    largest: the largest change of each, or what it can be at most.
    """

    largest: dict[str, FiniteFloat]


def protocol_of(given: Mapping[str, Any]) -> Protocol:
    """The protocol among other values."""
    values = {field.name: given[field.name] for field in fields(Protocol)}
    return TypeAdapter(Protocol).validate_python(values)


def as_record(
    told: Any, weights: Mapping[str, Tensor] | None = None, half: bool = False
) -> RecordDict:
    """Values for JSON, and weights, which go as one array: Flower sends each by itself.

    With ``half`` they go in half precision; weights that were rounded to it lose nothing.
    """
    record = RecordDict({"told": ConfigRecord({"json": json.dumps(told)})})
    if weights is not None:
        sent = halved(weights) if half else weights
        rows = {name: value.contiguous() for name, value in sent.items()}
        packed = np.frombuffer(save(rows), np.uint8)
        record["weights"] = ArrayRecord({"safetensors": Array(packed)})
    return record


def weights_in(content: RecordDict) -> dict[str, Tensor]:
    """The weights of a record, none if it has none; InputError if they cannot be read."""
    if "weights" not in content.array_records:
        return {}
    try:
        return restored(load(content.array_records["weights"]["safetensors"].numpy().tobytes()))
    except (KeyError, RuntimeError, TypeError, ValueError, SafetensorError):
        raise InputError("its weights cannot be read") from None
