"""How good a method is in the middle of its training."""

from collections.abc import Sequence

import numpy as np
import torch

from dcamt.config import Plan, PredictConfig
from dcamt.data.prepare import Prepared
from dcamt.inference.predictor import Predictor
from dcamt.inference.sliding_window import branch_probabilities
from dcamt.methods.method import Method
from dcamt.types import IGNORE


def mean_dice(
    method: Method, cases: Sequence[Prepared], plan: Plan, settings: PredictConfig
) -> float:
    """Mean over cases and classes of Dice (fraction) on the prepared grid."""
    # Not folded: the weights have moved since the last validation, and move on after this one.
    predictor = Predictor(method.eval().branches, next(method.parameters()).device)
    classes = len(plan.classes)
    scores = []
    for case in cases:
        image = torch.from_numpy(np.array(case.image))
        found = branch_probabilities(predictor, image, plan.patch, classes, settings, mean=True)
        guess, label = found[0].argmax(0).numpy(), case.label
        for k in range(1, classes):
            a, b = (guess == k) & (label != IGNORE), label == k
            if a.any() or b.any():
                scores.append(2 * float((a & b).sum()) / float(a.sum() + b.sum()))
    return float(np.mean(scores)) if scores else 0.0
