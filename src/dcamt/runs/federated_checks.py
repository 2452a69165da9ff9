"""What a federation is asked to do must go together: checked before a scan is read."""

import math
from collections.abc import Mapping

import torch

from dcamt.config import Config
from dcamt.errors import InputError
from dcamt.federation import Protocol, Ready, batch_norm, part_of
from dcamt.records.run_folder import RunConfig
from dcamt.runs.build import build_method


def check_protocol(config: Config, protocol: Protocol) -> None:
    """InputError for what does not go together."""
    if protocol.rounds < 1 or protocol.iterations < 1:
        raise InputError("--rounds and --iterations: give whole numbers of at least 1")
    if protocol.proximal < 0:
        raise InputError(f"--proximal {protocol.proximal:g}: give a number of at least 0")
    if "iterations" in config.train.model_fields_set:
        raise InputError("train.iterations: --rounds and --iterations say how many; leave it out")
    if config.train.devices > 1:
        raise InputError("train.devices: a federation trains in one process; leave it out")
    for name, value in (("clip", protocol.clip), ("noise", protocol.noise)):
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"--{name} {value:g}: give a number above 0")
    if bool(protocol.clip) != bool(protocol.noise):
        raise InputError("--clip and --noise: give both; noise hides a change that has a bound")
    if protocol.clip and protocol.half:
        raise InputError("--half: leave it out with --clip; rounding could exceed that bound")
    if protocol.clip and protocol.share != "all":
        raise InputError(
            "--share: leave it out with --clip; what stays at a site is sent once at the end, and "
            "that change of all rounds would not fit the bound of one"
        )
    if protocol.half and protocol.secure:
        raise InputError("--half: leave it out with --secure; masked sums travel as whole numbers")


def check_travels(config: RunConfig, protocol: Protocol) -> None:
    """InputError where the network does not have what the protocol needs, or has what it bars."""
    with torch.device("meta"):
        method = build_method(config)
    norms = batch_norm(method)
    if protocol.strategy == "fedbn" and not norms:
        raise InputError(
            f"--strategy fedbn: backbone {config.network.name} has no batch norm; choose fedavg or "
            "fedprox"
        )
    if protocol.clip and norms:
        raise InputError(
            "--clip: statistics of batch norm change by hundreds, which no bound fits; choose a "
            "method and a backbone without it, such as network.name=segresnet, unet or mednext"
        )
    if protocol.share == "attention" and not part_of(method, "attention"):
        raise InputError(
            f"--share attention: method {config.method.name} has no cross-attention as it is set; "
            "choose method dca-mt, or another --share"
        )


def told_of_own_parts(ready: Mapping[str, Ready], protocol: Protocol) -> str | None:
    """A warning where a site without labels would keep a part of the network to itself."""
    if protocol.strategy != "fedbn" and protocol.share == "all":
        return None
    bare = [name for name, one in ready.items() if not one.labeled]
    if not bare:
        return None
    return (
        f"{', '.join(bare)}: has no labels, and the part of the network that stays there learns "
        "without any. Its network may find nothing: use --strategy fedavg and --share all, or give "
        "the site a label"
    )
