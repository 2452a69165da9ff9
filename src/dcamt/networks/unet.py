"""The U-Net of nnU-Net: plain convolutions, instance norm, as many levels as the patch allows.

Isensee et al., "nnU-Net", Nature Methods 2021, without deep supervision. The layers are nnU-Net's
own, from the package dynamic-network-architectures.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from dcamt.errors import InputError
from dcamt.networks.backbone import Backbone, Patch, Spacing, Stride
from dcamt.networks.levels import LEAST, strides_and_kernels


class UNet(Backbone):
    """Two convolutions a level; skips are concatenated.

    ``patch`` (voxels) and ``spacing`` (mm) decide how many levels there are and which axes each
    halves. ``width`` doubles at each level, up to ten times itself. With 1 channel, 2 classes,
    width 32 and 5 or 6 levels it has 16.5 or 31.2 million parameters. Raises InputError where the
    package is missing, or a patch too small for two levels.
    """

    usual_width = 32
    adapts = True
    encoder: nn.Module
    up: nn.ModuleList
    decoder: nn.ModuleList

    def __init__(
        self,
        channels: int = 1,
        classes: int = 2,
        width: int = 32,
        dropout: float = 0.0,
        *,
        patch: Patch,
        spacing: Spacing = (1.0, 1.0, 1.0),
    ):
        strides, kernels = strides_and_kernels(patch, spacing)
        if len(strides) == 1:
            raise InputError(
                f"patches of {' x '.join(map(str, patch))} voxels are too small for a U-Net; give "
                f"at least one side {2 * LEAST} or more"
            )
        widths = [width * min(2**level, 10) for level in range(len(strides))]
        super().__init__(channels, classes, features=widths[-1], width=width, dropout=dropout)
        self.stride = self.stride_for(patch, spacing)
        net = self.build(
            input_channels=channels, num_classes=classes, n_stages=len(strides),
            features_per_stage=widths, kernel_sizes=kernels, strides=strides,
            conv_op=nn.Conv3d, conv_bias=True, norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
        )  # fmt: skip
        net.apply(net.initialize)
        self.encoder, self.head = net.encoder, net.decoder.seg_layers[-1]
        self.up, self.decoder = net.decoder.transpconvs, net.decoder.stages
        for module in self.modules():
            if hasattr(module, "all_modules"):  # the same layers once more, under other names
                for name in {"conv", "norm", "nonlin"} & {*dict(module.named_children())}:
                    delattr(module, name)

    def build(self, **sizes: Any) -> Any:
        """The package's network, of which encoder and decoder are taken."""
        levels = sizes["n_stages"]
        return architectures().PlainConvUNet(
            **sizes, n_conv_per_stage=[2] * levels, n_conv_per_stage_decoder=[2] * (levels - 1)
        )

    @classmethod
    def stride_for(cls, patch: Patch, spacing: Spacing) -> Stride:
        """Voxels of the image for one of the bottleneck along each axis."""
        x, y, z = (prod(axis) for axis in zip(*strides_and_kernels(patch, spacing)[0], strict=True))
        return x, y, z

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``(B, C, X, Y, Z)`` to bottleneck ``(B, D, x, y, z)`` and a skip of each other level."""
        *skips, features = self.encoder(image)
        return features, skips

    def upsample(self, features: Tensor, skips: list[Tensor]) -> Tensor:
        """Bottleneck and skips to what the head reads, ``(B, width, X, Y, Z)``."""
        x = features
        for up, stage, skip in zip(self.up, self.decoder, reversed(skips), strict=True):
            x = stage(torch.cat((up(x), skip), 1))
        return x


def architectures() -> Any:
    """nnU-Net's networks; InputError where the package is missing."""
    try:
        from dynamic_network_architectures.architectures import unet
    except ImportError:
        raise InputError(
            "backbones unet and resenc: nnU-Net's layers are not installed; run "
            "`pip install --no-deps dynamic-network-architectures==0.4.4`, or choose another "
            "network.name"
        ) from None
    return unet
