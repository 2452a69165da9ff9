"""Bytes that a site of a federation sends and receives in one round: Markdown rows.

    python benchmarks/bench_messages.py                     # pip install 'dcamt[federated]'

They are the bytes of the messages as Flower packs them, before TLS. A masked sum sends 8 bytes for
each number, as its masked numbers are larger than float32 holds. The rows with an option are of a
round between the first and the last, in which all weights travel.
"""

from typing import Any

import numpy as np
import torch
from flwr.app import Message
from flwr.common import ndarray_to_bytes
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

from dcamt.config import Normalization, Plan, load_config
from dcamt.federation import Protocol, stays
from dcamt.records.run_folder import RunConfig
from dcamt.runs.build import build_method, resolve_method, resolve_network
from dcamt.runs.flower_messages import as_record

PLAN = Plan(
    channels=("CT",),
    classes=("background", "organ"),
    ignore=None,
    orientation="RAS",
    spacing=(1, 1, 1),
    crop=False,
    normalization=(Normalization(scheme="zscore"),),
    patch=(96, 96, 96),
)
DCA_MT = "method.name=dca-mt", "network.name=vnet", "network.width=16"
ROWS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (DCA_MT, {}),
    (DCA_MT, {"half": True}),
    (DCA_MT, {"share": "attention"}),
    (DCA_MT, {"share": "heads"}),
    (("method.name=dca-mt", "network.name=vnet", "network.width=8"), {}),
    (("method.name=mean-teacher", "network.name=vnet", "network.width=16"), {}),
    (("method.name=vnet", "network.name=vnet", "network.width=16"), {}),
    (("method.name=vnet", "network.name=vnet", "network.width=8"), {}),
]
OPTIONS = {"half": "--half", "share": "--share {}"}


def packed(told: object, weights: dict[str, torch.Tensor] | None = None, half: bool = False) -> int:
    message = Message(as_record(told, weights, half), 1, "train.send")
    return sum(len(part.deflate()) for part in get_all_nested_objects(message).values())


def main() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
    print("| settings | numbers | received | sent | sent masked |")
    print("|---|---|---|---|---|")
    for row, options in ROWS:
        config, protocol = load_config(None, row), Protocol(3, 100, **options)
        told = {"plan": PLAN, "method": resolve_method(config.method)}
        told["network"] = resolve_network(config.network)
        method = build_method(RunConfig(**{**dict(config), **told}))
        own = stays(method, protocol)
        weights = {
            name: torch.randn(v.shape) if v.is_floating_point() else v
            for name, v in method.state_dict().items()
            if name not in own
        }
        losses = {"losses": {f"term{i}": torch.rand(100).tolist() for i in range(4)}}
        masked = sum(len(ndarray_to_bytes(np.zeros(v.shape, np.int64))) for v in weights.values())
        count = sum(value.numel() for value in weights.values())
        down, up = (packed(what, weights, protocol.half) for what in ({}, losses))
        sizes = [_megabytes(down), _megabytes(up)]
        sizes.append("" if protocol.half else _megabytes(masked + packed(losses)))
        given = [OPTIONS[name].format(value) for name, value in options.items()]
        print(f"| `{' '.join([*row, *given])}` | {count:,} | {' | '.join(sizes)} |", flush=True)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


if __name__ == "__main__":
    main()
