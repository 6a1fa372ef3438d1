"""Whole tensors of a network that may lie in shards over several processes."""

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from utils.distributed import rank


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
