"""Data-parallel training: the network replicated on each process (DDP) or sharded over them (FSDP2).

Both attach their communication to one forward and backward pass, so the wrapped module maps a batch to its loss. Both
average gradients over processes; the caller scales the loss by their number, so that gradients are sums.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from utils.job import world_size


def parallelize(module: nn.Module, layers: list[nn.Module], strategy: str, device: torch.device) -> nn.Module:
    """Return the module wrapped for data-parallel training, or itself in a single process.

    Args:
        module: module that maps a batch to its loss.
        layers: submodules of similar size, which FSDP gathers one after another.
        strategy: "ddp" or "fsdp"; unused in a single process.
        device: device of the module.
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
    """Run one batch's forward and backward in the block; synchronise gradients only for the `last` batch of a step."""
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
    """Gather all weights on every process within the block, so that the numbers of forward passes may differ."""
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
