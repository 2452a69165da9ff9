"""Weights to start from, taken out of the file of another training.

Of a file all that is asked is where networks lie in it, which their names tell: what stands before
the names of a backbone's own tensors.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dcamt.engine import checkpoint
from dcamt.errors import InputError
from dcamt.methods.method import Method
from dcamt.networks.backbone import Backbone

LEAST = 1 / 3
"""Share of a network's matrices and kernels, head apart, that must fit beside its first layer.

Other backbones share a decoder at most, the same one with other levels the fine ones."""
_LONGEST_NAME = 200
_MOST_CHANNELS = 1000
"""Of an image; a file may claim any number."""
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Start:
    """What a method starts with: weights by their names in it, and the names left as drawn."""

    weights: dict[str, Tensor]
    left: tuple[str, ...]


def read_start(path: Path, method: Method) -> Start:
    """The weights of a checkpoint that fit ``method``, which may be on the device "meta".

    Each network of the method takes those of one in the file: of the one with its own name, else of
    the one that fits best, and of several that fit alike the first by name (``student`` before
    ``teacher``). A weight is taken where name within the network and shape are the same. So a head
    of other classes stays as drawn, and so do all heads where one network of the file goes into
    several that are trained: starting exactly alike, these would teach each other nothing. A
    network that is of another backbone stays as drawn. Beyond the networks (attention, critics)
    weights of the same name and shape are taken.

    Other input channels are allowed: where a layer reads the image, each channel gets the mean of
    the file's weights over its channels, times their number over the new one. So an image whose
    channels are all the same gets the response that it got.

    Returned weights have the shapes and types of the method's and lie on the CPU. Only safetensors
    are read, and nothing before its shape is known. Raises InputError if the file is missing,
    damaged or not ours, if no network of the method fits, or if a weight is not finite.
    """
    shapes, _ = checkpoint.weights_in(path)
    wanted = {key: value for key, value in method.state_dict().items() if _is_weight(value)}
    taken = {name: of for name, of in _in_networks(shapes, method) if name in wanted}
    if not taken:
        raise InputError(
            f"{path}: its weights are of another backbone or width than the configured one; give a "
            "file of the same, or set network.name and network.width"
        )
    networks = [f"{name}." for name, _ in _networks(method)]
    for name, value in wanted.items():
        beyond = not name.startswith(tuple(networks))
        if beyond and shapes.get(name) == tuple(value.shape):
            taken[name] = name
    weights = _read(path, {name: (of, wanted[name]) for name, of in taken.items()})
    return Start(weights, tuple(name for name in wanted if name not in taken))


def _is_weight(value: Tensor) -> bool:
    """Whether it is learnt; integers are counters and indices, which a method has of its own."""
    return value.is_floating_point()


def _networks(method: Method) -> list[tuple[str, Backbone]]:
    return [(name, m) for name, m in method.named_modules() if isinstance(m, Backbone)]


def _in_networks(shapes: Mapping[str, Shape], method: Method) -> Iterator[tuple[str, str]]:
    """Names in the method and in the file of all that fits within networks."""
    chosen = {}
    for name, network in _networks(method):
        source = _source(shapes, name, network)
        if source is not None:
            chosen[name] = network, source
    learners = Counter(source for network, source in chosen.values() if _is_trained(network))
    for name, (network, source) in chosen.items():
        for key, value in network.state_dict().items():
            if _is_head(key) and learners[source] > 1:
                continue
            if _fits(shapes.get(f"{source}.{key}"), tuple(value.shape), network.channels):
                yield f"{name}.{key}", f"{source}.{key}"


def _source(shapes: Mapping[str, Shape], name: str, network: Backbone) -> str | None:
    """What stands before the tensors of the network in the file that suits ``network`` best."""
    asked = {
        key: tuple(value.shape)
        for key, value in network.state_dict().items()
        if value.ndim > 1 and _is_weight(value) and not _is_head(key)
    }
    first = next(iter(asked))  # the layer that reads the image
    fitting: Counter[str] = Counter()
    for found, shape in shapes.items():
        parts = found.split(".") if len(found) <= _LONGEST_NAME else []
        for i in range(1, len(parts)):
            key = ".".join(parts[i:])
            if key in asked and _fits(shape, asked[key], network.channels):
                fitting[".".join(parts[:i])] += 1
    enough = {
        before: count
        for before, count in fitting.items()
        if count >= LEAST * len(asked)
        and _fits(shapes.get(f"{before}.{first}"), asked[first], network.channels)
    }
    if name in enough:
        return name
    return min(enough, key=lambda b: (-enough[b], b), default=None)


def _fits(found: Shape | None, wanted: Shape, channels: int) -> bool:
    """Whether shapes are the same, but perhaps for the channels of the image."""
    if found is None or len(found) != len(wanted):
        return False
    reads_image = len(wanted) == 5 and wanted[1] == channels and 0 < found[1] <= _MOST_CHANNELS
    return found == wanted or (reads_image and (found[0], *found[2:]) == (wanted[0], *wanted[2:]))


def _is_head(key: str) -> bool:
    return key.split(".", maxsplit=1)[0] == "head"


def _is_trained(network: nn.Module) -> bool:
    return any(p.requires_grad for p in network.parameters())


def _read(path: Path, wanted: Mapping[str, tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors from the files of a checkpoint, each as the one that it is wanted for."""
    weights = {}
    try:
        for part in checkpoint.files_of(path):
            with safe_open(part, "pt") as file:
                here = set(file.keys())
                for name, (of, like) in wanted.items():
                    if of in here:
                        weights[name] = _as(file.get_tensor(of), like)
    except (OSError, SafetensorError, RuntimeError, LookupError, ValueError, TypeError):
        raise InputError(f"{path}: cannot be read (it is damaged); give another file") from None
    return weights


def _as(value: Tensor, like: Tensor) -> Tensor:
    """Weights in the type and shape of others; ValueError for what no weights are."""
    if not _is_weight(value):
        raise ValueError
    value = value.to(like.dtype)
    if not value.isfinite().all():
        raise ValueError
    if value.shape != like.shape:
        channels, new = value.shape[1], like.shape[1]
        value = (value.mean(1, keepdim=True) * (channels / new)).expand(like.shape)
    return value.contiguous()
