"""What sites of a federation tell each other: summaries of scans, weights, losses. Never a scan.

Before training, every site sends a ``SiteSummary``, and one plan is made for all. In each round
every site sends a ``SiteUpdate``, and the new weights are the mean of theirs. Nothing else leaves a
site but the scores of its validation cases, which have numbers in place of names.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dcamt.config import ClassCodes, DataConfig, Plan
from dcamt.data.dataset import Dataset
from dcamt.data.plan import Fingerprint, StrideOf, make_plan, schemes_of
from dcamt.errors import InputError
from dcamt.networks.attention import CrossAttention
from dcamt.networks.backbone import Backbone
from dcamt.privacy import DELTA, epsilon

HOUNSFIELD = -1024.0, 3071.0
"""Intensities of CT that a histogram counts, one by one; what lies beyond is counted at its ends.
"""
_BINS = 4096


Strategy = Literal["fedavg", "fedprox", "fedbn"]
Share = Literal["all", "attention", "heads"]


@dataclass(frozen=True)
class Protocol:
    """What all sites do: in each round so many iterations, then the mean of their weights.

    proximal: weight mu of FedProx's term, see ``dcamt.runs.sites``; 0 is FedAvg. secure: weights
    are masked, so that nobody learns more than their mean. clip, noise: bound on what a site
    changes in a round (L2 norm), and the standard deviation of the noise on the sum of the changes,
    over that bound; see ``dcamt.privacy``, 0 is without. half: weights travel in half precision.
    share: the weights that travel; the others stay at each site.
    """

    rounds: int
    iterations: int
    strategy: Strategy = "fedavg"
    proximal: float = 0.0
    secure: bool = False
    clip: float = 0.0
    noise: float = 0.0
    half: bool = False
    share: Share = "all"

    @property
    def total(self) -> int:
        """Iterations of a site in all rounds."""
        return self.rounds * self.iterations

    @property
    def privacy(self) -> str:
        """What all rounds together tell of a site, where there is noise; rounded up."""
        told = math.ceil(100 * epsilon(self.noise, self.rounds)) / 100
        return f"epsilon {told:.2f} at delta {DELTA:g}"

    def __str__(self) -> str:
        proximal = f" with {self.proximal:g}" if self.strategy == "fedprox" else ""
        parts = [
            f"{self.strategy}{proximal}",
            *(["masked"] if self.secure else []),
            *(["half precision"] if self.half else []),
            *([f"{self.share} alone"] if self.share != "all" else []),
            f"{self.rounds} x {self.iterations} iterations",
        ]
        if self.noise:
            parts.append(f"clip {self.clip:g} and noise {self.noise:g} ({self.privacy})")
        return ", ".join(parts)


@dataclass(frozen=True)
class Histogram:
    """How many labelled voxels of one channel have which intensity.

    The values lie evenly from ``low`` to ``high``; each voxel is counted at the nearest one.
    """

    low: float
    high: float
    counts: list[int]

    def values(self) -> NDArray[np.float32]:
        """An intensity for each voxel, ``(M,)`` float32, in rising order."""
        at = np.linspace(self.low, self.high, len(self.counts), dtype=np.float32)
        return np.repeat(at, self.counts)


@dataclass(frozen=True)
class SiteSummary:
    """All that a site says of its N training scans before training; plain values, for JSON.

    channels, classes, ignore, codes: as the data set names them; no classes where nothing does, and
    then what it calls its channels does not count.
    whole, content: voxels of each scan, and of its box that is not zero. spacing: in mm. inside:
    share of voxels that are not zero. Scans come in order of size, not of name. lost: labelled
    voxels outside the content. histograms: of each channel whose intensities are scaled alike in
    all scans, as in CT; None for the others, which need none.
    """

    channels: list[str]
    classes: list[str]
    ignore: int | None
    codes: dict[str, Any]
    whole: list[list[int]]
    content: list[list[int]]
    spacing: list[list[float]]
    inside: list[float]
    lost: int
    histograms: list[Histogram | None]


@dataclass(frozen=True)
class Ready:
    """What a site tells once its scans are prepared by the plan of all; cases by number, from 1.

    flip: axes along which its patches may be mirrored. rotate: whether they may be turned. licence:
    of its data set.
    """

    flip: list[int]
    rotate: bool
    labeled: list[int]
    unlabeled: list[int]
    val: list[int]
    licence: str


@dataclass(frozen=True)
class SiteUpdate:
    """What a site sends after its iterations of a round.

    weights: by their names in the method, on the CPU. cases: how much it counts in the mean: the
    number of scans that it trains on, or with a bound on its change 1, as that number would tell of
    its data. losses: each term, iteration by iteration; none with such a bound.
    """

    weights: dict[str, Tensor]
    cases: int
    losses: dict[str, list[float]]


def summarise(dataset: Dataset, found: Fingerprint, data: DataConfig) -> SiteSummary:
    """What planning needs of a site's scans, without a name and without a voxel of them."""
    order = np.lexsort((*found.whole.T, *found.spacings.T, found.inside))
    return SiteSummary(
        channels=[*dataset.channels],
        classes=[*dataset.classes],
        ignore=dataset.ignore,
        codes={name: code.model_dump(mode="json") for name, code in dataset.codes.items()},
        whole=found.whole[order].tolist(),
        content=found.shapes[order].tolist(),
        spacing=found.spacings[order].tolist(),
        inside=found.inside[order].tolist(),
        lost=found.lost,
        histograms=[
            _histogram(found.foreground[:, channel], data) if scheme == "ct" else None
            for channel, scheme in enumerate(schemes_of(dataset.channels, data))
        ],
    )


def _histogram(values: NDArray[np.float32], data: DataConfig) -> Histogram:
    low, high = data.window or HOUNSFIELD
    nearest = np.rint((np.clip(values, low, high) - low) / (high - low) * (_BINS - 1))
    counts = np.bincount(nearest.astype(np.int64), minlength=_BINS)
    return Histogram(low, high, counts.tolist())


def agree(summaries: Mapping[str, SiteSummary], data: DataConfig, stride: StrideOf) -> Plan:
    """The plan for all sites, from their summaries by name; as for one data set of all scans.

    Percentiles of intensities are those of the histograms: to 1 HU, or to 1/4095 of a window.
    Raises InputError where sites differ in channels, classes or the ignored label, or where no site
    names a class.
    """
    sites = [*summaries.values()]
    # A site without labels, whose data set names no class, may be a folder of images alone.
    named = {name: site for name, site in summaries.items() if site.classes}
    classes = _same("classes", {name: site.classes for name, site in named.items()})
    channels = _same("channels", {name: site.channels for name, site in named.items()})
    (ignore,) = _same("the ignored label", {name: [site.ignore] for name, site in named.items()})
    codes = {name: code for site in sites for name, code in site.codes.items()}
    dataset = Dataset(
        root=Path(),
        name="",
        channels=tuple(channels),
        classes=tuple(classes),
        ignore=ignore,
        cases=(),
        codes={name: ClassCodes.model_validate(code) for name, code in codes.items()},
    )
    found = Fingerprint(
        whole=np.array([size for site in sites for size in site.whole]),
        shapes=np.array([size for site in sites for size in site.content]),
        spacings=np.array([size for site in sites for size in site.spacing]),
        inside=np.array([share for site in sites for share in site.inside]),
        lost=sum(site.lost for site in sites),
        foreground=_foreground([*named.values()], len(channels)),
    )
    return make_plan(dataset, found, data, stride)


def _same(what: str, told: Mapping[str, list[Any]]) -> list[Any]:
    """What all sites tell; InputError if two differ, or if none tells anything."""
    if not told:
        raise InputError("no site has a label; at least one must, so that there is something to do")
    (first, value), *others = told.items()
    for name, other in others:
        if other != value:
            raise InputError(
                f"sites {first} and {name} differ in {what}: {_listed(value)} and "
                f"{_listed(other)}; give both the same dataset.json entries"
            )
    return value


def _listed(values: list[Any]) -> str:
    return ", ".join(map(str, values))


def _foreground(sites: Sequence[SiteSummary], channels: int) -> NDArray[np.float32]:
    """Intensities ``(M, C)`` as the histograms count them; a channel without any is all zero."""
    columns = []
    for channel in range(channels):
        found = [site.histograms[channel] for site in sites]
        parts = [histogram.values() for histogram in found if histogram is not None]
        columns.append(np.concatenate(parts) if parts else np.empty(0, np.float32))
    most = max(len(column) for column in columns)
    return np.stack([column if len(column) else np.zeros(most) for column in columns], 1)


def refusal(update: SiteUpdate, wanted: Mapping[str, Tensor]) -> str | None:
    """Why an update cannot be used, as half a sentence; None if it can.

    ``wanted`` are the weights that a site is to send, of which names and shapes are looked at.
    """
    if update.weights.keys() != wanted.keys():
        return "it sent other weights than those of this method"
    for name, value in update.weights.items():
        if value.shape != wanted[name].shape or value.dtype != wanted[name].dtype:
            return f"the weight {name} has another shape or type"
        if not torch.isfinite(value).all():
            return f"the weight {name} is not finite"
    for name, values in update.losses.items():
        if not all(map(math.isfinite, values)):
            return f"the loss {name} is not finite"
    if update.cases < 1:
        return "it trained on no scan"
    return None


def average(updates: Iterable[SiteUpdate]) -> dict[str, Tensor]:
    """The mean of the sites' weights, each counted by its number of training scans.

    This is FedAvg: McMahan et al., "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", AISTATS 2017, algorithm 1. Flower's FedAvg and FedProx compute the same.
    Sums are in float64, so one site alone gets back what it sent. Counters are rounded.
    """
    sent = [*updates]
    total = sum(update.cases for update in sent)
    means = {}
    for name, like in sent[0].weights.items():
        mean = sum(update.weights[name].double() * (update.cases / total) for update in sent)
        assert isinstance(mean, Tensor)
        means[name] = (mean if like.is_floating_point() else mean.round()).to(like.dtype)
    return means


def mean_losses(told: Sequence[tuple[dict[str, list[float]], int]]) -> dict[str, list[float]]:
    """The mean over sites of each term, iteration by iteration, from their losses and scans."""
    names = [name for name in told[0][0] if all(name in losses for losses, _ in told)]
    total = sum(cases for _, cases in told)
    count = min((len(values) for losses, _ in told for values in losses.values()), default=0)
    return {
        name: [sum(losses[name][i] * cases / total for losses, cases in told) for i in range(count)]
        for name in names
    }


def stays(method: nn.Module, protocol: Protocol) -> set[str]:
    """Names of the weights that stay at each site between the rounds, and are trained there.

    All weights travel once before the first round, so that sites start alike, and once after the
    last, so that there is a network for others.
    """
    own = batch_norm(method) if protocol.strategy == "fedbn" else set()
    if protocol.share != "all":
        own |= method.state_dict().keys() - part_of(method, protocol.share)
    return own


def batch_norm(method: nn.Module) -> set[str]:
    """Names of the weights and statistics of batch norm, which stay at each site in FedBN.

    Li et al., "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization",
    ICLR 2021.
    """
    return _within(method, nn.modules.batchnorm._BatchNorm)


def part_of(method: nn.Module, share: Literal["attention", "heads"]) -> set[str]:
    """Names of the weights of all cross-attention, or of the last layer of each backbone.

    With "heads" each site learns features of its own for a head that is the same for all: LG-FedAvg
    of Liang et al., "Think Locally, Act Globally", 2020.
    """
    if share == "attention":
        return _within(method, CrossAttention)
    return {
        f"{name}.head.{key}"
        for name, module in method.named_modules()
        if isinstance(module, Backbone)
        for key in module.head.state_dict()
    }


def _within(method: nn.Module, kind: type[nn.Module]) -> set[str]:
    """Names of all weights of the modules of a kind."""
    return {
        f"{name}.{key}"
        for name, module in method.named_modules()
        if isinstance(module, kind)
        for key in module.state_dict()
    }
