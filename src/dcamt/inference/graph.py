"""A trained method as one graph for other programs, and the check that they compute the same."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from dcamt.config import Plan
from dcamt.data.dataset import read_dataset
from dcamt.data.space import to_network
from dcamt.data.volume import check_channels, read_image
from dcamt.errors import InputError
from dcamt.inference.sliding_window import pad_to
from dcamt.methods.method import Method
from dcamt.records.run_folder import RunConfig

TOLERANCE = 1e-4
"""By which a probability may differ between PyTorch and another program."""


class WholeMethod(nn.Module):
    """What ``predict`` runs: the mean probabilities of all networks that a method has.

    A copy of the method on the CPU, in evaluation mode. It maps windows ``(B, C, X, Y, Z)`` to
    ``(B, K, X, Y, Z)``, both float32.
    """

    def __init__(self, method: Method):
        super().__init__()
        self.method = deepcopy(method).cpu()
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        return self.method.predict(image)


def example_windows(config: RunConfig) -> tuple[Tensor, str]:
    """Two windows ``(2, C, X, Y, Z)`` float32 as the network sees them, and what they are.

    They come from the first scan of the run's data set. Where that cannot be read, as for a run
    that was handed on, they are random numbers. No label is opened.
    """
    plan = config.plan
    try:
        if config.dataset is None:
            raise InputError("the run names no data set")
        case = read_dataset(config.dataset).cases[0]
        image = read_image(case.images)
        check_channels(image, plan.channels, case.images[0])
        array, _ = to_network(image, plan)
    except InputError:
        drawn = torch.Generator().manual_seed(0)
        windows = torch.randn(2, len(plan.channels), *plan.patch, generator=drawn)
        return windows, "two windows of random numbers of mean 0 and variance 1"
    windows = _corner_and_middle(torch.from_numpy(array), plan)
    return windows, "two windows of a scan of the run's data set"


def _corner_and_middle(array: Tensor, plan: Plan) -> Tensor:
    padded, _ = pad_to(array, plan.patch)
    middle = [(n - side) // 2 for n, side in zip(padded.shape[1:], plan.patch, strict=True)]
    windows = [
        padded[:, *(slice(s, s + side) for s, side in zip(start, plan.patch, strict=True))]
        for start in ((0, 0, 0), middle)
    ]
    return torch.stack(windows)


@torch.no_grad()
def check_agrees(
    program: str, compute: Callable[[Tensor], Tensor], whole: WholeMethod, windows: Tensor
) -> None:
    """InputError unless ``compute`` gives the probabilities that PyTorch gives, to TOLERANCE.

    Both windows go in together and the first one alone: the number of windows is free.
    """
    for batch in (windows, windows[:1]):
        difference = float((compute(batch) - whole(batch)).abs().max())
        if not difference <= TOLERANCE:  # nor is NaN let through
            raise InputError(
                f"{program} and PyTorch differ by {difference:.1g} in a probability, more than "
                f"{TOLERANCE:g}, so nothing was written; install another version of {program}, or "
                "export with --format safetensors"
            )
