"""Processes of one job: collective operations, order of start, and loss of a peer."""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import UserError
from utils.job import rank, restarts, world_size

Found = TypeVar("Found")
STEP_TIMEOUT = datetime.timedelta(minutes=30)
"""Longest wait for another process within a step or an evaluation."""
START_TIMEOUT = datetime.timedelta(hours=12)
"""Longest wait for the first process, which may tokenise a large corpus."""


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join torchrun's processes for the duration of a block; do nothing for a single process.

    Raises:
        UserError: if another process of the job is lost within the block.
    """
    if world_size() == 1:
        yield
        return
    _join(device)
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        if isinstance(error, dist.DistError) or _is_lost_peer(error):
            reason = str(error).splitlines()[0][:200]
            raise UserError(
                f"process {rank()} of {world_size()} lost another process ({reason}); its own error is above or "
                "in its log. Restart to resume from the last saved state"
            ) from error
        raise
    finally:
        with contextlib.suppress(Exception):  # fails if a peer is lost
            dist.destroy_process_group()


def _join(device: torch.device) -> None:
    """Initialise the process group: gloo, and NCCL for tensors on a GPU."""
    lacking = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if lacking:
        raise UserError(f"WORLD_SIZE={world_size()} without {', '.join(lacking)}; start with torchrun, or unset it")
    store = next(dist.rendezvous("env://"))[0]
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world_size()):
        # torchrun's store outlives a restart and keeps the addresses of dead processes, so each attempt has a prefix.
        # (Nodes may count attempts differently; there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, see runs/slurm.sh.)
        store = dist.PrefixStore(f"try-{restarts()}", store)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=store,
        rank=rank(),
        world_size=world_size(),
        timeout=STEP_TIMEOUT,
        device_id=device if on_gpu else None,
    )


def _is_lost_peer(error: BaseException) -> bool:
    # gloo has no exception type of its own
    return any(word in str(error) for word in ("gloo", "Connection closed by peer", "Connection reset by peer"))


def sum_over_ranks(*tensors: Tensor) -> None:
    """Add each tensor over all processes, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def from_leader(thing: object) -> object:
    """Return the first process's value of a small object."""
    if world_size() == 1:
        return thing
    box = [thing]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def call_on_leader(call: Callable[[], Found]) -> Found:
    """Call a function on the first process alone; return its result, or raise its UserError, on all processes.

    Raises:
        UserError: if `call` does.
    """
    found = refusal = None
    if rank() == 0:
        try:
            found = call()
        except UserError as error:
            refusal = str(error)
    found, refusal = from_leader((found, refusal))
    if refusal is not None:
        raise UserError(refusal)
    return found


def from_everyone(thing: object) -> list:
    """Return a small object's value on every process, by rank."""
    if world_size() == 1:
        return [thing]
    things: list = [None] * world_size()
    dist.all_gather_object(things, thing)
    return things


@contextlib.contextmanager
def leader_first() -> Iterator[None]:
    """Run a block on the first process, then on the others, which find its files on disk."""
    if world_size() == 1:
        yield
        return
    group = dist.new_group(backend="gloo", timeout=START_TIMEOUT)
    if rank() > 0:
        dist.barrier(group=group)
    try:
        yield
    finally:  # an error of the first process recurs on the others, with the same message
        if rank() == 0:
            dist.barrier(group=group)
