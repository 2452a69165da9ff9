"""Mixing patches of two cases."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dcamt.ops.components import largest_components
from dcamt.types import IGNORE, Batch


def random_box(shape: Sequence[int], share: float, device: torch.device) -> Tensor:
    """A bool mask ``(X, Y, Z)`` with a box of ``share`` of each side at a random place.

    Bai et al., "Bidirectional copy-paste", CVPR 2023.
    """
    mask = torch.zeros(*shape, dtype=torch.bool, device=device)
    sizes = [max(1, round(share * n)) for n in shape]
    starts = [int(torch.randint(n - s + 1, ())) for n, s in zip(shape, sizes, strict=True)]
    x, y, z = (slice(a, a + s) for a, s in zip(starts, sizes, strict=True))
    mask[x, y, z] = True
    return mask


def mixed_both_ways(
    batch: Batch, teacher: Callable[[Tensor], Tensor], share: float, pretraining: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """BCP's mixed patches and the two parts of their labels, as ``copy_paste`` gives them.

    The box takes ``share`` of each side. ``teacher`` gives logits of the unlabelled patches; the
    largest component of each class counts. While ``pretraining``, labelled patches are mixed among
    themselves, and nothing is guessed.
    """
    mask = ~random_box(batch.label_l.shape[1:], share, batch.label_l.device)
    if pretraining:
        image = torch.where(mask, batch.image_l, batch.image_l.roll(1, 0))
        known = torch.where(mask, batch.label_l, batch.label_l.roll(1, 0))
        return image, known, torch.full_like(known, IGNORE)
    with torch.no_grad():
        guess = largest_components(teacher(batch.image_u).argmax(1))
    return copy_paste(batch, guess.masked_fill(~batch.inside_u, IGNORE), mask)


def copy_paste(batch: Batch, guess: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mixed patches ``(L + U, C, X, Y, Z)`` and the two parts of their labels (BCP, eqs. 1-4).

    A patch keeps its voxels where ``mask`` ``(X, Y, Z)`` holds and takes its partner's elsewhere:
    X_out of every labelled patch, then X_in of every unlabelled one. ``guess``: ``(U, X, Y, Z)``.
    The labels, ``(L + U, X, Y, Z)``, are the annotated ones and the guessed ones, each IGNORE where
    the other applies.
    """
    device, labeled, unlabeled = mask.device, len(batch.image_l), len(batch.image_u)
    to_u = torch.arange(labeled, device=device) % unlabeled  # partner of each labelled patch
    to_l = torch.arange(unlabeled, device=device) % labeled  # and each unlabelled one
    x_out = torch.where(mask, batch.image_l, batch.image_u[to_u])
    x_in = torch.where(mask, batch.image_u, batch.image_l[to_l])
    known_out, known_in = batch.label_l, batch.label_l[to_l]
    guess_out, guess_in = guess[to_u], guess
    known = [known_out.masked_fill(~mask, IGNORE), known_in.masked_fill(mask, IGNORE)]
    guessed = [guess_out.masked_fill(mask, IGNORE), guess_in.masked_fill(~mask, IGNORE)]
    return torch.cat([x_out, x_in]), torch.cat(known), torch.cat(guessed)


def cutmix(inside: Tensor, sides: Tensor) -> Tensor:
    """What each patch takes from the one before it: a bool mask ``(U, X, Y, Z)``, a box in each.

    ``sides`` ``(U,)`` are shares of each side of a patch; 0 is no box. Yun et al., "CutMix", ICCV
    2019. For ``inside`` see ``both_inside``.
    """
    shape, device = inside.shape[1:], inside.device
    boxes = [random_box(shape, side, device) & (side > 0) for side in sides.tolist()]
    return torch.stack(boxes) & both_inside(inside)


def both_inside(inside: Tensor) -> Tensor:
    """Where neither a patch nor the one before it is padding, False in ``inside`` (U, X, Y, Z).

    Padding is neither taken nor painted over.
    """
    return inside & inside.roll(1, 0)


def paste(values: Tensor, taken: Tensor) -> Tensor:
    """``values`` of every patch, ``(U, X, Y, Z)`` or ``(U, ?, X, Y, Z)``, mixed as ``cutmix`` says.

    Those where ``taken`` ``(U, X, Y, Z)`` holds are those of the patch before it.
    """
    where = taken if values.ndim == taken.ndim else taken.unsqueeze(1)
    return torch.where(where, values.roll(1, 0), values)


def random_classes(label: Tensor, classes: int) -> Tensor:
    """A bool mask ``(B, X, Y, Z)`` of half of the classes of each patch, drawn at random.

    Half of those that ``label`` ``(B, X, Y, Z)`` holds, rounded down; IGNORE is none of them.
    Olsson et al., "ClassMix", WACV 2021.
    """
    held = torch.stack([(label == k).flatten(1).any(1) for k in range(classes)], 1)
    draw = torch.rand(held.shape, device=label.device).masked_fill(~held, 2.0)
    chosen = draw.argsort(1).argsort(1) < held.sum(1, keepdim=True) // 2
    found = chosen.gather(1, label.clamp(min=0).flatten(1)).view_as(label)
    return found & (label != IGNORE)
