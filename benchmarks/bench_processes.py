"""Two processes of one thread each against one process of two threads: ratios, in one run.

    python benchmarks/bench_processes.py

Trains methods on random patches, by turns in one and in two processes, and prints rows of Markdown:
the median ratio of the seconds of an iteration, that of the seconds that processors work on it (one
process has one thread there, as threads that wait for each other seem to work), and what each
process sends in one. On a machine with other work look at the second.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import Dataset

from dcamt.config import TrainConfig
from dcamt.engine.device import make_fabric
from dcamt.engine.trainer import Done, Trainer
from dcamt.methods import METHODS
from dcamt.networks.vnet import VNet
from dcamt.types import Batch

PROCESSES = 2
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)


class Patches(Dataset[Batch]):
    """The same four labelled and four unlabelled random patches each time.

    On one thread PyTorch convolves single patches slowly; so each process gets two or more.
    """

    seed = 0

    def __init__(self, patch: tuple[int, int, int]):
        random = torch.Generator().manual_seed(0)
        self.patch = patch
        image = torch.randn(8, 1, *patch, generator=random)
        label = (image[:4, 0] > 0).long()
        inside = torch.ones(4, *patch, dtype=torch.bool)
        names = tuple("abcdefgh")
        self.batch = Batch(image[:4], label, image[4:], inside, names)

    def __getitem__(self, iteration: int) -> Batch:
        return self.batch


def measure(fabric: Fabric, name: str, threads: int, given: argparse.Namespace, out: Path) -> None:
    """Write what an iteration takes: seconds (median), seconds of processors, and bytes sent.

    The first iteration is left out of the seconds. Bytes are those of one process.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    kind = METHODS[name]
    method = kind(kind.Config(), partial(VNet, 1, 2, given.width))
    settings = TrainConfig(iterations=given.iterations)
    patches: Any = Patches(tuple(given.patch))
    times, worked, sent = [], [], count_bytes()

    def note(done: Done) -> None:
        times.append(time.perf_counter())
        worked.append(time.process_time())

    Trainer(method, patches, settings, fabric).run(given.iterations, note)
    seconds = [b - a for a, b in pairwise(times)]
    each = {kind: count / given.iterations for kind, count in sent.items()}
    busy = torch.tensor((worked[-1] - worked[0]) / len(seconds))
    busy = fabric.all_reduce(busy, reduce_op="sum")
    if fabric.is_global_zero:
        parameters = sum(p.numel() for p in method.parameters() if p.requires_grad)
        torch.save((statistics.median(seconds), float(busy), each, parameters), out)


def count_bytes() -> Counter[str]:
    """Bytes that this process hands to its neighbour in a ring, from now on, by what they are."""
    sent: Counter[str] = Counter()
    gather, reduce = dist.all_gather, dist.all_reduce

    def counted_gather(parts: list[Tensor], own: Tensor) -> Any:
        kind = "statistics" if own.ndim == 2 else "outputs"
        sent[kind] += (len(parts) - 1) * own.nbytes
        return gather(parts, own)

    def counted_reduce(values: Tensor, **options: Any) -> Any:
        kind = "gradients" if values.ndim == 1 else "statistics"
        processes = dist.get_world_size()
        sent[kind] += 2 * (processes - 1) * values.nbytes // processes
        return reduce(values, **options)

    dist.all_gather, dist.all_reduce = counted_gather, counted_reduce
    return sent


def main() -> None:
    """Print a row for each method."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", nargs="+", default=["vnet", "dca-mt"])
    parser.add_argument("--patch", nargs=3, type=int, default=[32, 32, 32])
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print("| method | time, 2 / 1 | work, 2 / 1 | parameters | outputs | gradients | statistics |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in given.methods:
            ratios, work = [], []
            for _ in range(given.rounds):
                found = []
                for processes, threads in ((1, PROCESSES), (1, 1), (PROCESSES, 1)):
                    out = Path(folder) / "measured.pt"
                    fabric = make_fabric("cpu", "32-true", processes)
                    fabric.launch(
                        partial(measure, name=name, threads=threads, given=given, out=out)
                    )
                    found.append(torch.load(out))
                ratios.append(found[2][0] / found[0][0])
                work.append(found[2][1] / found[1][1])
            _, _, sent, parameters = found[2]
            kinds = ("outputs", "gradients", "statistics")
            amounts = [f"{sent[kind] / 1e6:.2f} MB" for kind in kinds]
            spreads = [
                f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"
                for each in (ratios, work)
            ]
            print("|", " | ".join([name, *spreads, f"{parameters:,}", *amounts]), "|", flush=True)


if __name__ == "__main__":
    main()
