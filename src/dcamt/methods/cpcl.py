"""CPCL: prototypes of labelled scans segment unlabelled ones, and the other way round.

Xu et al., "All-around real label supervision: cyclic prototype consistency learning for
semi-supervised medical image segmentation", IEEE JBHI 2022. f_l and p_l are the student's features
and probabilities on labelled patches, f_u and p_u the teacher's on unlabelled ones:

    c_k(f, y, p) = sum_i p_ik [y_i = k] f_i / sum_i p_ik [y_i = k]   the prototype of class k
    q(f, c)      = softmax_k(scale cos(f, c_k))                      what prototypes c say of f
    L_forward    = |q(f_u, c(f_l, y, p_l)) - p_u|^2                  labelled to unlabelled
    L_backward   = CE(q(f_l, c(f_u, argmax p_u, p_u)), y)            and back, by real labels
    L            = L_sup + ramp (forward_weight L_forward + backward_weight L_backward)

The teacher follows the student as in Mean Teacher, without noise; the evaluated network is the
student. Weights are published, and so is the ramp, 6,000 of 10,000 iterations.

Unlike the authors' script for the left atrium, gradients flow through the student's features, which
the script detaches so that neither loss trains anything; it leans on Mean Teacher's consistency
instead, which the paper gives up and this file leaves out. L_backward takes logits, not
probabilities, into its cross-entropy. Features are what the last layer reads, one block later;
prototypes are of the whole batch, not of pairs of patches; and a class without a prototype is as
unlike as can be (cosine -1), while voxels of that class do not count.
"""

import torch
from pydantic import PositiveFloat
from torch import Tensor

from dcamt.losses.consistency import softmax_mse
from dcamt.losses.overlap import cross_entropy, dice_ce, one_hot, pseudo_label
from dcamt.methods.method import Method, follow_, frozen_copy
from dcamt.networks.backbone import Backbone, Network
from dcamt.ops.prototypes import cosine, prototypes
from dcamt.section import Fraction, Section
from dcamt.types import IGNORE, Batch, Progress, Update


class CPCL(Method):
    """One student on labelled patches, one teacher on unlabelled ones."""

    predicts = ("student",)

    class Config(Section):
        forward_weight: float = 0.1
        """Weight of labelled prototypes on unlabelled patches."""
        backward_weight: float = 1.0
        """Weight of unlabelled prototypes on labelled patches."""
        ramp: Fraction = 0.6
        """Share of the run over which both losses rise to full weight."""
        scale: PositiveFloat = 20.0
        """Factor of the cosines before the softmax."""
        decay: Fraction = 0.99
        """Share of its old weights that the teacher keeps in an iteration, at most."""

    config: Config

    def __init__(self, config: Config, network: Network):
        super().__init__(config, network)
        self.student = network()
        self.teacher = frozen_copy(self.student)

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        c = self.config
        f_l, logits_l = read(self.student, batch.image_l)
        with torch.no_grad():
            f_u, logits_u = read(self.teacher, batch.image_u)
        supervised = dice_ce(logits_l, batch.label_l)
        p_l, p_u = logits_l.detach().float().softmax(1), logits_u.float().softmax(1)
        guess = pseudo_label(logits_u, batch.inside_u)
        weight_l = p_l * one_hot(batch.label_l, p_l.shape[1])
        weight_u = p_u * one_hot(guess, p_u.shape[1])
        q_u, known_u = by_prototypes(f_u, guess, f_l, weight_l, c.scale)
        forward = softmax_mse(q_u, p_u, known_u != IGNORE)
        q_l, known_l = by_prototypes(f_l, batch.label_l, f_u, weight_u, c.scale)
        backward = cross_entropy(q_l, known_l)
        cycle = c.forward_weight * forward + c.backward_weight * backward
        update(supervised + at.ramp(c.ramp) * cycle)
        follow_(self.teacher, self.student, c.decay, at.iteration)
        return {"supervised": supervised, "forward": forward, "backward": backward}


def read(network: Backbone, image: Tensor) -> tuple[Tensor, Tensor]:
    """Features ``(B, D, X, Y, Z)`` that the last layer reads, and logits ``(B, K, X, Y, Z)``."""
    features = network.decode_features(*network.encode(image))
    return features, network.head(features)


def by_prototypes(
    features: Tensor, label: Tensor, source: Tensor, weight: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Logits of ``features`` by the prototypes of ``source``, and the label to judge them by.

    ``weight`` ``(B, K, X, Y, Z)`` says how much a voxel of ``source`` counts for a class. The
    logits are ``scale`` times cosines; the label is IGNORE where its class has no prototype.
    """
    present = weight.sum((0, 2, 3, 4)) > 0
    cosines = cosine(features, prototypes(source, weight))
    cosines = cosines.masked_fill(~present.view(1, -1, 1, 1, 1), -1.0)
    return scale * cosines, label.masked_fill(~present[label.clamp(min=0)], IGNORE)
