"""How good a method is in the middle of its training."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from dcamt.config import Plan, PredictConfig
from dcamt.data.prepare import Prepared
from dcamt.inference.predictor import Predictor
from dcamt.inference.sliding_window import branch_probabilities
from dcamt.methods.method import Method
from dcamt.types import IGNORE


def mean_dice(
    method: Method, cases: Sequence[Prepared], plan: Plan, settings: PredictConfig
) -> float:
    """Mean over cases and classes of Dice (fraction) on the prepared grid.

    Where torch.distributed has several processes, each segments its share of the cases, and all
    get the mean of all.
    """
    # Not folded: the weights have moved since the last validation, and move on after this one.
    predictor = Predictor(method.eval().branches, next(method.parameters()).device)
    return dice_of(predictor, cases, plan, settings)


def dice_of(
    predictor: Predictor, cases: Sequence[Prepared], plan: Plan, settings: PredictConfig
) -> float:
    """The Dice of ``mean_dice``, for a predictor that is ready."""
    classes = len(plan.classes)
    several = dist.is_available() and dist.is_initialized()
    process, processes = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    scores: dict[int, list[float]] = {}
    for number in range(process, len(cases), processes):
        case, scores[number] = cases[number], []
        image = torch.from_numpy(np.array(case.image))
        found = branch_probabilities(predictor, image, plan.patch, classes, settings, mean=True)
        guess, label = found[0].argmax(0).numpy(), case.label
        for k in range(1, classes):
            a, b = (guess == k) & (label != IGNORE), label == k
            if a.any() or b.any():
                scores[number].append(2 * float((a & b).sum()) / float(a.sum() + b.sum()))
    shares = [scores]
    if several:
        shares = [{} for _ in range(processes)]
        dist.all_gather_object(shares, scores)
    found_by = {number: values for share in shares for number, values in share.items()}
    every = [value for number in sorted(found_by) for value in found_by[number]]
    return float(np.mean(every)) if every else 0.0
