"""One batch in several processes: each computes its share of the patches, all know the whole.

While a method is computed in shares, every process is given the same batch and draws the same
numbers. A network computes only this process's patches; then all outputs are gathered. So losses
see the whole batch in every process, and a method need not know that there are others.

Gradients follow one rule: **within a share they are N times as large**, N processes. A parameter of
a share has N times its part of the gradient there, and one that is used on the whole batch has the
whole gradient in every process. The mean over processes is right for both, and for their sum.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from dcamt.errors import InputError
from dcamt.networks.backbone import Backbone
from dcamt.networks.critic import Critic
from dcamt.networks.discriminator import Discriminator
from dcamt.networks.distance import WithDistance

_BY_PATCH: dict[type[nn.Module], tuple[str, ...]] = {
    Backbone: ("forward", "encode", "upsample", "decode_features", "decode"),
    WithDistance: ("forward",),
    Discriminator: ("forward",),
    Critic: ("forward",),
}
"""What takes and gives tensors of B patches, where no patch acts on another but by batch norm."""


@dataclass(frozen=True)
class _Share:
    """The patches of a batch that this process computes."""

    sizes: tuple[int, ...]  # patches of each process
    mine: int  # the number of this one

    @property
    def own(self) -> slice:
        begin = sum(self.sizes[: self.mine])
        return slice(begin, begin + self.sizes[self.mine])

    @property
    def whole(self) -> int:
        return sum(self.sizes)


@dataclass
class _Now:
    active: bool = False
    share: _Share | None = None  # within a network that is computed in shares


_now = _Now()


def share_out(module: nn.Module) -> None:
    """Let the networks in ``module`` be computed in shares, in place; weights stay as they are.

    They are only while ``in_shares`` lasts. Raises InputError for a network with dropout whose mask
    cannot be shared out.
    """
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            _derive(part, {"forward": _normalise})
        elif isinstance(part, nn.Dropout3d):
            _derive(part, {"forward": _drop})
        elif isinstance(part, _DropoutNd) and part.p > 0:
            raise InputError(
                f"a network has a layer {part}, which several processes would draw otherwise than "
                "one; set train.devices=1"
            )
        for kind, names in _BY_PATCH.items():
            if isinstance(part, kind):
                _derive(part, dict.fromkeys(names, _in_share))


def _derive(module: nn.Module, methods: dict[str, Callable[..., Any]]) -> None:
    """Give ``module`` new ``methods``, which are told the plain one first."""
    kind = type(module)

    def bound(name: str) -> Callable[..., Any]:
        def call(self: nn.Module, *given: Any) -> Any:
            return methods[name](getattr(super(made, self), name), self, *given)

        return call

    made = type(kind.__name__, (kind,), {name: bound(name) for name in methods})
    module.__class__ = made


@contextmanager
def in_shares(processes: int) -> Iterator[None]:
    """Meanwhile networks that ``share_out`` was given are computed in shares, if there are several.

    The default group of torch.distributed must be these ``processes``, and all must do the same.
    """
    _now.active = processes > 1
    try:
        yield
    finally:
        _now.active = False


def _in_share(plain: Callable[..., Any], module: nn.Module, *given: Any) -> Any:
    patches = len(given[0])
    if not _now.active or _now.share is not None or patches < dist.get_world_size():
        return plain(*given)  # of too few patches every process computes all
    share = _share_of(patches)
    taken = [_take(each, share) for each in given]
    _now.share = share
    try:
        found = plain(*taken)
    finally:
        _now.share = None
    return _give(found, share)


def _share_of(patches: int) -> _Share:
    processes = dist.get_world_size()
    each, more = divmod(patches, processes)
    sizes = tuple(each + (number < more) for number in range(processes))
    return _Share(sizes, dist.get_rank())


def _take(given: Any, share: _Share) -> Any:
    if isinstance(given, _Skips):
        return list(given.own)
    if isinstance(given, Tensor):
        return _Take.apply(given, share)
    return [_take(each, share) for each in given]


def _give(found: Any, share: _Share) -> Any:
    if isinstance(found, Tensor):
        return _Give.apply(found, share)
    if isinstance(found, list):
        return _Skips(found, share)
    return tuple(_give(each, share) for each in found)


class _Skips(Sequence[Tensor]):
    """Skips of a whole batch, of which a process has its share until somebody looks at them.

    Most methods hand them on to the decoder as they are, and they are large.
    """

    def __init__(self, own: list[Tensor], share: _Share):
        self.own, self.share = own, share

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return _Give.apply(self.own[index], self.share)


class _Take(Function):
    """This process's patches of a tensor that all have."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, share: _Share) -> Tensor:
        ctx.share = share
        return whole[share.own]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _gathered(gradient, ctx.share) / len(ctx.share.sizes), None


class _Give(Function):
    """The patches of all processes, from those of each."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, share: _Share) -> Tensor:
        ctx.share = share
        return _gathered(own, share)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.share.own] * len(ctx.share.sizes), None


def _gathered(own: Tensor, share: _Share) -> Tensor:
    """``(b, ...)`` of each process to ``(B, ...)``, with channels last where there are voxels."""
    laid = own.movedim(1, -1) if own.ndim == 5 else own
    most = share.sizes[0]  # all send as many
    if len(laid) < most:
        laid = torch.cat([laid, laid.new_zeros(most - len(laid), *laid.shape[1:])])
    laid = laid.contiguous()
    parts = [torch.empty_like(laid) for _ in share.sizes]
    dist.all_gather(parts, laid)
    whole = torch.cat([part[:size] for part, size in zip(parts, share.sizes, strict=True)])
    return whole.movedim(-1, 1) if own.ndim == 5 else whole


def _drop(plain: Callable[[Tensor], Tensor], layer: nn.Dropout3d, x: Tensor) -> Tensor:
    """Dropout of channels by the mask that is drawn for the whole batch, the same everywhere."""
    share = _now.share
    if share is None or not layer.training or layer.p == 0:
        return plain(x)
    ones = x.new_ones(share.whole, x.shape[1], 1, 1, 1)
    return x * F.dropout3d(ones, layer.p)[share.own]


def _normalise(plain: Callable[[Tensor], Tensor], layer: _BatchNorm, x: Tensor) -> Tensor:
    """Batch norm by the mean and variance of the whole batch."""
    share = _now.share
    if share is None or not layer.training:
        return plain(x)
    y, mean, variance, count = _Normalise.apply(x, layer.weight, layer.bias, layer.eps, share)
    if layer.running_mean is not None and layer.running_var is not None:
        assert layer.num_batches_tracked is not None
        layer.num_batches_tracked.add_(1)
        seen = layer.momentum or 1 / float(layer.num_batches_tracked)
        layer.running_mean.lerp_(mean, seen)
        layer.running_var.lerp_(variance * (count / (count - 1)), seen)
    return y


class _Normalise(Function):
    """Batch norm of ``(b, C, ...)``, this process's patches, as of all patches.

    Also gives mean and variance ``(C,)`` of all, and of how many values these are. Processes send
    one another mean and variance forth, and two sums a channel back (Ioffe and Szegedy, ICML 2015).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, share: _Share
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
        mine = torch.stack([mean, variance])
        parts = [torch.empty_like(mine) for _ in share.sizes]
        dist.all_gather(parts, mine)
        means, variances = torch.stack(parts).unbind(1)
        part = torch.tensor(share.sizes, device=x.device).unsqueeze(1) / share.whole
        mean = (part * means).sum(0)
        variance = (part * (variances + (means - mean).square())).sum(0)
        y = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.eps, ctx.share = eps, share
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance, x[:, 0].numel() // len(x) * share.whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        own = x[:, 0].numel()
        whole = own // len(x) * ctx.share.whole
        # As if the own patches were all; then the own means are replaced by those of all.
        for_x, for_weight, for_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, scale, True, ctx.eps, [True, True, True]
        )
        sums = torch.stack([for_bias, for_weight])
        of_all = sums.clone()
        dist.all_reduce(of_all)
        shift, slope = weight * scale * (sums / own - of_all / whole)
        slope = slope * scale
        each = (1, -1, *(1 for _ in x.shape[2:]))
        for_x = for_x + (shift - slope * mean).view(each) + x * slope.view(each)
        return for_x.to(x.dtype), for_weight, for_bias, None, None


def mean_of_processes(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """Gradients of parameters, by ``torch.autograd.grad`` in shares, made those of the batch."""
    if not _now.active:
        return gradients
    flat = _flatten_dense_tensors(gradients)
    dist.all_reduce(flat)
    return _unflatten_dense_tensors(flat / dist.get_world_size(), gradients)
