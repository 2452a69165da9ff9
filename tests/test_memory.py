import json
import math
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dcamt.errors import InputError
from dcamt.memory import free_memory, is_out_of_memory, kept_memory, most_memory, told_of_memory

MEASURE = """
import json, re, resource
from pathlib import Path
import torch
from dcamt.memory import kept_memory

def page_faults():
    "Pages the system cleared for this process while it thrice held and freed three tensors."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        tensors = [torch.ones(16 * 2**20) for _ in range(3)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(re.search("VmRSS:\\\\s*(\\\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

page_faults()
start, usual = resident(), min(page_faults() for _ in range(5))
with kept_memory():
    with kept_memory():
        pass  # the end of one within it changes nothing
    # How soon the heap's pieces fit again depends on where the system put it.
    kept, held = min(page_faults() for _ in range(10)), resident()
print(json.dumps([usual, kept, held - start, resident() - start]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_kept_for_the_next_tensor_and_then_given_back() -> None:
    """In a process of its own: what others left in the heap decides what is reused."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, check=True)
    usual, kept, held, left = json.loads(done.stdout)
    assert kept < usual / 2
    assert held > 150  # MiB: three tensors of 64
    assert left < 20


def test_an_error_passes_through() -> None:
    with pytest.raises(ValueError, match="mine"), kept_memory():
        raise ValueError("mine")


# ----------------------------------------------------------------- what the process may really use

MACHINE = "MemTotal:  1000 kB\nMemFree:  10 kB\nMemAvailable:  700 kB\n"
STATUS = "Name:\tpython\nVmSize:\t  300 kB\nVmRSS:\t  200 kB\nVmData:\t  100 kB\n"
UNLIMITED = "Limit  Soft Limit  Hard Limit  Units\nMax address space  unlimited  unlimited  bytes\n"


def system(root: Path, files: dict[str, str]) -> Path:
    """The files below /proc and /sys in which Linux says what memory there is."""
    machine = {"proc/meminfo": MACHINE, "proc/self/status": STATUS, "proc/self/limits": UNLIMITED}
    for name, text in {**machine, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(folder: str, most: str, used: int, cached: int = 0, version: int = 2) -> dict[str, str]:
    limit, usage, prefix = ("memory.max", "memory.current", "")
    if version == 1:
        limit, usage, prefix = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
    statistics = f"{prefix}inactive_file {cached}\n{prefix}active_file 5\nanon 7\n"
    return {
        f"sys/fs/cgroup/{folder}/{limit}": f"{most}\n",
        f"sys/fs/cgroup/{folder}/{usage}": f"{used}\n",
        f"sys/fs/cgroup/{folder}/memory.stat": statistics,
    }


def test_without_a_limit_the_machine_is_the_limit(tmp_path: Path) -> None:
    root = system(
        tmp_path, {"proc/self/cgroup": "0::/user.slice\n"} | group("user.slice", "max", 9)
    )
    assert (most_memory(root), free_memory(root)) == (1000 * 1024, 700 * 1024)


def test_every_control_group_above_counts(tmp_path: Path) -> None:
    """The batch system limits the job, and nothing limits the step in it."""
    files = {"proc/self/cgroup": "0::/slurm/job/step\n"}
    files |= group("slurm", "900000", 500) | group("slurm/job", "50000", 30000, cached=9995)
    root = system(tmp_path, files | group("slurm/job/step", "max", 10000))
    assert most_memory(root) == 50000
    assert free_memory(root) == 50000 - (30000 - 9995 - 5)  # a cache of files makes room


@pytest.mark.parametrize("path", ["/", "/docker/0123abc", "/../../kubepods"])
def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path, path: str) -> None:
    root = system(tmp_path, {"proc/self/cgroup": f"0::{path}\n"} | group(".", "60000", 20005))
    assert (most_memory(root), free_memory(root)) == (60000, 40000)


@pytest.mark.parametrize("path", ["/docker/0123abc", "/"])
def test_control_groups_of_version_1(tmp_path: Path, path: str) -> None:
    files = {"proc/self/cgroup": f"5:cpu,cpuacct:/\n4:memory:{path}\n0::/\n"}
    files |= group("memory", str(2**63 - 4096), 10, version=1)  # no limit, as version 1 writes it
    files |= group(f"memory{path}", "70000", 20005, version=1)
    root = system(tmp_path, files)
    assert (most_memory(root), free_memory(root)) == (70000, 50000)


@pytest.mark.parametrize(("name", "used"), [("Max address space", 300), ("Max data size", 100)])
def test_limits_of_the_shell(tmp_path: Path, name: str, used: int) -> None:
    limits = f"{UNLIMITED}{name}         512000          unlimited          bytes\n"
    root = system(tmp_path, {"proc/self/limits": limits})
    assert (most_memory(root), free_memory(root)) == (512000, 512000 - used * 1024)


def test_where_the_system_tells_nothing_nothing_is_known(tmp_path: Path) -> None:
    assert most_memory(tmp_path) == free_memory(tmp_path) == math.inf


def test_more_in_use_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    root = system(tmp_path, {"proc/self/cgroup": "0::/\n"} | group(".", "60000", 80000))
    assert free_memory(root) == 0


# --------------------------------------------------------------------------- when there is no more

ASK = """
import numpy as np, torch
from dcamt.errors import InputError
from dcamt.memory import check_fits, free_memory, most_memory, told_of_memory

assert most_memory() == 3_000_000_000, most_memory()
assert 0 < free_memory() < 3_000_000_000
asks = {
    "NumPy": lambda: np.ones(10**9), "PyTorch": lambda: torch.ones(10**9),
    "Python": lambda: bytearray(8 * 10**9), "check": lambda: check_fits(8e9, "it", "crop it"),
}
for name, ask in asks.items():
    try:
        with told_of_memory(name, "crop it"):
            ask()
    except InputError as error:
        print(error)
"""


def limited(bytes_: int, *command: str) -> "subprocess.CompletedProcess[str]":
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (bytes_, bytes_))

    done = [sys.executable, *command]
    return subprocess.run(done, capture_output=True, text=True, preexec_fn=limit, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells and limits")
def test_want_of_memory_is_one_sentence_with_the_figures() -> None:
    done = limited(3_000_000_000, "-c", ASK)
    numpy, torch_, python, check = done.stdout.splitlines()
    assert numpy == (
        "NumPy: there is not enough memory for another 8 GB (this process may use 3 GB); crop it"
    )
    assert torch_ == (
        "PyTorch: there is not enough memory for another 4 GB (this process may use 3 GB); crop it"
    )
    assert python == "Python: there is not enough memory (this process may use 3 GB); crop it"
    assert check.startswith("it takes 8 GB of memory, but ")
    assert check.endswith(" GB are free here (of 3 GB); crop it")


def test_want_of_memory_of_a_gpu_is_told_with_its_figures() -> None:
    """As PyTorch 2.13 words it; the sizes are the GPU's."""
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB "
        "of which 1.25 GiB is free. Of the allocated memory 76 GiB is allocated by PyTorch"
    )
    with pytest.raises(InputError) as told, told_of_memory("a.nii.gz", "lower predict.batch"):
        raise error
    assert str(told.value) == (
        "a.nii.gz: there is not enough memory for another 2.15 GB (the GPU has 79.11 GiB, 1.25 GiB "
        "of them free); lower predict.batch"
    )


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("could not create a primitive"),
        RuntimeError("can't start new thread"),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_what_libraries_raise_for_want_of_memory_is_known(error: Exception) -> None:
    assert is_out_of_memory(error)
    wrapped = RuntimeError("something else")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped)


def test_other_errors_are_not_taken_for_want_of_memory() -> None:
    for error in (ValueError("mine"), InputError("out of memory is in its name"), OSError(28, "x")):
        assert not is_out_of_memory(error)
    with pytest.raises(ValueError, match="mine"), told_of_memory("a", "b"):
        raise ValueError("mine")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells and limits")
@pytest.mark.parametrize("bytes_", [600_000_000, 800_000_000])
def test_libraries_are_not_loaded_into_too_little(tmp_path: Path, bytes_: int) -> None:
    """They would abort the process, or hang."""
    done = limited(bytes_, "-m", "dcamt.cli", "card", str(tmp_path))
    assert done.returncode == 2
    assert "PyTorch takes 0.9 GB of address space" in done.stderr
    assert "Traceback" not in done.stderr
