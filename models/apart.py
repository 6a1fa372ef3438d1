"""A network on a device without float64, such as Apple's GPUs (mps); the arithmetic of its process is on the CPU."""

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from models.denoiser import NetworkDenoiser

METHODS = ("encode", "encode_at", "decode", "extend")


def compute_apart(denoiser: NetworkDenoiser, device: torch.device) -> None:
    """Let a denoiser on `device` take tensors of any device and return tensors of the CPU.

    Its processes keep their float64 tables on the CPU and never see the device. Gradients cross like values.
    """
    for name in METHODS:
        setattr(denoiser, name, _moved(getattr(denoiser, name), device))


def _moved(method: Callable, device: torch.device) -> Callable:
    @wraps(method)
    def call(*arguments: object) -> object:
        return _to_cpu(method(*(_to(argument, device) for argument in arguments)))

    return call


def _to(value: object, device: torch.device) -> object:
    if not isinstance(value, Tensor):
        return value  # None, or the cache of a causal network, which stays on the device
    return value.to(device, torch.float32 if value.dtype == torch.float64 else value.dtype)


def _to_cpu(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(map(_to_cpu, value))
    return value.cpu() if isinstance(value, Tensor) else value
