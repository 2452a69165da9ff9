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
    tensors = {name: value.detach() for name, value in method.state_dict().items()}
    for part, optimizer in optimizers.items():
        for index, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"{_OPTIMIZER}{part}/{index}/{key}"] = value.detach()
    # Shared tensors (one attention for two directions) are stored once under each name.
    owned = {
        name: value.to("cpu", memory_format=torch.contiguous_format, copy=True)
        for name, value in tensors.items()
    }
    content = _content(owned, state)
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def halves(name: str, method: Method, largest: int) -> dict[str, bytes]:
    """Weights alone, in half precision, as files of at most ``largest`` bytes: their contents.

    The same weights always give the same bytes.
    Vectors (biases, batch norms) keep their precision. Several files are named after ``name``:
    last-1-of-3.safetensors. Raises InputError if one tensor alone is larger.
    """
    parts: list[dict[str, Tensor]] = [{}]
    room = largest - _HEADER
    for key, value in method.state_dict().items():
        half = value.detach().cpu().contiguous().clone()
        half = half.half() if half.is_floating_point() and half.ndim > 1 else half
        if half.nbytes > largest - _HEADER:
            raise InputError(f"{key} alone takes {half.nbytes} bytes; allow larger files")
        if half.nbytes > room:
            parts.append({})
            room = largest - _HEADER
        parts[-1][key] = half
        room -= half.nbytes
    names = [name] if len(parts) == 1 else _part_names(name, len(parts))
    contents = (_in_order(_content(tensors, {})) for tensors in parts)
    return dict(zip(names, contents, strict=True))


def _part_names(name: str, count: int) -> list[str]:
    path = Path(name)
    return [f"{path.stem}-{i}-of-{count}{path.suffix}" for i in range(1, count + 1)]


def _content(tensors: dict[str, Tensor], state: dict[str, Any]) -> bytes:
    return serialize(tensors, {"kind": _KIND, "state": json.dumps(state)})


def _in_order(content: bytes) -> bytes:
    """The same file with sorted metadata, which the library writes in another order each time."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return content[:8] + text.ljust(end - 8) + content[end:]


def load(
    path: Path, method: Method, optimizers: dict[str, Optimizer] | None = None
) -> dict[str, Any]:
    """Put a checkpoint into ``method`` (and ``optimizers``); returns the state it was saved with.

    Nothing is read before its name and shape are known to fit. Raises InputError if the file is
    missing, broken, not ours, or of another method or shape.
    """
    state = check(path, method)
    if optimizers is not None and not _is_usable(state):
        raise InputError(f"{path}: holds weights alone, or is damaged; a run cannot go on from it")
    weights: dict[str, Tensor] = {}
    try:
        for part in files_of(path):
            with safe_open(part, "pt") as file:
                names = [name for name in file.keys() if not _is_state(name)]  # noqa: SIM118
                weights |= {name: file.get_tensor(name) for name in names}
                for key, optimizer in (optimizers or {}).items():
                    _load_optimizer(optimizer, f"{_OPTIMIZER}{key}/", file)
        method.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError, LookupError, ValueError, TypeError):
        raise InputError(
            f"{path}: cannot be loaded (it is damaged or of another version); give a run folder "
            "that `dcamt train` wrote"
        ) from None
    return state


def check(path: Path, method: Method) -> dict[str, Any]:
    """The state a checkpoint was saved with; InputError unless its weights fit ``method``.

    Reads headers only, and needs no more of ``method`` than shapes: it may be on "meta".
    """
    found, state = weights_in(path)
    wanted = {name: tuple(value.shape) for name, value in method.state_dict().items()}
    if found != wanted:
        differ = sum(found[name] != wanted[name] for name in found.keys() & wanted.keys())
        raise InputError(
            f"{path}: does not fit the configured method ({len(wanted.keys() - found.keys())} "
            f"tensors are missing, {len(found.keys() - wanted.keys())} are unknown, {differ} have "
            "another shape); give the run folder that it came from"
        )
    return state


def weights_in(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Shapes of the weights of a checkpoint, by name, and its state; reads headers only.

    Raises InputError if a file is missing, broken or not ours.
    """
    found: dict[str, tuple[int, ...]] = {}
    state: dict[str, Any] = {}
    for part in files_of(path):
        shapes, state = _header(part)
        found |= {name: shape for name, shape in shapes.items() if not _is_state(name)}
    return found, state


def files_of(path: Path) -> list[Path]:
    """The files of a checkpoint; InputError if some of several are missing."""
    number = re.compile(rf"{re.escape(path.stem)}-\d+-of-(\d{{1,6}})")
    counts = {found[1] for p in path.parent.glob("*") if (found := number.fullmatch(p.stem))}
    if path.exists() or not counts:
        return [path]
    (count, *others) = sorted(int(c) for c in counts)
    named = [path.with_name(name) for name in _part_names(path.name, int(count))]
    absent = [part.name for part in named if not part.exists()]
    if absent or others:
        what = f"{absent[0]} is missing" if absent else "parts of two exports are mixed"
        raise InputError(f"{path}: its parts are not complete ({what}); copy all of them again")
    return named


def _header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Shapes of the tensors of one file and the state beside them; its words are not repeated."""
    try:
        # The library maps the file into memory, where a pipe or a device has no place.
        if not path.is_file():
            raise FileNotFoundError
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            shapes = {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError):  # the last: too large to map
        raise InputError(
            f"{path}: is missing or not a readable safetensors checkpoint; give a run folder that "
            "`dcamt train` wrote"
        ) from None
    try:
        state = json.loads(metadata["state"])
        ours = metadata["kind"] == _KIND and isinstance(state, dict)
    except (KeyError, ValueError, RecursionError):
        ours = False
    if not ours:
        raise InputError(f"{path}: is not a dcamt checkpoint; give one that `dcamt train` wrote")
    return shapes, state


def _is_usable(state: dict[str, Any]) -> bool:
    """Whether this is where a training was: its iteration and its best score so far."""
    iteration, best = state.get("iteration"), state.get("best")
    if not isinstance(iteration, int) or isinstance(iteration, bool) or iteration < 0:
        return False
    return best is None or (isinstance(best, int | float) and 0 <= best <= 1)


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
