"""Swin UNETR: a transformer with shifted windows as encoder, convolutions as decoder.

Hatamizadeh et al., "Swin UNETR", BrainLes 2021. The layers are MONAI's, which need einops.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dcamt.errors import InputError
from dcamt.networks.backbone import Backbone
from dcamt.networks.convolution import Pointwise


class SwinUNETR(Backbone):
    """Tokens of 2x2x2 voxels, four stages of two blocks each, windows of ``window`` tokens a side.

    ``width``, a multiple of 12, doubles at each stage. With 1 channel, 2 classes and width 48 it
    has 62,186,708 parameters, with 24 15,703,004. Raises InputError where einops is missing.
    """

    usual_width = 48
    width_step = 12
    stride = (32, 32, 32)
    window = 7

    def __init__(self, channels: int = 1, classes: int = 2, width: int = 48, dropout: float = 0.0):
        super().__init__(channels, classes, features=16 * width, width=width, dropout=dropout)
        if find_spec("einops") is None:
            raise InputError(
                "backbone swin-unetr: einops is not installed; run `pip install 'dcamt[swin]'`"
            )
        from monai.networks.nets.swin_unetr import SwinUNETR as Layers

        with _NumbersOnCpu():
            self.layers = Layers(channels, classes, feature_size=width, window_size=self.window)
        del self.layers.out
        self.head = Pointwise(width, classes)

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``(B, C, X, Y, Z)`` to bottleneck ``(B, 16 width, X/32, Y/32, Z/32)`` and five skips."""
        net = self.layers
        half, quarter, eighth, sixteenth, last = net.swinViT(image, net.normalize)
        skips = [net.encoder1(image), net.encoder2(half), net.encoder3(quarter)]
        return net.encoder10(last), [*skips, net.encoder4(eighth), sixteenth]

    def upsample(self, features: Tensor, skips: list[Tensor]) -> Tensor:
        """Bottleneck and skips to what the head reads, ``(B, width, X, Y, Z)``."""
        net = self.layers
        ups = (net.decoder5, net.decoder4, net.decoder3, net.decoder2, net.decoder1)
        x = features
        for up, skip in zip(ups, reversed(skips), strict=True):
            x = up(x, skip)
        return x


class _NumbersOnCpu(TorchFunctionMode):
    """On the device meta MONAI's layers would ask for numbers that are not there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.linspace:
            kwargs = {**(kwargs or {}), "device": "cpu"}
        return func(*args, **(kwargs or {}))
