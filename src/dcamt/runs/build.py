"""A method from its configuration, with new weights or with those of a run."""

from functools import partial
from pathlib import Path

import torch

from dcamt.config import MethodConfig, Section, validated
from dcamt.engine import checkpoint
from dcamt.errors import InputError
from dcamt.methods import METHODS
from dcamt.methods.method import Method
from dcamt.networks.vnet import STRIDE, VNet
from dcamt.records.run_folder import RunConfig, read_config


def build_method(config: RunConfig) -> Method:
    """The configured method with weights drawn from the run's seed; InputError if unknown."""
    options = _method_options(config.method)
    network = partial(
        VNet,
        len(config.plan.channels),
        len(config.plan.classes),
        config.network.width,
        dropout=config.network.dropout,
    )
    torch.manual_seed(config.seed)
    return METHODS[config.method.name](options, network)


def resolve_method(method: MethodConfig) -> MethodConfig:
    """``method`` with every option it has; InputError if the name or an option is unknown."""
    options = _method_options(method).model_dump(mode="json")
    return MethodConfig.model_validate({"name": method.name, **options})


def _method_options(method: MethodConfig) -> Section:
    if method.name not in METHODS:
        known = ", ".join(sorted(METHODS))
        raise InputError(f"method {method.name[:50]!r} is unknown; known methods: {known}")
    return validated(METHODS[method.name].Config, method.options, f"method {method.name}")


def load_run(run: Path, weights: str = "last") -> tuple[RunConfig, Method]:
    """A trained run: its configuration and its method with ``last`` or ``best`` weights."""
    config = read_config(run)
    check_fit(config, run / f"{weights}.safetensors")
    method = build_method(config)
    checkpoint.load(run / f"{weights}.safetensors", method)
    return config, method


def check_fit(config: RunConfig, weights: Path) -> None:
    """InputError unless ``weights`` hold just what ``config`` describes.

    Told from shapes alone: a stranger's configuration may describe a network of any size.
    """
    if any(size % STRIDE for size in config.plan.patch):
        raise InputError(f"{weights.parent}/config.yaml: plan.patch is no multiple of {STRIDE}")
    try:
        with torch.device("meta"):
            method = build_method(config)
    except (RuntimeError, ValueError, OverflowError, TypeError, MemoryError):
        raise InputError(
            f"{weights.parent}/config.yaml: describes a network that cannot be built"
        ) from None
    checkpoint.check(weights, method)
