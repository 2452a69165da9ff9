"""``dcamt doctor``: what this machine is, and whether dcamt computes rightly on it.

The text is made to be pasted into a bug report: it holds no path, no host and no user's name.
"""

import importlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from dcamt.data.prepare import cache_folder
from dcamt.engine.precision import wrong_shapes
from dcamt.errors import InputError
from dcamt.memory import free_memory, most_memory
from dcamt.processes import cores

Verdict = Literal["ok", "note", "wrong"]

NEEDED = {
    "torch": "torch",
    "monai": "monai",
    "lightning-fabric": "lightning_fabric",
    "numpy": "numpy",
    "scipy": "scipy",
    "nibabel": "nibabel",
    "SimpleITK": "SimpleITK",
    "pydicom": "pydicom",
    "h5py": "h5py",
    "safetensors": "safetensors",
    "matplotlib": "matplotlib",
    "tensorboard": "tensorboard",
}
"""Package -> module, of what dcamt computes and reads files with."""
EXTRAS = {
    "openvino": ("openvino", "faster prediction"),
    "highdicom": ("dicom", "--dicom-seg"),
    "onnxruntime": ("onnx", "export --format onnx"),
    "fire": ("bundle", "running a MONAI Bundle"),
}
"""Package -> its extra, and what it is for."""
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
"""Of a processor, which decide what kernels compute."""
_SIDES = (1, 2, 3, 4, 6)
BOTTLENECKS = [(x, y, z) for x, y, z in product(_SIDES, _SIDES, _SIDES)]
"""Voxels of the features in the middle of a network, as plans make them."""
LEAST_MEMORY = 4e9
LEAST_DISK = 5e9


@dataclass(frozen=True)
class Finding:
    """One line. ``note``: it works, but a user should know; ``wrong``: it must be mended."""

    name: str
    text: str
    verdict: Verdict = "ok"


def examine() -> Iterator[Finding]:
    """Look at everything; each finding comes as soon as it is made, in about ten seconds in all."""
    yield Finding("dcamt", version("dcamt"))
    yield Finding("Python", f"{platform.python_version()} on {platform.system()}")
    yield from _packages()
    yield from _extras()
    yield _processor()
    yield _memory()
    yield _gpu()
    yield _cache()
    yield _temporary()
    yield from _numerics()


def _packages() -> Iterator[Finding]:
    for package, module in NEEDED.items():
        try:
            importlib.import_module(module)
            yield Finding(package, version(package))
        except Exception as error:  # a library that is missing, or was built for another system
            text = f"cannot be loaded ({type(error).__name__}); install dcamt anew"
            yield Finding(package, text, "wrong")


def _extras() -> Iterator[Finding]:
    for package, (extra, purpose) in EXTRAS.items():
        try:
            yield Finding(package, f"{version(package)}, for {purpose}")
        except PackageNotFoundError:
            text = f"not installed; for {purpose}: pip install 'dcamt[{extra}]'"
            yield Finding(package, text, "note")


def _processor() -> Finding:
    names, flags = set(), set()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                names.add(value.strip())
            elif key.strip() in ("flags", "Features"):
                flags |= set(value.split())
    except OSError:
        names.add(platform.processor() or platform.machine())
    found = [feature for feature in FEATURES if feature in flags]
    kind = ", ".join(sorted(names)) or platform.machine()
    text = f"{kind}; {cores()} cores for this process, {torch.get_num_threads()} threads"
    return Finding("processor", f"{text}; {' '.join(found) or 'features unknown'}")


def _memory() -> Finding:
    most = most_memory()
    if most == float("inf"):
        return Finding("memory", "this system does not tell how much there is", "note")
    free = free_memory()
    text = f"{most / 1e9:.1f} GB that this process may use, {free / 1e9:.1f} GB of them free"
    if most < LEAST_MEMORY:
        return Finding("memory", f"{text}; training wants {LEAST_MEMORY / 1e9:.0f} or more", "note")
    return Finding("memory", text)


def _gpu() -> Finding:
    if not torch.cuda.is_available():
        return Finding("GPU", "none that PyTorch sees; everything is computed on the processor")
    parts = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        parts.append(f"{about.name}, {about.total_memory / 1e9:.0f} GB")
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    units = "with" if native else "without"
    return Finding("GPU", f"{'; '.join(parts)}; {units} bfloat16 units; CUDA {torch.version.cuda}")


def _cache() -> Finding:
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"dcamt")
        free = shutil.disk_usage(folder).free
    except (OSError, InputError, RuntimeError):
        text = "cannot be written; set DCAMT_CACHE to a folder that can"
        return Finding("cache folder", text, "wrong")
    by = "DCAMT_CACHE" if os.environ.get("DCAMT_CACHE") else "the system's habit"
    text = f"chosen by {by}, can be written, {free / 1e9:.0f} GB free"
    if free < LEAST_DISK:
        return Finding("cache folder", f"{text}; prepared scans may need more", "note")
    return Finding("cache folder", text)


def _temporary() -> Finding:
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"dcamt")
    except OSError:
        text = "cannot be written; set TMPDIR to a folder that can"
        return Finding("temporary folder", text, "wrong")
    return Finding("temporary folder", "can be written")


def _numerics() -> Iterator[Finding]:
    """Layers as training uses them, held against more exact arithmetic."""
    yield _matrix_products()
    devices = [torch.device("cpu")]
    devices += [torch.device("cuda")] if torch.cuda.is_available() else []
    for device in devices:
        name = "processor" if device.type == "cpu" else "GPU"
        yield _convolutions(
            f"float32, {name}", torch.float32, device, "wrong", "do not train here, and report this"
        )
        yield _convolutions(
            f"bfloat16, {name}",
            torch.bfloat16,
            device,
            "note",
            "such layers are computed in float32",
        )


def _convolutions(
    name: str, dtype: torch.dtype, device: torch.device, fault: Verdict, advice: str
) -> Finding:
    """How many bottlenecks are right in ``dtype``; ``fault`` and ``advice`` if one is not."""
    wrong = wrong_shapes(BOTTLENECKS, dtype, device)
    right, total = len(BOTTLENECKS) - len(wrong), len(BOTTLENECKS)
    text = f"{right} of {total} convolutions right, forward and gradients"
    if wrong:
        text += f"; wrong first at {wrong[0]} voxels: {advice}"
    return Finding(name, text, fault if wrong else "ok")


def _matrix_products() -> Finding:
    """Whole numbers, whose products NumPy and PyTorch must give exactly."""
    random = np.random.default_rng(0)
    a, b = random.integers(-9, 9, (2, 96, 96))
    right = a @ b  # of integers: no library takes part
    good = np.array_equal(a.astype(np.float64) @ b.astype(np.float64), right)
    found = torch.from_numpy(a).float() @ torch.from_numpy(b).float()
    good = good and np.array_equal(found.numpy(), right)
    text = "right" if good else "wrong: NumPy's or PyTorch's library does not suit this processor"
    return Finding("matrix products", text, "ok" if good else "wrong")
