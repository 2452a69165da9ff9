"""Gradients of several processes, averaged while they are computed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

_BUCKET = 25_000_000
"""Bytes of gradients that are sent together, as PyTorch's own DDP does."""


@contextmanager
def averaged_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Make the gradients that come up meanwhile the means over all processes.

    They are sent in buckets as they come, while those of other layers are still computed.
    """
    bucket: list[nn.Parameter] = []
    sent: list[tuple[Any, Tensor, list[Tensor]]] = []

    def send() -> None:
        gradients = [p.grad for p in bucket if p.grad is not None]
        flat = _flatten_dense_tensors(gradients)
        sent.append((dist.all_reduce(flat, async_op=True), flat, gradients))
        bucket.clear()

    def add(parameter: Tensor) -> None:
        bucket.append(parameter)  # type: ignore[arg-type]
        if sum(p.nbytes for p in bucket) >= _BUCKET:
            send()

    hooks = [p.register_post_accumulate_grad_hook(add) for p in parameters]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if bucket:
        send()
    for work, flat, gradients in sent:
        work.wait()
        means = _unflatten_dense_tensors(flat / dist.get_world_size(), gradients)
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean)
