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

    Nothing is read before its name and shape are known to fit. Raises InputError if the file is
    missing, broken, not ours, or of another method or shape.
    """
    state = check(path, method)
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            method.load_state_dict({k: file.get_tensor(k) for k in names if not _is_state(k)})
            for part, optimizer in (optimizers or {}).items():
                _load_optimizer(optimizer, f"{_OPTIMIZER}{part}/", file)
    except (OSError, SafetensorError, RuntimeError, LookupError, ValueError, TypeError):
        raise InputError(
            f"{path}: cannot be loaded (it is damaged or of another version); give a run folder "
            "that `dcamt train` wrote"
        ) from None
    return state


def check(path: Path, method: Method) -> dict[str, Any]:
    """The state a checkpoint was saved with; InputError unless its weights fit ``method``.

    Reads the header only, and needs no more of ``method`` than shapes: it may be on "meta".
    """
    try:
        # The library maps the file into memory, where a pipe or a device has no place.
        if not path.is_file():
            raise FileNotFoundError
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            shapes = {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError):
        raise InputError(
            f"{path}: is missing or not a readable safetensors checkpoint; give a run folder that "
            "`dcamt train` wrote"
        ) from None
    try:
        state = json.loads(metadata["state"])
        known = metadata["kind"] == _KIND and _is_usable(state)
    except (KeyError, ValueError, RecursionError):
        known = False
    if not known:
        raise InputError(f"{path}: is not a dcamt checkpoint; give one that `dcamt train` wrote")
    found = {name: shape for name, shape in shapes.items() if not _is_state(name)}
    wanted = {name: tuple(value.shape) for name, value in method.state_dict().items()}
    if found != wanted:
        differ = sum(found[name] != wanted[name] for name in found.keys() & wanted.keys())
        raise InputError(
            f"{path}: does not fit the configured method ({len(wanted.keys() - found.keys())} "
            f"tensors are missing, {len(found.keys() - wanted.keys())} are unknown, {differ} have "
            "another shape); give the run folder that it came from"
        )
    checked: dict[str, Any] = state
    return checked


def _is_usable(state: Any) -> bool:
    """Whether this is where a training was: its iteration and its best score so far."""
    if not isinstance(state, dict) or not {"iteration", "best"} <= state.keys():
        return False
    iteration, best = state["iteration"], state["best"]
    counted = isinstance(iteration, int) and not isinstance(iteration, bool) and iteration >= 0
    return counted and (best is None or (isinstance(best, int | float) and 0 <= best <= 1))


def _is_state(name: str) -> bool:
    return name.startswith(_OPTIMIZER)


def _load_optimizer(optimizer: Optimizer, prefix: str, file: Any) -> None:
    """Raises ValueError for what this optimiser cannot have saved."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name in file.keys():  # noqa: SIM118
        if name.startswith(prefix):
            index, key = name.removeprefix(prefix).split("/")
            expected = () if key == "step" else tuple(parameters[int(index)].shape)
            if tuple(file.get_slice(name).get_shape()) != expected:
                raise ValueError
            state.setdefault(int(index), {})[key] = file.get_tensor(name)
    layout = torch.channels_last_3d
    for values in state.values():
        for key, value in values.items():
            # The momentum of a channels-last weight must be laid out like it.
            if value.ndim == 5:
                values[key] = value.to(memory_format=layout)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
