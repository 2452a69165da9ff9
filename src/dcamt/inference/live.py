"""How much networks hold at once while they compute, counted without computing anything."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dcamt.methods.method import Method


def live_values(method: Method, channels: int, patch: tuple[int, int, int]) -> float:
    """float32 values alive at once for each voxel of a window that ``method`` predicts.

    ``patch``: voxels of the window. Weights and the window itself do not count, nor what kernels
    take beside.
    """
    branches = _Branches(method)
    before = {**dict(branches.named_parameters()), **dict(branches.named_buffers())}
    shapes = {name: value.to("meta") for name, value in before.items()}
    window = torch.empty(1, channels, *patch, device="meta")
    window = window.contiguous(memory_format=torch.channels_last_3d)
    # Views of what was there before are no results.
    with torch.no_grad(), _Live([window, *shapes.values()]) as live:
        functional_call(branches, shapes, (window,))
    return live.most / window.element_size() / window[0, 0].numel()


class _Branches(nn.Module):
    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def forward(self, window: Tensor) -> Tensor:
        return self.method.branches(window)


class _Live(TorchDispatchMode):
    """``most``: bytes of the results that were alive at one time, at most."""

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in before}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it PyTorch would first load its compiler, which takes seconds

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self._add(result.untyped_storage())
        return results

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.known.remove(key)
        self.now -= size
