"""Probabilities of a whole prepared volume from overlapping windows."""

import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor

from dcamt.config import Patch, PredictConfig
from dcamt.methods.method import Method


@torch.inference_mode()
def branch_probabilities(
    method: Method, image: Tensor, patch: Patch, classes: int, config: PredictConfig
) -> Tensor:
    """Probabilities of every branch of ``method``, ``(N, K, x, y, z)`` float32 on the CPU.

    ``image``: ``(C, x, y, z)``. Windows overlap by ``config.overlap`` and are averaged with
    Gaussian weights; a volume smaller than the patch is padded with zeros, the mean intensity, and
    the padding is cut off again.
    """
    method.eval()
    device = next(method.parameters()).device

    def windows(batch: Tensor) -> Tensor:
        laid_out = batch.contiguous(memory_format=torch.channels_last_3d)
        return method.branches(laid_out).transpose(0, 1).flatten(1, 2)

    averaged: Tensor = sliding_window_inference(
        image[None],
        roi_size=patch,
        sw_batch_size=config.batch,
        predictor=windows,
        overlap=config.overlap,
        mode="gaussian",
        sw_device=device,
        device=torch.device("cpu"),
    )[0]
    return averaged.unflatten(0, (-1, classes))
