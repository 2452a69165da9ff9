"""The residual-encoder U-Net of nnU-Net.

Isensee et al., "nnU-Net revisited", MICCAI 2024. What its presets M, L and XL tell apart is the
patch, so there is one size here.
"""

from typing import Any

from dcamt.networks.unet import UNet, architectures

_BLOCKS = (1, 3, 4, 6)
"""Of the finest levels; coarser ones have as many as the last of these."""


class ResEnc(UNet):
    """A U-Net with residual blocks in its encoder and one convolution a level in its decoder.

    With 1 channel, 2 classes, width 32 and 5 or 6 levels it has 62.8 or 102.4 million parameters.
    """

    def build(self, **sizes: Any) -> Any:
        """The package's network, of which encoder and decoder are taken."""
        levels = sizes["n_stages"]
        blocks = [_BLOCKS[min(level, len(_BLOCKS) - 1)] for level in range(levels)]
        return architectures().ResidualEncoderUNet(
            **sizes, n_blocks_per_stage=blocks, n_conv_per_stage_decoder=[1] * (levels - 1)
        )
