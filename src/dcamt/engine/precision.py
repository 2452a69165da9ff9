"""Whether this processor computes the layers of a network rightly in reduced precision.

Kernels for bfloat16 are younger than those for float32, and some processors take one that is wrong:
PyTorch 2.13 (oneDNN 3.12) on AVX-512 with bfloat16 units but without AMX takes the gradient of a
3x3x3 weight from memory that nobody wrote, if the input is 2 voxels long. The loss shows nothing
until the weights are ruined. So every layer is held against float32 before training begins.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from dcamt.memory import kept_memory
from dcamt.methods.method import Method
from dcamt.types import Batch, Progress

TOLERANCE = 0.05
"""Largest relative error (2-norm) of a right result; rounding to bfloat16 gives 0.3 to 0.7 %."""
POISON = 1 << 21
"""Values that memory is filled with before each check, so that what is never written is noticed."""
_CHECKED = (nn.Conv3d, nn.ConvTranspose3d, nn.Linear)


@dataclass(frozen=True)
class Layer:
    """One layer at work: its settings, with weights of its own, and what it is given.

    shape: of the input, (B, C, X, Y, Z), or (..., C) for a linear layer.
    """

    module: nn.Module
    shape: tuple[int, ...]
    channels_last: bool

    def __str__(self) -> str:
        return f"{self.module} with input {' x '.join(map(str, self.shape))}"


def use_float32_where_needed(
    method: Method, batch: Callable[[], Batch], fabric: Fabric
) -> str | None:
    """Compute in float32 what this processor computes wrongly in the precision of ``fabric``.

    ``batch`` gives one of those to come, and ``method`` is on the device of ``fabric``. Returns a
    sentence for the user if a layer was wrong, else None; weights stay as they are. Does nothing
    where ``fabric`` computes in float32.
    """
    dtype = _reduced(fabric)
    if dtype is None:
        return None
    used = layers_in_use(method, batch().to(fabric.device))
    wrong = [names for layer, names in used if is_wrong(layer, dtype)]
    if not wrong:
        return None
    modules = dict(method.named_modules())
    for name in {name for names in wrong for name in names}:
        compute_in_float32(modules[name])
    kind = str(dtype).removeprefix("torch.")
    return (
        f"this processor computes {len(wrong)} of {len(used)} kinds of layers wrongly in {kind} "
        f"(off by more than {TOLERANCE:.0%}); they are computed in float32"
    )


def told_of_float32(precision: str, fabric: Fabric) -> str | None:
    """A sentence for the user whose ``precision`` the device of ``fabric`` has no units for."""
    if precision != "bf16-mixed" or _reduced(fabric):
        return None
    return (
        "train.precision = bf16-mixed: this device has no units for bfloat16 and would emulate it, "
        "many times slower; it trains in float32"
    )


def _reduced(fabric: Fabric) -> torch.dtype | None:
    """The type that ``fabric`` computes in where that is not float32."""
    kind = fabric.device.type
    with fabric.autocast():
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def layers_in_use(method: Method, batch: Batch) -> list[tuple[Layer, set[str]]]:
    """Every distinct layer of an iteration, early and late, and the names of its modules."""
    trial = deepcopy(method).train()
    found: dict[tuple[Any, ...], tuple[Layer, set[str]]] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            last = x.ndim == 5 and x.is_contiguous(memory_format=torch.channels_last_3d)
            # Settings and sizes as they are printed, and the bias.
            key = (str(module), type(module), tuple(x.shape), last)
            layer = Layer(module, tuple(x.shape), last)
            found.setdefault(key, (layer, set()))[1].add(name)

        return look

    hooks = [
        module.register_forward_pre_hook(note(name))
        for name, module in trial.named_modules()
        if isinstance(module, _CHECKED)
    ]
    device = batch.image_l.device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        for at in (Progress(0, 100), Progress(99, 100)):
            trial.step(batch, at, lambda loss, *parts: None)
    for hook in hooks:
        hook.remove()
    return list(found.values())


def is_wrong(layer: Layer, dtype: torch.dtype, exact: torch.dtype = torch.float32) -> bool:
    """Whether output or gradients of ``layer`` in ``dtype`` are off from those in ``exact``."""
    module = deepcopy(layer.module).requires_grad_(True)
    device = next(module.parameters()).device
    random = torch.Generator(device).manual_seed(0)
    x = torch.randn(layer.shape, generator=random, device=device)
    if layer.channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    right = _compute(deepcopy(module).to(exact), x.to(exact), exact)
    with kept_memory():  # else the system hands out zeros in place of what was freed
        _poison(device)
        found = _compute(module, x, dtype)
    return any(_error(a, b) > TOLERANCE for a, b in zip(found, right, strict=True))


def compute_in_float32(module: nn.Module) -> None:
    """Make ``module`` compute in float32 within autocast, too; its weights stay its own."""
    kind = type(module)
    module.__class__ = type(f"Float32{kind.__name__}", (_InFloat32, kind), {})


class _InFloat32(nn.Module):
    def forward(self, x: Tensor, *more: Any) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float(), *more)


def _compute(module: nn.Module, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Output, gradient of the input and gradients of the parameters, for a fixed random loss."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    reduced = dtype in (torch.bfloat16, torch.float16)
    with torch.autocast(x.device.type, dtype if reduced else None, enabled=reduced):
        y = module(x)
    random = torch.Generator(x.device).manual_seed(1)
    gradient = torch.randn(y.shape, generator=random, device=x.device).to(y.dtype)
    y.backward(gradient.contiguous(memory_format=torch.preserve_format))
    parameters = [p.grad for p in module.parameters()]
    return [t.detach() for t in (y, x.grad, *parameters) if t is not None]


def _error(found: Tensor, right: Tensor) -> float:
    """Relative error in the 2-norm; infinite where ``found`` is not finite."""
    found, right = found.double(), right.double()
    if not found.isfinite().all():
        return float("inf")
    return float((found - right).norm() / right.norm().clamp(min=1e-30))


def _poison(device: torch.device) -> None:
    """Leave freed memory full of values that no right result can come from."""
    blocks = [torch.full((POISON >> k,), float("nan"), device=device) for k in range(12)]
    del blocks


def wrong_shapes(
    shapes: Iterable[tuple[int, int, int]], dtype: torch.dtype, device: torch.device
) -> list[tuple[int, int, int]]:
    """Those of ``shapes`` (voxels) in which a 3x3x3 convolution of a batch of 2 is wrong."""
    wrong = []
    for shape in shapes:
        module = nn.Conv3d(16, 16, 3, padding=1, device=device)
        exact = torch.float64 if dtype == torch.float32 else torch.float32
        layer = Layer(module, (2, 16, *shape), channels_last=True)
        if is_wrong(layer, dtype, exact):
            wrong.append(shape)
    return wrong
