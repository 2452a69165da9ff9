"""What a network is counted to hold at once."""

from functools import partial

from torch import Tensor, nn

from dcamt.inference.live import live_values
from dcamt.methods.method import Method
from dcamt.methods.vnet import Supervised
from dcamt.networks.backbone import Backbone
from dcamt.networks.folding import fold_batch_norm
from dcamt.networks.vnet import VNet
from dcamt.section import Section


class Three(Backbone):
    """Holds two maps of eight channels and one of four, never more."""

    stride = (2, 2, 2)

    def __init__(self):
        super().__init__(1, 4, features=8, width=8)
        self.convolution = nn.Conv3d(1, 8, 1)
        self.head = nn.Conv3d(8, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        first = self.convolution(image)
        second = first.relu()
        third = second.view_as(second).add_(first)  # a view, in place: nothing new
        return self.head(third)


class Logits(Method):
    def __init__(self, config, network):
        super().__init__(config, network)
        self.network = network()

    def branches(self, image: Tensor) -> Tensor:
        return self.network(image).unsqueeze(0)


def test_what_is_alive_at_once_is_counted_and_what_is_gone_is_not() -> None:
    assert live_values(Logits(Section(), Three), 1) == 8 + 8 + 4


def test_a_v_net_holds_three_to_four_maps_of_its_width() -> None:
    method = Supervised(Supervised.Config(), partial(VNet, 1, 2, 16)).eval()
    fold_batch_norm(method)
    assert 3.5 < live_values(method, 1) / 16 < 3.7
