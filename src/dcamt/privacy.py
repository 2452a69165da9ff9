"""Differential privacy of a site: its change is bounded, and noise is added to the mean.

McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018, algorithm 1
with a fixed bound, where all sites take part in each round. The noise hides whether a site took
part, with all of its scans.
"""

import hmac
import math
from collections.abc import Mapping
from hashlib import shake_256

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr, ndtri
from torch import Tensor

DELTA = 1e-5
"""Largest probability with which the weights may tell more than epsilon allows."""


def clipped(
    sent: Mapping[str, Tensor], shared: Mapping[str, Tensor], most: float
) -> dict[str, Tensor]:
    """The weights of a site, with a change since ``shared`` of at most ``most``.

    That is the L2 norm over all weights together; a larger change keeps its direction. What is no
    floating-point number, such as a counter, stays as it is in ``shared``.
    """
    changes = {
        name: value.double() - shared[name].double()
        for name, value in sent.items()
        if value.is_floating_point()
    }
    norm = math.sqrt(sum(float(change.square().sum()) for change in changes.values()))
    scale = most / max(norm, most)
    return {
        name: (shared[name].double() + scale * changes[name]).to(value.dtype)
        if name in changes
        else shared[name].clone()
        for name, value in sent.items()
    }


def noisy(
    mean: Mapping[str, Tensor], deviation: float, secret: bytes, number: int
) -> dict[str, Tensor]:
    """``mean`` with Gaussian noise of that standard deviation on each floating-point value.

    Whoever knows the ``secret`` can take the noise away. The noise follows from the secret, from
    the ``number`` of the round and from ``mean``. So a round that is repeated after a stop gets the
    same noise. If another site was lost meanwhile, the mean is another one and gets other noise:
    with the same noise, the difference of both would show the change of that site.
    """
    key = hmac.new(secret, number.to_bytes(8, "big"), "sha256")
    for name, value in sorted(mean.items()):
        key.update(name.encode())
        key.update(value.contiguous().numpy().tobytes())
    return {
        name: (value.double() + deviation * _gaussian(key.digest(), name, value.shape)).to(
            value.dtype
        )
        if value.is_floating_point()
        else value
        for name, value in mean.items()
    }


def _gaussian(key: bytes, name: str, shape: torch.Size) -> Tensor:
    """Standard normal values, float64, from SHAKE-256 of ``key`` and ``name``.

    PyTorch's own generator keeps 32 bits of its seed, which can be tried one after another.
    """
    drawn = shake_256(key + name.encode()).digest(8 * shape.numel())
    whole: NDArray[np.uint64] = np.frombuffer(drawn, "<u8") >> np.uint64(12)
    uniform = (whole + 0.5) / 2.0**52  # never 0 or 1
    return torch.from_numpy(np.asarray(ndtri(uniform))).reshape(shape)


def epsilon(noise: float, rounds: int, delta: float = DELTA) -> float:
    """What ``rounds`` means with noise tell of a site: the epsilon of that ``delta``.

    noise: standard deviation of the noise on the sum, over the bound on a change. Whether a site
    took part or changed nothing, the probability of any result differs by a factor of exp(epsilon)
    at most, but for ``delta``. All sites take part in each round, so the rounds together are one
    Gaussian mechanism with noise ``noise / sqrt(rounds)``. Its exact curve is that of Balle and
    Wang, "Improving the Gaussian Mechanism for Differential Privacy", ICML 2018, theorem 8.
    """
    across = noise / math.sqrt(rounds)

    def beyond(value: float) -> float:
        least, shift = 1 / (2 * across), value * across
        return float(ndtr(least - shift) - np.exp(value + log_ndtr(-least - shift)) - delta)

    if beyond(0) <= 0:
        return 0.0
    most = 1.0
    while beyond(most) > 0:
        most *= 2
    return float(brentq(beyond, 0, most))
