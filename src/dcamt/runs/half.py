"""Half precision on the way: weights travel as float16, each with a power of 2 of its own.

float16 ends at 65,504 and gets coarse below 0.00006. So each weight tensor is scaled until its
largest value is between 16,384 and 32,768. A power of 2 costs no precision, so what was rounded
once travels without any further change.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

_POWER = "/power"
"""After the name of a weight: of 2, by which its values are multiplied at the other end."""
_SMALLEST = -100
"""A weight whose values are all below 2 to this power may be rounded to 0."""


def halved(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as they travel: float16 and powers of 2. Counters stay as they are."""
    packed = {}
    for name, value in weights.items():
        packed[name] = value
        if value.is_floating_point():
            packed[name + _POWER] = power = _power(value)
            packed[name] = torch.ldexp(value.double(), -power).half()
    return packed


def restored(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``halved`` packed, in float32; other weights as they are.

    Raises KeyError, RuntimeError or TypeError for what cannot be unpacked.
    """
    weights = {name: value for name, value in packed.items() if not name.endswith(_POWER)}
    for name, power in packed.items():
        if name.endswith(_POWER):
            own = name.removesuffix(_POWER)
            weights[own] = torch.ldexp(weights[own].double(), power).float()
    return weights


def rounded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as they are after a way in half precision."""
    return restored(halved(weights))


def _power(value: Tensor) -> Tensor:
    """The power of 2 for a weight; the same for the weight when it is rounded."""
    mantissa, power = torch.frexp(value.abs().max())
    _, carried = torch.frexp(mantissa.half().float())  # 1 if it is rounded up to 1
    return (power + carried).clamp(min=_SMALLEST) - 15
