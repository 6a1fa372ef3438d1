"""The machine: device, threads, precision; notices to stop; errors in one line."""

import ctypes
import os
import sys

import torch

from utils.errors import UserError

MALLOC_OPTIONS = {-4: 0, -1: 2**31 - 1, -2: 2**28}
"""Of malloc.h: M_MMAP_MAX, no mapping per tensor; M_TRIM_THRESHOLD, M_TOP_PAD: a heap that grows in leaps and stays."""


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; auto: this rank's GPU if there is one, else the CPU.

    Raises:
        UserError: if that device does not exist here.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # .item(), since nothing can be read from device "meta"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device={name!r} cannot be used here ({reason}); use cpu, cuda, cuda:N or auto") from error
    return device


def set_up_cpu(threads: int) -> None:
    """CPU threads for torch (0 leaves torch's choice), and freed memory kept for the next step.

    Raises:
        UserError: if `threads` is out of range.
    """
    if not 0 <= threads <= 4096:
        raise UserError(f"threads={threads} must lie in 0..4096; 0: torch decides")
    if threads:
        torch.set_num_threads(threads)
    # glibc hands every large tensor back to the system, which then zeroes the same pages again for the next one: a
    # third of a training step over a vocabulary of 30,522. Other C libraries lack mallopt and go on as they are.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        for option, value in MALLOC_OPTIONS.items():
            mallopt(option, value)


def pick_precision(name: str, device: torch.device) -> str:
    """fp32, bf16 or fp16; auto takes bf16 where the hardware multiplies it natively, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    # torch has no public question for this one; where it cannot be asked, float32 is always right
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which the network runs; weights and losses stay in float32."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")
