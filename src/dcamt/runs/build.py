"""A method from its configuration, with new weights or with those of a run."""

import hashlib
from pathlib import Path
from typing import Any, TypeVar

import torch

from dcamt.config import (
    BackboneConfig,
    Config,
    MethodConfig,
    NetworkConfig,
    Patch,
    Plan,
    Triple,
)
from dcamt.data.plan import fits, multiples
from dcamt.distillation import Distilled
from dcamt.engine import checkpoint
from dcamt.errors import InputError
from dcamt.inference.sliding_window import check_stride
from dcamt.methods import METHODS
from dcamt.methods.method import Method
from dcamt.networks import BACKBONES
from dcamt.networks.backbone import Backbone, Network, Stride, common_stride
from dcamt.networks.convolution import take_fast_convolutions
from dcamt.pretraining import MaskedReconstruction
from dcamt.records.run_folder import RunConfig, read_config
from dcamt.section import Section, validated

PRETRAINING: dict[str, type[Method]] = {"masked-reconstruction": MaskedReconstruction}
"""What `dcamt pretrain` trains, by its name in the configuration. It segments nothing."""
DISTILLATION: dict[str, type[Method]] = {"distilled": Distilled}
"""What `dcamt distill` trains. It segments, but learns from another run."""
_KINDS = {**METHODS, **PRETRAINING, **DISTILLATION}


def build_method(config: RunConfig) -> Method:
    """The configured method with weights drawn from the run's seed.

    Raises InputError if it, or a backbone, is unknown, or if they do not go together.
    """
    options = _method_options(config.method)
    network = make_network(config.network, config.plan)
    torch.manual_seed(config.seed)
    return _KINDS[config.method.name](options, network)


def make_network(configured: NetworkConfig, plan: Plan) -> Network:
    """What makes backbones for the images of ``plan``; see dcamt.networks.backbone.Network."""
    usual = resolve_network(configured)

    def network(
        name: str | None = None,
        width: int | None = None,
        size: str | None = None,
        dropout: float = configured.dropout,
    ) -> Backbone:
        chosen: BackboneConfig = usual
        if name is not None:
            chosen = resolve_network(BackboneConfig(name=name, width=width, size=size))
        kind = BACKBONES[chosen.name]
        sizes: dict[str, Any] = {"width": chosen.width, "dropout": dropout}
        if kind.sizes:
            sizes["size"] = chosen.size
        if kind.adapts:
            sizes |= {"patch": plan.patch, "spacing": plan.spacing}
        make: Network = kind  # each has arguments of its own
        built = make(len(plan.channels), len(plan.classes), **sizes)
        take_fast_convolutions(built)  # libraries bring PyTorch's own
        return built

    return network


AnyBackbone = TypeVar("AnyBackbone", bound=BackboneConfig)


def resolve_network(network: AnyBackbone) -> AnyBackbone:
    """``network`` with the sizes that it has; InputError if there is no such backbone."""
    if network.name not in BACKBONES:
        known = ", ".join(BACKBONES)
        raise InputError(f"backbone {network.name[:50]!r} is unknown; known backbones: {known}")
    kind = BACKBONES[network.name]
    width = network.width or kind.usual_width
    if width % kind.width_step:
        raise InputError(
            f"backbone {network.name}: its width is a multiple of {kind.width_step}, not {width}"
        )
    if network.size is None:
        size = kind.sizes[0] if kind.sizes else None
    elif network.size in kind.sizes:
        size = network.size
    elif kind.sizes:
        known = ", ".join(kind.sizes)
        raise InputError(f"backbone {network.name} has the sizes {known}, not {network.size[:50]}")
    else:
        raise InputError(f"backbone {network.name} has no named sizes; set its width instead")
    return network.model_copy(update={"width": width, "size": size})


def backbones(config: Config) -> dict[str, type[Backbone]]:
    """The backbones that the configured method builds, by name; InputError if one is unknown."""
    options = _method_options(config.method)
    kind = _KINDS[config.method.name]
    names = [resolve_network(each).name for each in kind.backbones(options, config.network)]
    return {name: BACKBONES[name] for name in names}


def network_stride(config: Config, patch: Patch, spacing: Triple) -> Stride:
    """What every side of a patch of about ``patch`` voxels must be a multiple of."""
    return common_stride(kind.stride_for(patch, spacing) for kind in backbones(config).values())


def check_networks(config: RunConfig) -> None:
    """InputError unless the method can train with the backbones, patches and batches it is to.

    Nor may windows skip voxels when the run predicts.
    """
    plan = config.plan
    check_stride(plan.patch, config.predict)
    stride = network_stride(config, plan.patch, plan.spacing)
    if not fits(plan.patch, stride):
        raise InputError(
            f"data.patch = {list(plan.patch)}: every side must be a multiple of {multiples(stride)}"
        )
    check_patch(config)
    with torch.device("meta"):  # whatever else a method or a backbone refuses
        build_method(config)


def check_patch(config: RunConfig) -> None:
    """InputError if the patch is too small for the method, or for the norm at a bottleneck."""
    plan, train = config.plan, config.train
    least = _KINDS[config.method.name].least_side
    if min(plan.patch) < least:
        raise InputError(
            f"method {config.method.name}: data.patch = {list(plan.patch)}: each side must have at "
            f"least {least} voxels"
        )
    for name, kind in backbones(config).items():
        if kind.stride_for(plan.patch, plan.spacing) != plan.patch:
            continue
        why = f"the patch {list(plan.patch)} leaves one voxel at the bottleneck of {name}"
        if kind.norm == "instance":
            raise InputError(f"{why}, which instance norm makes 0; set a larger data.patch")
        for key in ("labeled_batch", "unlabeled_batch"):
            if kind.norm == "batch" and getattr(train, key) == 1:
                raise InputError(
                    f"train.{key} = 1 with {why}, so batch norm has one value; set train.{key}=2 "
                    "or a larger data.patch"
                )


def resolve_method(method: MethodConfig) -> MethodConfig:
    """``method`` with every option it has; InputError if the name or an option is unknown."""
    options = _method_options(method).model_dump(mode="json")
    return MethodConfig.model_validate({"name": method.name, **options})


def check_segments(method: MethodConfig, run: Path | None = None) -> None:
    """InputError if ``method``, perhaps that of a run folder, is no method of segmentation."""
    if method.name not in PRETRAINING:
        return
    if run is None:
        raise InputError(f"method {method.name} segments nothing; it is for `dcamt pretrain`")
    raise InputError(
        f"{run}: holds weights of `dcamt pretrain`, which segment nothing; train from them with "
        "`dcamt train --init`"
    )


def check_trains(method: MethodConfig, run: Path | None = None) -> None:
    """InputError unless `dcamt train` can train ``method``, perhaps that of a run folder."""
    check_segments(method, run)
    if method.name not in DISTILLATION:
        return
    if run is None:
        raise InputError(f"method {method.name} learns from a run; it is for `dcamt distill`")
    raise InputError(f"{run}: was begun with `dcamt distill`; go on with that command")


def _method_options(method: MethodConfig) -> Section:
    if method.name not in _KINDS:
        known = ", ".join(sorted(METHODS))
        raise InputError(f"method {method.name[:50]!r} is unknown; known methods: {known}")
    return validated(_KINDS[method.name].Config, method.options, f"method {method.name}")


def load_run(run: Path, weights: str = "last") -> tuple[RunConfig, Method]:
    """A trained run: its configuration and its method with ``last`` or ``best`` weights."""
    config = read_config(run)
    check_segments(config.method, run)
    check_fit(config, run / f"{weights}.safetensors")
    method = build_method(config)
    checkpoint.load(run / f"{weights}.safetensors", method)
    return config, method


def digest(config: RunConfig, method: Method) -> str:
    """Tells one network, with its weights and what it takes as input, from any other."""
    what = config.model_dump_json(include={"plan", "method", "network"})
    found = hashlib.sha256(what.encode())
    for name, value in method.state_dict().items():
        found.update(name.encode())
        found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def check_fit(config: RunConfig, weights: Path) -> None:
    """InputError unless ``weights`` hold just what ``config`` describes.

    Told from shapes alone: a stranger's configuration may describe a network of any size.
    """
    source = f"{weights.parent}/config.yaml"
    stride = network_stride(config, config.plan.patch, config.plan.spacing)
    if not fits(config.plan.patch, stride):
        raise InputError(f"{source}: plan.patch is no multiple of {multiples(stride)}")
    try:
        with torch.device("meta"):
            method = build_method(config)
    except (RuntimeError, ValueError, OverflowError, TypeError, MemoryError):
        raise InputError(f"{source}: describes a network that cannot be built") from None
    checkpoint.check(weights, method)
