"""Checkpoints: safetensors only, written to a temporary name and moved into place.

``last.safetensors`` holds the method's weights, every optimiser's state under ``optimizer/``
and, as metadata, where training was: one file, so that a kill can never leave halves that do not
belong together. ``best.safetensors`` holds weights alone. Weights to hand on may lie in several
parts, ``last-1-of-3.safetensors`` and so on.
"""

import json
import re
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
_HEADER = 100_000
"""Bytes kept free in each file for the names and places of its tensors."""


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
    _write(path, owned, state)


def save_half(path: Path, method: Method, largest: int) -> list[Path]:
    """Weights alone, in half precision, in files of at most ``largest`` bytes; returns the files.

    Vectors (biases, batch norms) keep their precision. Several files are named after ``path``:
    last-1-of-3.safetensors. Raises InputError if one tensor alone is larger.
    """
    parts: list[dict[str, Tensor]] = [{}]
    room = largest - _HEADER
    for name, value in method.state_dict().items():
        half = value.detach().cpu().contiguous().clone()
        half = half.half() if half.is_floating_point() and half.ndim > 1 else half
        if half.nbytes > largest - _HEADER:
            raise InputError(f"{name} alone takes {half.nbytes} bytes; allow larger files")
        if half.nbytes > room:
            parts.append({})
            room = largest - _HEADER
        parts[-1][name] = half
        room -= half.nbytes
    if len(parts) == 1:
        paths = [path]
    else:
        names = (f"{path.stem}-{i}-of-{len(parts)}{path.suffix}" for i in range(1, len(parts) + 1))
        paths = [path.with_name(name) for name in names]
    for file, tensors in zip(paths, parts, strict=True):
        _write(file, tensors, {})
    return paths


def _write(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    content = serialize(tensors, {"kind": _KIND, "state": json.dumps(state)})
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def load(
    path: Path, method: Method, optimizers: dict[str, Optimizer] | None = None
) -> dict[str, Any]:
    """Put a checkpoint into ``method`` (and ``optimizers``); returns the state it was saved with.

    Raises InputError if the file is missing, broken, not ours, or of another method or shape.
    """
    tensors: dict[str, Tensor] = {}
    for file in _parts(path):
        found, metadata = _read(file)
        tensors |= found
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


def _parts(path: Path) -> list[Path]:
    """The files of a checkpoint; InputError if some of several are missing."""
    number = re.compile(rf"{re.escape(path.stem)}-\d+-of-(\d+)")
    counts = {found[1] for p in path.parent.glob("*") if (found := number.fullmatch(p.stem))}
    if path.exists() or not counts:
        return [path]
    (count, *others) = sorted(int(c) for c in counts)
    names = (f"{path.stem}-{i}-of-{count}{path.suffix}" for i in range(1, count + 1))
    parts = [path.with_name(name) for name in names]
    absent = [part.name for part in parts if not part.exists()]
    if absent or others:
        what = f"{absent[0]} is missing" if absent else "parts of two exports are mixed"
        raise InputError(f"{path}: its parts are not complete ({what}); copy all of them again")
    return parts


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
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
    return tensors, metadata


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
