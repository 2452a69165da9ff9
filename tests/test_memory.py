import platform

import pytest
import torch

from dcamt.memory import kept_memory

VOXELS = 16 * 2**20  # 64 MiB of float32


def page_faults() -> int:
    """Pages the system cleared for this process while it thrice held and freed three tensors."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        _ = [torch.ones(VOXELS) for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_kept_for_the_next_tensor_and_then_given_back() -> None:
    page_faults()
    usual = page_faults()
    with kept_memory():
        page_faults()
        assert page_faults() < usual / 2
    assert page_faults() > usual / 2


def test_an_error_passes_through() -> None:
    with pytest.raises(ValueError, match="mine"), kept_memory():
        raise ValueError("mine")
