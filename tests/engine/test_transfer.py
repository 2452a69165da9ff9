"""Which weights of another training a method starts with."""

import json
import pickle
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dcamt.config import Config, load_config
from dcamt.engine import checkpoint
from dcamt.engine.transfer import Start, read_start
from dcamt.errors import InputError
from dcamt.methods import METHODS
from dcamt.methods.method import Method
from dcamt.networks import BACKBONES
from dcamt.networks.backbone import Backbone
from dcamt.networks.swin_unetr import SwinUNETR
from dcamt.runs.build import PRETRAINING, build_method
from dcamt.runs.complexity import with_plan
from smallest import smallest


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SwinUNETR, "window", 2)


def configured(
    method: str, *settings: str, backbone: str = "vnet", channels: int = 1, classes: int = 2
) -> Config:
    width, patch = smallest(backbone)
    chosen = [f"method.name={method}", f"network.name={backbone}"]
    chosen += [f"network.width={width}", *settings]
    config = load_config(None, [c for c in chosen if method == "dca-mt" or "heads" not in c])
    if method in PRETRAINING:
        plain = with_plan(load_config(None, chosen[1:]), patch, channels, classes, None)
        return plain.model_copy(update={"method": config.method})
    return with_plan(config, patch, channels, classes, None)


def made(method: str, *settings: str, seed: int = 0, **sizes: object) -> Method:
    return build_method(configured(method, f"seed={seed}", *settings, **sizes))


Saved = Callable[..., Path]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """``saved(method, ...)`` writes a checkpoint of other weights than those of seed 0."""

    def write(method: str, *settings: str, **sizes: object) -> Path:
        path = tmp_path / f"{method}-{len(list(tmp_path.iterdir()))}.safetensors"
        checkpoint.save(path, made(method, *settings, seed=9, **sizes), {}, {"iteration": 1})
        return path

    return write


def started(path: Path, method: Method) -> tuple[Method, Start]:
    start = read_start(path, method)
    method.load_state_dict(start.weights, strict=False)
    return method, start


def is_from(path: Path, source: str, network: Backbone, but: set[str] = frozenset()) -> bool:
    file = load_file(path)
    own = network.state_dict()
    same = {k for k, v in own.items() if torch.equal(v, file.get(f"{source}.{k}", v + 1))}
    return same == {k for k, v in own.items() if v.is_floating_point() and k not in but} | {
        k for k in same if not own[k].is_floating_point()
    }


HEAD = {"head.weight", "head.bias"}


def test_a_network_is_taken_whole(saved: Saved) -> None:
    path = saved("vnet")
    method, start = started(path, made("vnet"))
    assert is_from(path, "network", method.network)
    assert start.left == ()


def test_other_classes_leave_the_head_as_drawn(saved: Saved) -> None:
    path, drawn = saved("vnet"), made("vnet", classes=4)
    before = drawn.network.head.weight.clone()
    method, start = started(path, drawn)
    assert start.left == ("network.head.weight", "network.head.bias")
    assert torch.equal(method.network.head.weight, before)
    assert is_from(path, "network", method.network, HEAD)


def test_pretrained_weights_bring_no_head(saved: Saved) -> None:
    # Two channels and two classes: the reconstruction has the shape of a head, but is none.
    path = saved("masked-reconstruction", channels=2)
    method, start = started(path, made("vnet", channels=2))
    assert start.left == ("network.head.weight", "network.head.bias")
    assert is_from(path, "network", method.network, HEAD)


@pytest.mark.parametrize(("old", "new"), [(1, 3), (2, 3), (3, 1)])
def test_other_channels_keep_the_size_of_the_response(saved: Saved, old: int, new: int) -> None:
    path = saved("vnet", channels=old)
    method, start = started(path, made("vnet", channels=new))
    assert not start.left
    plane = torch.randn(2, 1, 16, 16, 16)
    first = method.network.encoder[0][0][0]
    file = load_file(path)
    kernel, bias = (file[f"network.encoder.0.0.0.{name}"] for name in ("weight", "bias"))
    expected = torch.nn.functional.conv3d(
        plane.expand(-1, old, -1, -1, -1), kernel, bias, padding=1
    )
    torch.testing.assert_close(first(plane.expand(-1, new, -1, -1, -1)), expected)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_starts_from_its_pretraining(saved: Saved, backbone: str) -> None:
    path = saved("masked-reconstruction", backbone=backbone)
    start = read_start(path, made("vnet", backbone=backbone, channels=2))
    assert {name.removeprefix("network.") for name in start.left} == HEAD
    with torch.device("meta"):
        assert read_start(path, made("vnet", backbone=backbone, channels=2)).left == start.left


def networks_of(method: Method) -> dict[str, Backbone]:
    return {name: m for name, m in method.named_modules() if isinstance(m, Backbone)}


@pytest.mark.parametrize("name", METHODS)
def test_every_network_of_a_method_starts_from_the_one_in_the_file(saved: Saved, name: str) -> None:
    path, fresh = saved("masked-reconstruction"), made(name).state_dict()
    method, start = started(path, made(name))
    for at, network in networks_of(method).items():
        if at == "resnet":  # of MCF, which is another backbone
            assert all(torch.equal(v, fresh[f"{at}.{k}"]) for k, v in network.state_dict().items())
        else:
            assert is_from(path, "network", network, HEAD)
    assert all(torch.equal(method.state_dict()[key], fresh[key]) for key in start.left)


@pytest.mark.parametrize("name", ["cps", "dca-mt", "co-bionet", "evil"])
def test_networks_that_are_trained_side_by_side_differ_by_their_heads(
    saved: Saved, name: str
) -> None:
    path = saved("vnet")  # whose head would fit
    method, _ = started(path, made(name))
    one, two = networks_of(method).values()
    assert is_from(path, "network", one, HEAD)
    assert is_from(path, "network", two, HEAD)
    assert not torch.equal(one.head.weight, two.head.weight)


COPYING = ["mean-teacher", "bcp", "ua-mt", "dual-teacher", "cpcl", "ad-mt", "sdcl"]


@pytest.mark.parametrize("name", COPYING)
@pytest.mark.parametrize("classes", [2, 4])
def test_a_frozen_copy_stays_one(saved: Saved, name: str, classes: int) -> None:
    path, drawn = saved("vnet"), made(name, classes=classes)
    copies = equal_pairs(drawn)
    assert copies
    method, _ = started(path, drawn)
    assert equal_pairs(method) == copies
    for copied in {each for pair in copies for each in pair}:
        head = networks_of(method)[copied].head.weight
        assert classes != 2 or torch.equal(head, load_file(path)["network.head.weight"])


def equal_pairs(method: Method) -> set[tuple[str, str]]:
    """Networks with the same weights, head and all."""
    states = {name: network.state_dict() for name, network in networks_of(method).items()}
    return {
        (a, b)
        for a, b in combinations(states, 2)
        if states[a].keys() == states[b].keys()
        and all(torch.equal(states[a][key], states[b][key]) for key in states[a])
    }


@pytest.mark.parametrize("name", ["dca-mt", "cps", "mcf", "evil", "sassnet", "co-bionet"])
def test_a_method_starts_from_its_own_kind_by_name(saved: Saved, name: str) -> None:
    path = saved(name)
    method, start = started(path, made(name))
    assert start.left == ()
    found = method.state_dict()
    assert all(
        torch.equal(found[key], value)
        for key, value in load_file(path).items()
        if value.is_floating_point()
    )


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("mean-teacher", "student"),
        ("dca-mt", "pair.student"),
        ("cps", "first"),
        ("mcf", "vnet"),
        ("dtc", "network.vnet"),
        ("dual-teacher", "student"),
    ],
)
def test_of_several_networks_a_single_one_takes_the_one_that_predicts(
    saved: Saved, kind: str, source: str
) -> None:
    path = saved(kind)
    method, start = started(path, made("vnet"))
    assert start.left == ()
    assert is_from(path, source, method.network)


def test_two_backbones_each_take_their_own(saved: Saved) -> None:
    both = ("method.teacher_network={name: segresnet, width: 8}", "method.components=base")
    both += ("method.student_network={name: segresnet, width: 16}",)
    path = saved("dca-mt", *both)
    assert read_start(path, made("dca-mt", *both)).left == ()
    single = saved("vnet", "network.width=8", backbone="segresnet")
    start = read_start(single, made("dca-mt", *both))
    assert {name.split(".")[1] for name in start.left} == {"student"}


def test_a_deeper_u_net_takes_the_fine_levels(saved: Saved) -> None:
    path = saved("vnet", backbone="unet")
    large = configured("vnet", backbone="unet")
    plan = large.plan.model_copy(update={"patch": (32, 32, 32)})
    start = read_start(path, build_method(large.model_copy(update={"plan": plan})))
    deeper = {name for name in start.left if name.startswith("network.encoder")}
    assert deeper and all(name.startswith("network.encoder.stages.3") for name in deeper)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"backbone": "unet"}, {"backbone": "resenc"}),
        ({"backbone": "vnet"}, {"backbone": "segresnet"}),
        ({"backbone": "segresnet"}, {"backbone": "mednext"}),
        ({"backbone": "resenc"}, {"backbone": "unet"}),
    ],
)
def test_another_backbone_is_refused(saved: Saved, given: dict, wanted: dict) -> None:
    with pytest.raises(InputError, match="of another backbone or width"):
        read_start(saved("vnet", **given), made("vnet", **wanted))


def test_another_width_is_refused(saved: Saved) -> None:
    with pytest.raises(InputError, match="of another backbone or width"):
        read_start(saved("vnet"), made("vnet", "network.width=4"))


# ------------------------------------------------------------------------------- damaged, hostile


def rewritten(path: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"kind": "dcamt checkpoint 1", "state": json.dumps({})})
    return path


WEIGHT = "network.encoder.0.0.0.weight"


def with_nan(tensors: dict[str, Tensor]) -> None:
    tensors[WEIGHT][0, 0, 0, 0, 0] = torch.nan


def of_integers(tensors: dict[str, Tensor]) -> None:
    tensors[WEIGHT] = tensors[WEIGHT].to(torch.int32)


def of_complex(tensors: dict[str, Tensor]) -> None:
    tensors[WEIGHT] = tensors[WEIGHT].to(torch.complex64)


def of_no_channels(tensors: dict[str, Tensor]) -> None:
    tensors[WEIGHT] = torch.zeros(2, 0, 3, 3, 3)


def of_huge_names(tensors: dict[str, Tensor]) -> None:
    for i in range(3):
        tensors["." * 100_000 + f"{i}.head.weight"] = torch.zeros(1)


@pytest.mark.parametrize("change", [with_nan, of_integers, of_complex])
def test_what_no_weights_are_is_refused(saved: Saved, change) -> None:
    path = rewritten(saved("vnet"), change)
    with pytest.raises(InputError, match=rf"{path.name}: cannot be read \(it is damaged\)"):
        read_start(path, made("vnet"))


def test_a_layer_of_no_channels_fits_nothing(saved: Saved) -> None:
    with pytest.raises(InputError, match="of another backbone or width"):
        read_start(rewritten(saved("vnet"), of_no_channels), made("vnet"))


def test_names_without_end_are_passed_over(saved: Saved) -> None:
    assert not read_start(rewritten(saved("vnet"), of_huge_names), made("vnet")).left


def test_no_pickle_is_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path(tmp_path / "sprung").touch, ())

    path = tmp_path / "last.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match="not a readable safetensors"):
        read_start(path, made("vnet"))
    torch.save({"a": Trap()}, path)
    with pytest.raises(InputError, match="not a readable safetensors"):
        read_start(path, made("vnet"))
    assert not (tmp_path / "sprung").exists()


def test_a_cut_or_foreign_file_is_refused(saved: Saved) -> None:
    path = saved("vnet")
    whole = path.read_bytes()
    for content in (b"", whole[:7], whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a readable safetensors"):
            read_start(path, made("vnet"))
    save_file({WEIGHT: torch.zeros(2, 1, 3, 3, 3)}, path)
    with pytest.raises(InputError, match="not a dcamt checkpoint"):
        read_start(path, made("vnet"))
