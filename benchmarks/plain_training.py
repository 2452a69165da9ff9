"""The yardstick for training: the loop that published semi-supervised scripts share.

Contiguous float32, every volume read and unzipped anew for each crop by worker processes, losses
moved to the host in each iteration. Network, losses and patches' sizes are those of ``dcamt``, so
that nothing but the loop differs.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from dcamt.config import TrainConfig
from dcamt.methods.method import AnyModule, Method
from dcamt.types import Batch, Progress

WORKERS = 4  # what the scripts ask for


class Crops(Dataset):
    """Item i: a random, flipped and turned crop ``(1, X, Y, Z)`` and its label, read from disk."""

    def __init__(self, cases: list[tuple[Path, Path]], patch: tuple[int, int, int], items: int):
        self.cases, self.patch, self.items = cases, patch, items

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor]:
        random = np.random.default_rng(item)
        paths = self.cases[random.integers(len(self.cases))]
        image, label = (np.asarray(nib.load(path).dataobj) for path in paths)
        image = ((image - image.mean()) / image.std()).astype(np.float32)
        starts = [random.integers(n - p + 1) for n, p in zip(image.shape, self.patch, strict=True)]
        box = tuple(slice(s, s + p) for s, p in zip(starts, self.patch, strict=True))
        image, label = image[box], label[box]
        axis = random.integers(2)
        image, label = np.flip(image, axis), np.flip(label, axis)
        if self.patch[0] == self.patch[1]:
            turns = random.integers(4)
            image, label = np.rot90(image, turns), np.rot90(label, turns)
        return (
            torch.from_numpy(np.ascontiguousarray(image))[None],
            torch.from_numpy(np.ascontiguousarray(label).astype(np.int64)),
        )


def crops(dataset: Path, patch: tuple[int, int, int], train: TrainConfig) -> Iterator[Batch]:
    """One batch an iteration, the first crops with their labels."""
    labels = dataset / "labelsTr"
    cases = [(path, labels / path.name) for path in sorted((dataset / "imagesTr").iterdir())]
    labeled, count = train.labeled_batch, train.labeled_batch + train.unlabeled_batch
    items = Crops(cases, patch, train.iterations * count)
    for image, label in DataLoader(items, batch_size=count, num_workers=WORKERS):
        inside = torch.ones_like(label[labeled:], dtype=torch.bool)
        yield Batch(image[:labeled], label[:labeled], image[labeled:], inside, ("",) * count)


def plain_layers(network: AnyModule) -> AnyModule:
    """A copy with PyTorch's own layers in the place of those derived from them."""
    plain = copy.deepcopy(network)
    for module in plain.modules():
        for layer in (nn.Conv3d, nn.ConvTranspose3d):
            if isinstance(module, layer):
                module.__class__ = layer
    return plain


class Loop:
    """Plain SGD on ``method``: one call, one iteration."""

    def __init__(self, method: Method, iterations: int):
        self.method = method.train()
        parameters = [p for p in method.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4)
        self.iteration, self.iterations = 0, iterations

    def update(self, loss: torch.Tensor, *parts: str) -> None:
        """Back-propagate and step."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def step(self, batch: Batch) -> dict[str, float]:
        """One iteration; returns the loss terms."""
        at = Progress(self.iteration, self.iterations)
        terms = self.method.step(batch, at, self.update)
        self.iteration += 1
        return {name: term.item() for name, term in terms.items()}
