"""One network on many processes: whole on each (DDP), or in shards (FSDP2); nothing else knows which.

What is wrapped is a module that takes a batch to its loss, for both hang their communication on a forward and its
backward. Both average gradients over processes, so the loss is scaled by their number: the gradient is the sum.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from distributed import rank, world_size


def wrap(module: nn.Module, layers: list[nn.Module], strategy: str, device: torch.device) -> nn.Module:
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


def full(tensor: Tensor) -> Tensor:
    """All of a tensor that may lie in shards; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def held_by_leader(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """All of every tensor, on the first process's CPU; elsewhere on "meta", where it takes no memory. Everyone asks."""
    place = "cpu" if rank() == 0 else "meta"
    return {name: full(tensor).detach().to(place).contiguous() for name, tensor in tensors.items()}


def state_to_save(module: nn.Module) -> dict[str, Tensor]:
    """A module's state with every tied tensor once, held by the first process. Everyone asks."""
    once = {name for name, _ in module.named_parameters()}
    twice = {name for name, _ in module.named_parameters(remove_duplicate=False)} - once
    return held_by_leader({name: tensor for name, tensor in module.state_dict().items() if name not in twice})


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A full tensor laid out as another one is; every process must ask, each with the same tensor."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
