"""``dcamt rank``: which of the unlabelled scans to label next."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor

from dcamt.config import Patch
from dcamt.data.dataset import Case
from dcamt.data.scans import find_scans
from dcamt.data.space import to_network
from dcamt.engine.device import choose_device
from dcamt.errors import InputError
from dcamt.escape import csv_cell, csv_text, printable
from dcamt.files import read_json, refuse_existing, write_text
from dcamt.inference.confidence import expected_dice
from dcamt.inference.predict import LOWER, Extras, check_memory, most_probable, read_scan
from dcamt.inference.predictor import Predictor, make_predictor
from dcamt.inference.sliding_window import branch_probabilities, pad_to, windows
from dcamt.memory import told_of_memory
from dcamt.methods.method import Method
from dcamt.networks.backbone import Backbone
from dcamt.records.check import checked
from dcamt.records.finished_run import SplitRecord
from dcamt.records.run_folder import RunConfig, is_federation
from dcamt.reporting.console import plain_console
from dcamt.runs.build import load_run

Order = Literal["spread", "uncertainty", "random"]


@dataclass(frozen=True)
class Ranked:
    """A scan in its place: what the networks make of it.

    ``uncertainty``: 1 minus the Dice that the probabilities lead to expect. ``disagreement``: 1
    minus the Dice between two branches, None with one network. Both are means over the classes,
    from 0 to 1.
    """

    case: str
    uncertainty: float
    disagreement: float | None

    @property
    def doubt(self) -> float:
        """What scans are ordered by."""
        values = [self.uncertainty, self.disagreement]
        return float(np.mean([value for value in values if value is not None]))


def rank_scans(
    run: Path,
    input: Path,
    out: Path,
    budget: int | None = None,
    by: Order = "spread",
    *,
    weights: str = "last",
    device: str = "auto",
    quiet: bool = False,
) -> list[Ranked]:
    """Order the scans at ``input`` by what their label would teach; see `dcamt.rank`.

    Writes the first ``budget`` of them, or all, to the CSV file ``out``.
    """
    if by not in get_args(Order):
        raise InputError(f"order {by!r} is unknown; choose {', '.join(get_args(Order))}")
    if budget is not None and budget < 1:
        raise InputError(f"--budget {budget}: give a number of scans, at least 1")
    refuse_existing(out)
    config, method = load_run(run, weights)
    console = plain_console(stderr=True, quiet=quiet)
    scans = _unlabelled(run, find_scans(input, len(config.plan.channels)), input)
    if is_federation(run):
        console.print(
            f"warning: several sites trained {printable(str(run))}, and names of cases stay there. "
            "If these are the scans of one of them, give the run folder of that site: it leaves "
            "out those with a label"
        )
    place = torch.device(choose_device(device, "32-true")[0])
    predictor = make_predictor(method, config.plan, place)
    encoder = _encoder(method).to(place)
    found: list[Ranked] = []
    features: list[NDArray[np.float32]] = []
    failed: list[str] = []
    for done, scan in enumerate(scans, 1):
        try:
            with told_of_memory(f"{scan.images[0]}: cannot be ranked", LOWER):
                ranked, feature = _look_at(scan, predictor, encoder, config)
        except InputError as error:  # the others may be sound
            failed.append(str(error))
            continue
        found.append(ranked)
        features.append(feature)
        console.print(f"{done}/{len(scans)}  {printable(scan.name)}")
    order = _ordered(found, features, by, config.seed)[:budget]
    if found:
        write_text(out, _csv_text(order))
    if failed:
        more = f" ({len(failed) - 1} more cannot be ranked either)" if failed[1:] else ""
        raise InputError(failed[0] + more)
    return order


def _unlabelled(run: Path, scans: Sequence[Case], input: Path) -> list[Case]:
    """Those that the run has no label of: its labelled, validation and test cases are left out.

    They are told by name. An exported run has no split, so that every scan is ranked.
    """
    file = run / "split.json"
    split = checked(read_json(file), TypeAdapter(SplitRecord), file) if file.exists() else None
    known = {*split["labeled"], *split["val"], *split.get("test", ())} if split else set()
    left = [scan for scan in scans if scan.name not in known]
    if not left:
        raise InputError(f"{input}: the run has a label of every scan there; give others")
    return left


def _encoder(method: Method) -> Backbone:
    """The first network of a method, whose bottleneck tells scans apart."""
    return next(m for m in method.eval().modules() if isinstance(m, Backbone))


def _look_at(
    scan: Case, predictor: Predictor, encoder: Backbone, config: RunConfig
) -> tuple[Ranked, NDArray[np.float32]]:
    """How unsure the networks are of a scan, and its features ``(D,)`` float32."""
    plan, path = config.plan, scan.images[0]
    image = read_scan(scan.images, plan)
    check_memory(image, path, predictor, config, Extras(uncertainty=True))
    prepared = torch.from_numpy(to_network(image, plan)[0])
    del image
    branches = branch_probabilities(
        predictor, prepared, plan.patch, len(plan.classes), config.predict
    )
    probabilities = branches.mean(0).numpy()
    sure = float(np.mean(expected_dice(probabilities, most_probable(probabilities))))
    alone = [most_probable(branch.numpy()) for branch in branches]
    apart = [
        1 - _dice(one == k, other == k)
        for one, other in combinations(alone, 2)
        for k in range(1, len(plan.classes))
    ]
    ranked = Ranked(scan.name, 1 - sure, float(np.mean(apart)) if apart else None)
    return ranked, bottleneck(encoder, prepared, plan.patch, predictor.device)


def _dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Dice of two masks; 1 where both are empty."""
    size = np.count_nonzero(one) + np.count_nonzero(other)
    return 2 * np.count_nonzero(one & other) / size if size else 1.0


@torch.inference_mode()
def bottleneck(
    encoder: Backbone, image: Tensor, patch: Patch, device: torch.device
) -> NDArray[np.float32]:
    """Mean bottleneck features ``(D,)`` float32 of an image ``(C, x, y, z)``.

    Over windows that lie side by side; an image smaller than ``patch`` is padded with zeros.
    """
    padded, _ = pad_to(image, patch)
    means = [
        encoder.encode(padded[:, *window][None].to(device))[0].mean((0, 2, 3, 4))
        for window in windows(padded.shape[1:], patch, patch)
    ]
    return torch.stack(means).mean(0).cpu().numpy()


# ---------------------------------------------------------------------------------------- the order


def _ordered(
    found: Sequence[Ranked], features: Sequence[NDArray[np.float32]], by: Order, seed: int
) -> list[Ranked]:
    doubts = np.array([ranked.doubt for ranked in found])
    if by == "random":
        order = random.Random(seed).sample(range(len(found)), len(found))
    elif by == "uncertainty":
        order = np.argsort(-doubts, kind="stable").tolist()
    else:
        order = spread(np.stack(features), doubts) if found else []
    return [found[i] for i in order]


def spread(features: NDArray[np.float32], doubts: NDArray[np.float64]) -> list[int]:
    """Doubtful scans first, and of those that are alike one at a time.

    The next scan i is the one with the highest ``w_i (1 - max_{j chosen} s(i, j))``. ``w_i`` is the
    rank of the doubt about it among all, above 0 to 1; ``s(i, j) = exp(-d^2 / m^2)`` of the
    distance d of two scans' ``features`` ``(n, D)``, each feature scaled to unit variance, and of
    the median m of all distances. It is the greedy k-centre of Sener and Savarese, "Active learning
    for convolutional neural networks: a core-set approach", ICLR 2018, with doubt as a weight.
    """
    n = len(doubts)
    scaled = (features - features.mean(0)) / np.maximum(features.std(0), 1e-8)
    squares = (scaled**2).sum(1)
    apart = np.maximum(squares[:, None] + squares - 2 * scaled @ scaled.T, 0)
    typical = float(np.median(apart[~np.eye(n, dtype=bool)])) if n > 1 else 1.0
    similar = np.exp(-apart / max(typical, 1e-8))
    weight = (1 + np.argsort(np.argsort(doubts, kind="stable"))) / n
    nearest, left, order = np.zeros(n), np.ones(n, bool), []
    for _ in range(n):
        # Where scans are copies of chosen ones, doubt alone decides.
        best = int(np.where(left, weight * (1 - nearest + 1e-6), -1).argmax())
        order.append(best)
        left[best] = False
        nearest = np.maximum(nearest, similar[best])
    return order


def _csv_text(order: Sequence[Ranked]) -> str:
    rows: list[Sequence[object]] = [("rank", "case", "uncertainty", "disagreement")]
    for place, ranked in enumerate(order, 1):
        apart = "" if ranked.disagreement is None else f"{ranked.disagreement:.4f}"
        rows.append((place, csv_cell(ranked.case), f"{ranked.uncertainty:.4f}", apart))
    return csv_text(rows)
