"""How much networks hold at once while they compute: counted in a trial."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dcamt.methods.method import Method
from dcamt.networks.backbone import Backbone, common_stride


def live_values(method: Method, channels: int) -> float:
    """float32 values alive at once for each voxel of a window that ``method`` predicts.

    Tried on the CPU with the smallest window of ``channels`` that keeps two voxels at the
    bottleneck: on the device meta PyTorch would first load what it compiles with. Weights and the
    window itself do not count, nor what kernels take beside. A transformer pads such a small
    window, so its count may be up to twice too high.
    """
    x, y, z = common_stride(m.stride for m in method.modules() if isinstance(m, Backbone))
    window = torch.zeros(1, channels, 2 * x, y, z)
    window = window.contiguous(memory_format=torch.channels_last_3d)
    # Views of what was there before are no results.
    before = [window, *method.parameters(), *method.buffers()]
    with torch.no_grad(), _Live(before) as live:
        method.branches(window)
    return live.most / window.element_size() / window[0, 0].numel()


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
