"""Full tensors of a network whose parameters may be sharded over processes."""

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from utils.job import rank


def full(tensor: Tensor) -> Tensor:
    """Return a full tensor from its shards; all processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def held_by_leader(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return full tensors on the first process's CPU, and on device "meta" of the others. All processes must call."""
    device = "cpu" if rank() == 0 else "meta"
    return {name: full(tensor).detach().to(device).contiguous() for name, tensor in tensors.items()}


def state_to_save(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's state on the first process, each tied tensor once. All processes must call this."""
    once = {name for name, _ in module.named_parameters()}
    twice = {name for name, _ in module.named_parameters(remove_duplicate=False)} - once
    return held_by_leader({name: tensor for name, tensor in module.state_dict().items() if name not in twice})


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a full tensor as `like` is sharded; all processes must call this with equal tensors."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
