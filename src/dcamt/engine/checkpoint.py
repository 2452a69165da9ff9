"""Checkpoints: safetensors only, written to a temporary name and moved into place.

``last.safetensors`` holds the method's weights, every optimiser's state under ``optimizer/``
and, as metadata, where training was: one file, so that a kill can never leave halves that do not
belong together. ``best.safetensors`` holds weights alone.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor
from torch.optim import Optimizer

from dcamt.errors import InputError
from dcamt.files import atomic
from dcamt.methods.method import Method

_OPTIMIZER = "optimizer/"
_KIND = "dcamt checkpoint 1"


def save(
    path: Path, method: Method, optimizers: dict[str, Optimizer], state: dict[str, Any]
) -> None:
    """Weights, state of each optimiser (none for weights alone) and ``state`` (JSON values)."""
    tensors = {name: value.detach().cpu() for name, value in method.state_dict().items()}
    for part, optimizer in optimizers.items():
        for index, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"{_OPTIMIZER}{part}/{index}/{key}"] = value.detach().cpu()
    # Shared tensors (one attention for two directions) are stored once under each name.
    owned = {name: value.contiguous().clone() for name, value in tensors.items()}
    content = serialize(owned, {"kind": _KIND, "state": json.dumps(state)})
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def load(
    path: Path, method: Method, optimizers: dict[str, Optimizer] | None = None
) -> dict[str, Any]:
    """Put a checkpoint into ``method`` (and ``optimizers``); returns the state it was saved with.

    Raises InputError if the file is missing, broken, not ours, or of another method or shape.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: is not a readable safetensors checkpoint ({error}); give a run folder that "
            "`dcamt train` wrote"
        ) from None
    if metadata.get("kind") != _KIND:
        raise InputError(f"{path}: is not a dcamt checkpoint; give one that `dcamt train` wrote")
    weights = {k: v for k, v in tensors.items() if not k.startswith(_OPTIMIZER)}
    try:
        method.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: does not fit the configured method ({reason})") from None
    for part, optimizer in (optimizers or {}).items():
        _load_optimizer(optimizer, f"{_OPTIMIZER}{part}/", tensors)
    state: dict[str, Any] = json.loads(metadata["state"])
    return state


def _load_optimizer(optimizer: Optimizer, prefix: str, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix):
            index, key = name.removeprefix(prefix).split("/")
            state.setdefault(int(index), {})[key] = value
    layout = torch.channels_last_3d
    for values in state.values():
        for key, value in values.items():
            # The momentum of a channels-last weight must be laid out like it.
            if value.ndim == 5:
                values[key] = value.to(memory_format=layout)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
