"""DCA-MT whose teacher and student are different networks."""

import pytest
import torch
from torch import Tensor, nn

from dcamt.config import load_config
from dcamt.errors import InputError
from dcamt.methods.dca_mt import DCAMT, Pair
from dcamt.networks.convolution import Pointwise
from dcamt.networks.mednext import MedNeXt
from dcamt.networks.vnet import VNet
from dcamt.runs.build import build_method, check_networks, network_stride
from dcamt.runs.complexity import method_cost, with_plan
from dcamt.types import Progress

PATCH = (32, 16, 16)
# 32 and 16 channels at the bottleneck.
NAMES = ["method.teacher_network={name: mednext, width: 2}", "network.width=1"]
LATE = Progress(900, 1000)


def configured(*settings: str, patch=PATCH):
    return with_plan(load_config(None, list(settings)), patch, 1, 2, None)


def test_a_name_alone_is_a_backbone_in_its_own_sizes() -> None:
    method = build_method(configured("method.teacher_network=mednext", "network.width=2"))
    teacher, student = method.pair.teacher, method.pair.student
    assert (type(teacher), teacher.width) == (MedNeXt, 32)
    assert (type(student), student.width) == (VNet, 2)


def test_on_the_command_line_and_in_yaml() -> None:
    one = load_config(None, ["method.student_network.name=unet", "method.student_network.width=4"])
    two = load_config(None, ["method.student_network={name: unet, width: 4}"])
    assert one.method == two.method
    assert DCAMT.Config.model_validate(one.method.options).student_network.width == 4


@pytest.mark.parametrize("components", ["base", "loss", "cross-attention", "mutual", "all"])
def test_it_trains_every_weight_that_it_has(components, plain_update, batch) -> None:
    method = build_method(configured(*NAMES, f"method.components={components}")).train()
    terms = method.step(batch, LATE, plain_update(method))
    assert all(torch.isfinite(term) for term in terms.values())
    assert not [name for name, p in method.named_parameters() if p.grad is None]
    projections = [m for m in (method.pair.project, method.pair.back) if type(m) is Pointwise]
    expected = {"base": 0, "loss": 1, "cross-attention": 2, "mutual": 0, "all": 2}
    assert len(projections) == expected[components]
    with torch.no_grad():
        found = method.eval().branches(batch.image_u)
    torch.testing.assert_close(found.sum(2), torch.ones_like(found[:, :, 0]))


class AddOne(nn.Module):
    """An exchange after which the teacher has 1 more of everything."""

    def forward(self, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
        assert teacher.shape == student.shape
        return teacher + 1, student


@torch.no_grad()
def test_the_projections_by_hand() -> None:
    """Factor 2 into the student's 16 channels; of each 1 that is added there, 3 come back."""
    teacher, student = VNet(1, 2, 2).eval(), VNet(1, 2, 1).eval()
    pair = Pair(teacher, student, AddOne())
    for module, factor in ((pair.project, 2.0), (pair.back, 3.0)):
        module.weight.fill_(factor)
        module.bias.zero_()
    image = torch.randn(2, 1, 32, 16, 16)
    own, skips = teacher.encode(image)
    logits, _, features, _ = pair(image, image)
    shared = 2 * own.sum(1, keepdim=True) + 1
    torch.testing.assert_close(features, shared.expand(-1, 16, -1, -1, -1))
    torch.testing.assert_close(logits, teacher.decode(own + 16 * 3, skips))


def test_with_equal_channels_nothing_is_projected() -> None:
    alike = method_cost("dca-mt", PATCH, set=["network.width=2"])
    named = method_cost(
        "dca-mt", PATCH, set=["network.width=2", "method.teacher_network={name: vnet, width: 2}"]
    )
    assert named == alike


def test_the_cost_is_that_of_both_and_the_projections() -> None:
    teacher = method_cost("vnet", PATCH, set=["network.name=mednext", "network.width=2"])
    student = method_cost("vnet", PATCH, width=1)
    both = method_cost("dca-mt", PATCH, set=[*NAMES, "method.components=cross-attention"])
    alone = method_cost("dca-mt", PATCH, width=1, set=["method.components=cross-attention"])
    exchange = alone["parameters"] - 2 * student["parameters"]
    projections = 32 * 16 + 16 + 16 * 32 + 32
    expected = teacher["parameters"] + student["parameters"] + exchange + projections
    assert both["parameters"] == expected


def test_bottlenecks_of_different_sizes_are_refused() -> None:
    config = configured("method.teacher_network=segresnet")
    with pytest.raises(InputError, match=r"different sizes \(8 x 8 x 8 and 16 x 16 x 16 voxels"):
        check_networks(config)


@pytest.mark.parametrize("teacher", ["ema", "both"])
def test_an_average_of_two_architectures_is_refused(teacher) -> None:
    config = configured("method.teacher_network=mednext", f"method.teacher={teacher}")
    with pytest.raises(InputError, match=f"method.teacher = {teacher} averages the weights"):
        check_networks(config)


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(InputError, match="'no-such' is unknown; known backbones: light-vnet"):
        configured("method.teacher_network=no-such")


def test_the_patch_must_suit_both() -> None:
    config = load_config(None, ["method.teacher_network=unet", "network.name=segresnet"])
    assert network_stride(config, (32, 32, 32), (1.0, 1.0, 1.0)) == (8, 8, 8)
    assert network_stride(config, (64, 32, 20), (1.0, 1.0, 1.0)) == (16, 8, 8)
