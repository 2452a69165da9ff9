"""Every backbone by its name in ``network.name``. To add one: docs/adding-a-backbone.md."""

from dcamt.networks.backbone import Backbone
from dcamt.networks.light_vnet import LightVNet
from dcamt.networks.mednext import MedNeXt
from dcamt.networks.resenc import ResEnc
from dcamt.networks.segresnet import SegResNet
from dcamt.networks.swin_unetr import SwinUNETR
from dcamt.networks.unet import UNet
from dcamt.networks.vnet import VNet

BACKBONES: dict[str, type[Backbone]] = {
    "light-vnet": LightVNet,
    "mednext": MedNeXt,
    "resenc": ResEnc,
    "segresnet": SegResNet,
    "swin-unetr": SwinUNETR,
    "unet": UNet,
    "vnet": VNet,
}
