import json
import platform
import subprocess
import sys

import pytest

from dcamt.memory import kept_memory

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
