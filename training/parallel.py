"""One network on many processes: whole on each (DDP), or in shards (FSDP2); nothing else knows which.

What is wrapped is a module that takes a batch to its loss, for both hang their communication on a forward and its
backward. Both average gradients over processes, so the loss is scaled by their number: the gradient is the sum.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from utils.distributed import world_size


def parallelize(module: nn.Module, layers: list[nn.Module], strategy: str, device: torch.device) -> nn.Module:
    """The module, made to agree with its copies.

    Args:
        module: from a batch to its loss.
        layers: its parts of like size, which FSDP gathers one after another.
        strategy: ddp, or fsdp; without meaning for a single process.
        device: where it is.
    """
    if world_size() == 1:
        return module
    if strategy == "ddp":
        return DistributedDataParallel(module, forward_sync_buffers=False, gradient_as_bucket_view=True)
    mesh = init_device_mesh(device.type, (world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(module, mesh=mesh)


@contextlib.contextmanager
def accumulating(wrapped: nn.Module, *, last: bool) -> Iterator[None]:
    """Forward and backward of one of a step's batches: only the last one's gradients are sent around."""
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(last)
        yield
    elif isinstance(wrapped, DistributedDataParallel) and not last:
        with wrapped.no_sync():
            yield
    else:
        yield


@contextlib.contextmanager
def whole_weights(wrapped: nn.Module) -> Iterator[None]:
    """Within the block every process holds all weights, so that each may run the network as often as it likes."""
    if not isinstance(wrapped, FSDPModule):
        yield
        return
    shards = [module for module in wrapped.modules() if isinstance(module, FSDPModule)]
    wrapped.set_reshard_after_forward(False)
    for module in shards:
        module.unshard()
    try:
        yield
    finally:
        for module in shards:
            module.reshard()
        wrapped.set_reshard_after_forward(True)
