"""Where to compute, in which precision, and in how many processes."""

import logging
import multiprocessing
from typing import TYPE_CHECKING, Any

import torch

from dcamt.config import TrainConfig
from dcamt.engine.together import machines_and_processes, started_by_torchrun
from dcamt.errors import InputError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def choose_device(device: str, precision: str, devices: int = 1) -> tuple[str, str]:
    """Device and precision to compute in: of ``auto``, a GPU where there is one, in bfloat16.

    A device without units for bfloat16 would emulate it, many times slower than float32: it
    computes in float32 (``32-true``) whatever ``precision`` asks for. Raises InputError where
    there is no GPU, or fewer than ``devices``, and one was asked for.
    """
    present = torch.cuda.is_available()
    if device == "cuda" and not present:
        raise InputError("device = cuda: PyTorch sees no GPU here; use --device cpu or auto")
    accelerator = "cuda" if present and device != "cpu" else "cpu"
    if accelerator == "cuda" and devices > torch.cuda.device_count():
        raise InputError(
            f"train.devices = {devices}: PyTorch sees {torch.cuda.device_count()} GPU(s) here"
        )
    if precision == "auto":
        precision = "bf16-mixed" if accelerator == "cuda" else "32-true"
    if precision == "bf16-mixed" and not has_bfloat16(accelerator):
        precision = "32-true"
    return accelerator, precision


def has_bfloat16(accelerator: str) -> bool:
    """Whether the processor, or the GPU, computes in bfloat16 by itself."""
    if accelerator == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()  # avx512_bf16, amx_bf16, and those of ARM
    return any(present is True for name, present in features.items() if "bf16" in name)


def make_fabric(device: str, precision: str, devices: int = 1, together: bool = False) -> "Fabric":
    """Fabric on the resolved device; InputError if it is not there.

    ``together``: of the processes that torchrun started, if there are any, in place of ``devices``.
    """
    # To import it takes seconds, and only training needs it.
    from lightning_fabric import Fabric  # noqa: PLC0415

    machines, strategy = 1, "ddp_spawn" if devices > 1 else "auto"
    if together and started_by_torchrun():
        (machines, devices), strategy = machines_and_processes(), "ddp"
    accelerator, resolved = choose_device(device, precision, devices)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    kind: Any = resolved
    return Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=machines,
        precision=kind,
        strategy=strategy,
    )


def check_sharing(settings: TrainConfig) -> None:
    """InputError if processes are wanted where the system has nothing that they could share."""
    if settings.workers or settings.devices > 1:
        try:
            multiprocessing.Lock()
        except OSError as error:
            raise InputError(
                f"/dev/shm: processes cannot share memory here ({error.strerror}); make it "
                "writable, or set train.workers=0 and train.devices=1"
            ) from None
