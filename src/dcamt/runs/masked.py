"""Masked sums (SecAgg+): the server learns the mean of what the sites changed, and no more.

Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS 2020, as
Flower has it. Flower cuts values to a range and rounds them to 4,194,304 steps within it. So sites
send how they changed each weight, divided by the largest change of that weight at any site: nothing
is cut, be it a statistic of batch norm of several hundred, and the steps are fine.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from typing import Any

import flwr.server.workflow.secure_aggregation.secaggplus_workflow as of_server
import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.common import (
    Code,
    FitIns,
    FitRes,
    Parameters,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.compat.common.recorddict_compat import fitres_to_recorddict, recorddict_to_fitins
from flwr.server import LegacyContext
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.serverapp import Grid
from numpy.typing import NDArray
from torch import Tensor

_SHARE = 2 / 3
"""Of the sites must stay until a sum is unmasked; fewer cannot unmask the weights of one."""


def mask(seed: bytes, above: int, shapes: list[tuple[int, ...]]) -> list[NDArray[np.int64]]:
    """Random numbers from 0 to ``above`` (2**32), the same ones for the same seed.

    In the place of Flower's, which takes 32 bits of the seed for NumPy's generator: so few can be
    tried one after another. This is the key stream of ChaCha20 (RFC 8439).
    """
    assert above == 1 << 32
    stream = Cipher(algorithms.ChaCha20(sha256(seed).digest(), bytes(16)), mode=None).encryptor()
    return [
        np.frombuffer(stream.update(bytes(4 * int(np.prod(shape)))), dtype="<u4")
        .reshape(shape)
        .astype(np.int64)
        for shape in shapes
    ]


# By its name: the package has a function of the same name in the place of the module.
of_site: Any = import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
of_site.pseudo_rand_gen = of_server.pseudo_rand_gen = mask


def changes(sent: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How a site changed each weight in a round, float64."""
    found = {name: value.double() - shared[name].double() for name, value in sent.items()}
    return {name: value.contiguous() for name, value in found.items()}


def largest(changed: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest change of each weight, by its absolute value."""
    return {name: float(value.abs().max()) for name, value in changed.items()}


@dataclass
class _Strategy:
    """What Flower asks in a round: whom to ask, and what to do with the mean."""

    asked: Sequence[tuple[GridClientProxy, FitIns]]
    mean: Sequence[NDArray[np.float64]] = ()
    taken: Sequence[int] = ()

    def configure_fit(self, *given: Any) -> Sequence[tuple[GridClientProxy, FitIns]]:
        return self.asked

    def aggregate_fit(
        self, number: int, results: list[tuple[GridClientProxy, FitRes]], failures: Any
    ) -> tuple[None, dict[str, Any]]:
        self.taken = [proxy.node_id for proxy, _ in results]
        self.mean = parameters_to_ndarrays(results[0][1].parameters)
        return None, {}


def masked_mean(
    grid: Grid,
    context: Context,
    nodes: Sequence[int],
    scales: Mapping[str, float],
    most: int,
    timeout: float,
) -> tuple[dict[str, Tensor], list[int]]:
    """The mean of the changes that sites keep, each counted as it says, and the nodes in it.

    scales: the largest change of each weight at any site, by which it is divided. most: how much
    the site counts that counts most. timeout: s for an answer. No node is in a sum that did not
    come about. Each weight comes as a row of its values, float64.
    """
    settings = {name: float(scale) for name, scale in scales.items()}
    asked = [(GridClientProxy(n, grid, context.run_id), FitIns(_NOTHING, settings)) for n in nodes]
    strategy = _Strategy(asked)
    legacy = LegacyContext(context=context, strategy=strategy)
    legacy.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    legacy.state.array_records[MAIN_PARAMS_RECORD] = ArrayRecord()
    of_server.SecAggPlusWorkflow(
        num_shares=1.0,
        reconstruction_threshold=_SHARE,
        max_weight=float(most),
        clipping_range=1.0,
        timeout=timeout,
    )(grid, legacy)
    mean = {
        name: torch.from_numpy(np.asarray(value)) * scale
        for (name, scale), value in zip(sorted(scales.items()), strategy.mean, strict=False)
    }
    return mean, [*strategy.taken]


_NOTHING = Parameters([], "numpy.ndarray")


def send_masked(
    message: Message, context: Context, kept: Callable[[], tuple[Mapping[str, Tensor], int]]
) -> Message:
    """What a site answers to a message of SecAgg+.

    kept: gives its changes, and how much they count in the mean. Keys and masks are kept in
    ``context``, which stays at the site.
    """

    def plain(message: Message, context: Context) -> Message:
        """For Flower, which masks it in this process."""
        changed, cases = kept()
        scales = recorddict_to_fitins(message.content, keep_input=True).config
        parts = [
            (changed[name] / (float(scale) or 1.0)).flatten().numpy()
            for name, scale in sorted(scales.items())
        ]
        sent = FitRes(Status(Code.OK, ""), ndarrays_to_parameters(parts), cases, {})
        return Message(fitres_to_recorddict(sent, keep_input=True), reply_to=message)

    return of_site.secaggplus_mod(message, context, plain)
