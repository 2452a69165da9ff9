"""What methods cost in time and memory: measured on this machine, side by side with V-Net."""

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dcamt.config import Config, MethodConfig, Patch, load_config
from dcamt.engine.device import make_fabric
from dcamt.engine.precision import use_float32_where_needed
from dcamt.engine.trainer import Update, make_optimizers
from dcamt.errors import InputError
from dcamt.inference.predictor import Predictor, make_predictor
from dcamt.inference.sliding_window import branch_probabilities, count_windows
from dcamt.memory import kept_memory
from dcamt.networks.convolution import channels_last
from dcamt.processes import die_with_parent, safe_path
from dcamt.records.run_folder import RunConfig
from dcamt.runs.build import build_method
from dcamt.runs.complexity import count, method_names, with_plan
from dcamt.runs.design import BASELINE, parse_rows
from dcamt.types import Batch, Progress

LATE = Progress(75, 100)
"""An iteration late in training, where every loss takes part."""

_MEASURES = ("iteration_ms", "memory_mb", "volume_s")


@dataclass(frozen=True)
class _Subject:
    iterate: Callable[[], None]
    segment: Callable[[], None]


def measure(
    methods: str,
    patch: tuple[int, int, int],
    channels: int = 1,
    classes: int = 2,
    width: int | None = None,
    device: str = "auto",
    rounds: int | None = None,
    set: Iterable[str] = (),
) -> dict[str, Any]:
    """Count and measure each method, V-Net first, which the others are related to.

    ``methods`` is written as for `dcamt compare`, or "all". ``set`` are ``key=value`` settings of
    all of them, such as ``network.name=unet``.

    An iteration takes two labelled and two unlabelled patches of ``patch`` voxels, for ``vnet`` the
    same four with labels, in the precision of training, and includes the optimiser. A volume is
    one and a half patches long along each axis: eight windows. The methods take turns, ``rounds``
    times (None: 20 on a GPU, 3 on a CPU), after one round that does not count; figures are medians.

    Memory is the peak of one iteration: on a GPU what PyTorch allocated for the method, weights and
    optimiser included; on a CPU the growth of the resident set of a process of its own.

    Returns ``device``, ``memory`` (what it measures) and ``rows``: name, parameters, macs,
    iteration_ms, memory_mb (10^6 bytes), volume_s and ``ratio``, the same five as multiples of
    V-Net's. Raises InputError for a method, a patch, a number or a device that cannot be used.
    """
    settings = load_config(None, [*set, f"device={device}"])
    if rounds is not None and rounds < 1:
        raise InputError(f"--iterations {rounds}: ask for at least 1")
    rows = parse_rows(",".join(method_names()) if methods == "all" else methods)
    rows = [*parse_rows(BASELINE), *(row for row in rows if row.name != BASELINE)]
    configs = {
        row.name: with_plan(_with(settings, row.method), patch, channels, classes, width)
        for row in rows
    }
    fabric = make_fabric(device, "auto")
    gpu = fabric.device.type == "cuda"
    found: dict[str, dict[str, Any]] = {}
    subjects: dict[str, _Subject] = {}
    for name, config in configs.items():
        with torch.device("meta"):
            counted = count(build_method(config), channels, patch)
        base = torch.cuda.memory_allocated() if gpu else 0
        subjects[name] = _subject(config)
        if gpu:
            subjects[name].iterate()  # chooses algorithms, which takes memory of its own
            torch.cuda.reset_peak_memory_stats()
            subjects[name].iterate()
            memory = torch.cuda.max_memory_allocated() - base
        else:
            memory = _in_own_process(config)
        found[name] = {"name": name, **counted, "memory_mb": memory / 1e6}
    with kept_memory(4 * prod(patch)):
        times = _take_turns(subjects, rounds or (20 if gpu else 3))
    for name, row in found.items():
        row["iteration_ms"] = 1e3 * median(times[name, "iterate"])
        row["volume_s"] = median(times[name, "segment"])
    first = next(iter(found.values()))
    for row in found.values():
        keys = ("parameters", "macs", *_MEASURES)
        row["ratio"] = {key: row[key] / first[key] if first[key] else None for key in keys}
    return {
        "device": torch.cuda.get_device_name() if gpu else "CPU",
        "memory": "allocated on the GPU" if gpu else "growth of the process",
        "rows": list(found.values()),
    }


def measure_iteration(config: RunConfig) -> tuple[float, float]:
    """Seconds of an iteration and of a window of ``config``, on the device that it names."""
    train, patch, times = config.train, config.plan.patch, list[float]()
    subject = _subject(config, (train.labeled_batch, train.unlabeled_batch))
    with kept_memory(prod(patch) * (train.labeled_batch + train.unlabeled_batch)):
        subject.iterate()
        while len(times) < 3 and sum(times) < 3:
            times.append(_timed(subject.iterate))
    windows = count_windows(_volume(patch), patch, config.predict)
    with kept_memory(prod(patch) * config.predict.batch):
        subject.segment()
        return median(times), _timed(subject.segment) / windows


def cost_table(costs: Mapping[str, Any]) -> str:
    """`measure`'s result as Markdown, multiples of the first row in brackets."""
    heads = ("method", "parameters", "GMACs", "ms an iteration", "MB, peak", "s a volume")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in costs["rows"]:
        cells = [
            (f"{row['parameters']:,}", "parameters"),
            (f"{row['macs'] / 1e9:.2f}", "macs"),
            (f"{row['iteration_ms']:.1f}", "iteration_ms"),
            (f"{row['memory_mb']:,.0f}", "memory_mb"),
            (f"{row['volume_s']:.3f}", "volume_s"),
        ]
        shown = [
            text if row["ratio"][key] is None else f"{text} ({row['ratio'][key]:.2f})"
            for text, key in cells
        ]
        lines.append("| " + " | ".join([row["name"], *shown]) + " |")
    first = costs["rows"][0]["name"]
    lines += ["", f"{costs['device']}; memory: {costs['memory']}; in brackets: {first} = 1", ""]
    return "\n".join(lines)


def _with(settings: Config, method: MethodConfig) -> Config:
    return settings.model_copy(update={"method": method})


def _subject(config: RunConfig, patches: tuple[int, int] | None = None) -> _Subject:
    """A method ready to train and to segment on the configured device.

    ``patches``: how many are labelled and unlabelled; None for those of `measure`.
    """
    labeled, unlabeled = patches or (4 if config.method.name == BASELINE else 2, 2)
    fabric = make_fabric(config.device, config.train.precision)
    method = build_method(config)
    channels_last(method.to(fabric.device))
    update = Update(fabric, make_optimizers(method, config.train))
    batch = _batch(config, labeled, unlabeled, method.views).to(fabric.device)
    use_float32_where_needed(method, lambda: batch, fabric)
    volume = torch.randn(len(config.plan.channels), *_volume(config.plan.patch))
    classes = len(config.plan.classes)

    def iterate() -> None:
        method.train()
        with fabric.autocast():
            method.step(batch, LATE, update)

    @cache  # made when first asked for: its copy of the weights is not part of training
    def predictor() -> Predictor:
        return make_predictor(method, config.plan, fabric.device)

    def segment() -> None:
        branch_probabilities(predictor(), volume, config.plan.patch, classes, config.predict)

    return _Subject(iterate, segment)


def _volume(patch: Patch) -> Patch:
    """Sides of the volume that is segmented: one and a half patches."""
    x, y, z = (side + side // 2 for side in patch)
    return x, y, z


def _batch(config: RunConfig, labeled: int, unlabeled: int, views: int) -> Batch:
    """Patches of noise with a ball, cut across into the classes, as label."""
    patch, channels = config.plan.patch, len(config.plan.channels)
    classes = len(config.plan.classes)
    axes = [torch.linspace(-1, 1, side) for side in patch]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    cut = ((x + 1) / 2 * (classes - 1)).long().clamp(max=classes - 2) + 1
    label = torch.where(x**2 + y**2 + z**2 < 0.5, cut, 0)
    labels = label.repeat(labeled, 1, 1, 1)
    image_l, image_u = (torch.randn(n, channels, *patch) for n in (labeled, unlabeled))
    inside = torch.ones(unlabeled, *patch, dtype=torch.bool)
    strong = tuple(image_u + torch.randn_like(image_u) for _ in range(views))
    return Batch(image_l, labels, image_u, inside, (), strong)


def _take_turns(
    subjects: Mapping[str, _Subject], rounds: int
) -> dict[tuple[str, str], Sequence[float]]:
    """Seconds of every iteration and every volume; all methods meet the same conditions."""
    times: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for name, subject in subjects.items():
            for kind, work in (("iterate", subject.iterate), ("segment", subject.segment)):
                seconds = _timed(work)
                if number > 0:
                    times.setdefault((name, kind), []).append(seconds)
    return {key: tuple(values) for key, values in times.items()}


def _timed(work: Callable[[], None]) -> float:
    _wait()
    begin = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - begin


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _in_own_process(config: RunConfig) -> int:
    """Bytes by which an iteration and all it needs make a fresh process grow."""
    context = multiprocessing.get_context("spawn")
    with (
        safe_path(),
        ProcessPoolExecutor(1, mp_context=context, initializer=die_with_parent) as pool,
    ):
        return pool.submit(partial(_growth, config)).result()


def _growth(config: RunConfig) -> int:
    before = _peak()
    with kept_memory(4 * prod(config.plan.patch)):
        _subject(config).iterate()
    return _peak() - before


def _peak() -> int:
    """Largest resident set of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would remember the parent's size there
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
