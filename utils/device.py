"""Device, threads and precision of this machine."""

import ctypes
import os
import sys

import torch

from utils.command_line import PRECISIONS
from utils.errors import UserError

MALLOC_OPTIONS = {-4: 0, -1: 2**31 - 1, -2: 2**28}
"""Options of malloc.h: M_MMAP_MAX (no mapping per tensor), M_TRIM_THRESHOLD (no trimming), M_TOP_PAD (256 MiB)."""

MOST_REASON = 200
"""Characters of torch's reason, which may list all of its devices."""

CACHED_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
"""Matrix products that oneDNN, which computes them in bf16, remembers by shape; by default 1,024.

Batches have ever new shapes, and a remembered one between two large tensors keeps their memory apart: training from
minilm held 7.5 GB after a thousand steps.
"""


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; auto: this rank's GPU if there is one, else the CPU.

    Raises:
        UserError: if that device does not exist here.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("device='mps' cannot be used here: torch finds no Apple GPU; use cpu, cuda, cuda:N or auto")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # .item() fails for device "meta"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0][:MOST_REASON]
        raise UserError(
            f"device={name!r} cannot be used here ({reason}); use cpu, cuda, cuda:N, mps or auto"
        ) from error
    return device


def lacks_float64(device: torch.device) -> bool:
    """Return whether a device has no float64, in which the processes compute."""
    return device.type == "mps"


def set_up_cpu(threads: int) -> None:
    """Set torch's CPU threads (0: torch's choice), and keep freed memory for the next step.

    Raises:
        UserError: if `threads` is out of range.
    """
    if not 0 <= threads <= 4096:
        raise UserError(f"threads={threads} must lie in 0..4096 (0: torch's choice)")
    if threads:
        torch.set_num_threads(threads)
    for name, value in CACHED_KERNELS.items():
        os.environ.setdefault(name, value)  # read at the first matrix product
    # glibc returns every large tensor to the system, which then zeroes the same pages for the next one. That takes a
    # third of a training step with a vocabulary of 30,522. Other C libraries lack mallopt and are left alone.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        for option, value in MALLOC_OPTIONS.items():
            mallopt(option, value)


def pick_precision(name: str, device: torch.device) -> str:
    """Return fp32, bf16 or fp16; auto: bf16 where the hardware has it, else fp16 on a GPU and fp32 on a CPU.

    Raises:
        UserError: for another name.
    """
    if name not in PRECISIONS:
        raise UserError(f"precision={name!r} must be one of {', '.join(PRECISIONS)}")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    # torch has no public function for this; float32 is always correct
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context for the network; weights and losses stay in float32."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")
