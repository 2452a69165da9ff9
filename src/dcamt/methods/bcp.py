"""BCP: labelled and unlabelled scans pasted into each other, both ways.

Bai et al., "Bidirectional copy-paste for semi-supervised medical image segmentation", CVPR 2023.
M is 0 in a box of ``paste`` of each side and 1 outside it; l labelled, u unlabelled patches:

    X_in  = M X_u + (1 - M) X_l,    X_out = M X_l + (1 - M) X_u     eqs. 1-2
    Q_u   = largest component per class of argmax teacher(X_u)
    Y_in  = M Q_u + (1 - M) Y_l,    Y_out = M Y_l + (1 - M) Q_u     eqs. 3-4
    L     = L_seg where the label is Y_l + weight L_seg where it is Q_u

The first ``pretrain`` of the run mixes labelled patches among themselves; then the teacher starts
as a copy of the student and follows it. The evaluated network is the student.

Unlike the paper, every patch of the batch is mixed both ways (the paper halves a batch twice as
large); L_seg is 0.5 (cross-entropy + Dice) over both mixed volumes at once, where the paper adds
one for each; pre-training takes the paper's share of the run, 2,000 of 17,000 iterations.
"""

from torch import Tensor

from dcamt.losses.overlap import dice_ce
from dcamt.methods.method import Method, ema_, frozen_copy
from dcamt.networks.backbone import Network
from dcamt.ops.mix import mixed_both_ways
from dcamt.section import Fraction, Section
from dcamt.types import Batch, Progress, Update


class BCP(Method):
    """One student on mixed patches, and the teacher that labels their unlabelled part."""

    predicts = ("student",)

    class Config(Section):
        paste: Fraction = 2 / 3
        """Share of each side of the patch that the pasted box takes."""
        weight: float = 0.5
        """Weight of voxels whose label comes from the teacher."""
        decay: Fraction = 0.99
        """Share of its old weights that the teacher keeps in an iteration, at most."""
        pretrain: Fraction = 2 / 17
        """Share of the run that mixes labelled patches alone."""

    config: Config

    def __init__(self, config: Config, network: Network):
        super().__init__(config, network)
        self.student = network()
        self.teacher = frozen_copy(self.student)

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        c = self.config
        pretraining = at.iteration < c.pretrain * at.iterations
        image, known, guessed = mixed_both_ways(batch, self.teacher, c.paste, pretraining)
        logits = self.student(image)
        supervised, pseudo = dice_ce(logits, known), dice_ce(logits, guessed)
        update(supervised + c.weight * pseudo)
        ema_(self.teacher, self.student, 0.0 if pretraining else c.decay)
        return {"supervised": supervised, "pseudo": pseudo}
