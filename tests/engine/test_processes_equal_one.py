"""Several processes compute with a batch what one process computes with it.

In float64, which leaves no room for rounding: what remains is the same to 1e-8.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import Dataset

from dcamt.config import TrainConfig
from dcamt.engine.device import make_fabric
from dcamt.engine.trainer import Done, Trainer
from dcamt.errors import InputError
from dcamt.methods import METHODS
from dcamt.networks.shares import share_out
from dcamt.networks.vnet import VNet
from dcamt.types import IGNORE, Batch

Case = tuple[str, dict[str, object], int, int]
"""A method, its options, and how many labelled and unlabelled patches it is given."""
PATCH = (32, 16, 16)
ITERATIONS = 2
CASES: dict[str, Case] = {name: (name, {}, 2, 2) for name in METHODS} | {
    "an odd patch, and a pass of one": ("dca-mt", {"boxes": 2}, 2, 1),
    "fewer patches than processes": ("cps", {}, 1, 1),
    "a teacher that follows": ("dca-mt", {"teacher": "both", "shared_attention": True}, 2, 2),
}


class Drawn(Dataset[Batch]):
    """Bright blocks in noise, drawn from the number of the iteration; some planes are padding."""

    patch, seed = PATCH, 0

    def __init__(self, labeled: int, unlabeled: int, turned: bool = False):
        self.labeled, self.unlabeled, self.turned = labeled, unlabeled, turned

    def __getitem__(self, iteration: int) -> Batch:
        random = torch.Generator().manual_seed(iteration)
        n, count = self.labeled, self.labeled + self.unlabeled
        label = torch.zeros(count, *PATCH, dtype=torch.long)
        for i in range(count):
            x, y, z = torch.randint(0, 5, (3,), generator=random).tolist()
            label[i, 4 + x : 16 + x, 2 + y : 10 + y, 2 + z : 10 + z] = 1
        image = (2 * label + 0.5 * torch.randn(label.shape, generator=random)).unsqueeze(1)
        label[n - 1, -4:] = IGNORE
        if self.turned:  # the same labelled patches in the other order
            image, label = (torch.cat([x[:n].flip(0), x[n:]]) for x in (image, label))
        inside = torch.ones(self.unlabeled, *PATCH, dtype=torch.bool)
        inside[-1, -4:] = False
        strong = tuple(1.3 * image[n:] + shift for shift in (-0.1, 0.1))
        names = tuple(f"case_{i}" for i in range(count))
        return Batch(image[:n], label[:n], image[n:], inside, names, strong)


@contextmanager
def in_float64() -> Iterator[None]:
    """Losses, which ask for float32, get float64 as well."""
    single = Tensor.float
    torch.set_default_dtype(torch.float64)
    Tensor.float = Tensor.double
    try:
        yield
    finally:
        Tensor.float = single
        torch.set_default_dtype(torch.float32)


def train_case(
    fabric: Fabric, case: Case, iterations: int = ITERATIONS, turned: bool = False
) -> dict[str, Tensor]:
    """Weights, statistics and loss terms after a few iterations."""
    name, options, labeled, unlabeled = case
    torch.manual_seed(0)
    kind = METHODS[name]
    method = kind(kind.Config.model_validate(options), partial(VNet, 1, 2, 2))
    found = {}

    def note(done: Done) -> None:
        found.update({f"{done.iteration} {k}": v.detach() for k, v in done.terms.items()})

    settings = TrainConfig(iterations=iterations)
    trainer = Trainer(method, Drawn(labeled, unlabeled, turned), settings, fabric)
    trainer.run(iterations, note)
    return found | {key: value.clone() for key, value in method.state_dict().items()}


def train_cases(fabric: Fabric, cases: dict[str, Case], out: Path) -> None:
    torch.set_num_threads(1)
    with in_float64():
        found = {key: train_case(fabric, case) for key, case in cases.items()}
    torch.save(found, out / f"{fabric.global_rank}-of-{fabric.world_size}.pt")


def check_equal(processes: int, cases: dict[str, Case], out: Path) -> None:
    for count in (1, processes):
        fabric = make_fabric("cpu", "32-true", count)
        fabric.launch(partial(train_cases, cases=cases, out=out))
    (_, one), *several = (
        (path.name, torch.load(path)) for path in sorted(out.glob("*.pt"), key=lambda p: p.name[-4])
    )
    assert len(several) == processes
    first = several[0][1]
    for _, found in several[1:]:
        assert all(torch.equal(found[k][name], x) for k in cases for name, x in first[k].items())
    for process, found in several:
        for key in cases:
            for name, expected in one[key].items():
                torch.testing.assert_close(
                    found[key][name], expected, rtol=1e-8, atol=1e-8,
                    msg=lambda told, at=(process, key, name): f"{at}: {told}",
                )  # fmt: skip


def test_two_processes_train_to_the_weights_of_one(tmp_path):
    quick = ("dca-mt", "sassnet", "an odd patch, and a pass of one", "fewer patches than processes")
    check_equal(2, {name: CASES[name] for name in quick}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_every_method_does_so_with_more_processes_too(tmp_path, processes):
    check_equal(processes, CASES, tmp_path)


def train_in_float32(fabric: Fabric, turned: bool, out: Path) -> None:
    torch.set_num_threads(1)
    found = train_case(fabric, ("vnet", {}, 2, 2), iterations=20, turned=turned)
    torch.save(found, out / f"{fabric.world_size}-{turned}.pt")


@pytest.mark.slow
def test_in_float32_they_differ_as_little_as_another_order_of_the_patches_does(tmp_path):
    for processes, turned in ((1, False), (2, False), (1, True)):
        fabric = make_fabric("cpu", "32-true", processes)
        fabric.launch(partial(train_in_float32, turned=turned, out=tmp_path))
    one, two, other = (
        torch.load(tmp_path / f"{name}.pt") for name in ("1-False", "2-False", "1-True")
    )
    torch.testing.assert_close(two["1 supervised"], one["1 supervised"], rtol=0, atol=1e-5)
    weights = [name for name in one if name.endswith((".weight", ".bias"))]
    off, order = (
        max(float((run[n] - one[n]).abs().max()) for n in weights) for run in (two, other)
    )
    print(f"weights after 20 iterations: {off:.1e} by processes, {order:.1e} by the order")
    assert 0 < off < 10 * order


def test_dropout_that_cannot_be_shared_out_is_refused():
    network = VNet(1, 2, 2)
    network.head = nn.Sequential(network.head, nn.Dropout(0.1))
    with pytest.raises(InputError, match=r"Dropout.*train\.devices=1"):
        share_out(network)
