"""Processes that train together: who they are, what they add up, in which order they start, how one's end is told."""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import UserError

Found = TypeVar("Found")
STEP_PATIENCE = datetime.timedelta(minutes=30)
"""How long one process waits for another within a step or an evaluation before the job is given up."""
START_PATIENCE = datetime.timedelta(hours=12)
"""How long the others wait while the first tokenises a corpus of any size."""


def rank() -> int:
    """This process's number under torchrun, else 0."""
    return _number("RANK", 0) if world_size() > 1 else 0


def world_size() -> int:
    """How many processes train together: torchrun's WORLD_SIZE, else 1."""
    return _number("WORLD_SIZE", 1)


def restarts() -> int:
    """How often this node's torchrun has started its processes again; other nodes' may count otherwise."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def started_again() -> bool:
    """Whether torchrun or Slurm has started this job before."""
    return restarts() > 0 or _number("SLURM_RESTART_COUNT", 0) > 0


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name) or str(otherwise)
    if not text.isdecimal() or (name == "WORLD_SIZE" and int(text) < 1):
        raise UserError(f"{name}={text} in the environment is no number that torchrun or Slurm would give; unset it")
    return int(text)


def job() -> str:
    """A name that torchrun or Slurm gives to this start and to every start again of it; "" without them."""
    name = os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID") or ""
    return "" if name == "none" else name


def require_single(script: str) -> None:
    """Refuses to be one of many where a script knows only one process.

    Raises:
        UserError: with the remedy.
    """
    if world_size() > 1:
        raise UserError(f"WORLD_SIZE={world_size()}: {script} runs as one process; start it with python, not torchrun")


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins torchrun's processes for the duration of a block; does nothing for a single process.

    Raises:
        UserError: if another process of the job ends within it, as far as this one can tell.
    """
    if world_size() == 1:
        yield
        return
    lacking = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if lacking:
        raise UserError(f"WORLD_SIZE={world_size()} but no {', '.join(lacking)}; start with torchrun, or unset it")
    store = next(dist.rendezvous("env://"))[0]
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world_size()):
        # torchrun's own store outlives a restart, and with it the addresses of processes that are gone: each try has
        # its names. (Nodes may count tries differently: there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, runs/slurm.sh)
        store = dist.PrefixStore(f"try-{restarts()}", store)
    settings = {"store": store, "rank": rank(), "world_size": world_size(), "timeout": STEP_PATIENCE}
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device, **settings)
    else:
        dist.init_process_group("gloo", **settings)
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        if isinstance(error, dist.DistError) or _is_of_a_lost_peer(error):
            reason = str(error).splitlines()[0][:200]
            raise UserError(
                f"process {rank()} of {world_size()} lost another one ({reason}); what that one said stands above or "
                "in its own log. Start again to go on from the last saved state"
            ) from error
        raise
    finally:
        with contextlib.suppress(Exception):  # with a peer gone there is nothing left to take leave of
            dist.destroy_process_group()


def _is_of_a_lost_peer(error: BaseException) -> bool:
    # gloo has no exception type of its own
    return any(word in str(error) for word in ("gloo", "Connection closed by peer", "Connection reset by peer"))


def sum_over_ranks(*tensors: Tensor) -> None:
    """Adds each tensor over all processes, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def from_leader(thing: object) -> object:
    """The first process's value of something small."""
    if world_size() == 1:
        return thing
    box = [thing]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def leader_finds(call: Callable[[], Found]) -> Found:
    """What the first process finds, on all of them; it alone looks, and what stops it stops all with the same words.

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
    """Every process's value of something small, in order."""
    if world_size() == 1:
        return [thing]
    things: list = [None] * world_size()
    dist.all_gather_object(things, thing)
    return things


@contextlib.contextmanager
def leader_first() -> Iterator[None]:
    """The first process runs the block alone, then the others: what it leaves on disk they find ready."""
    if world_size() == 1:
        yield
        return
    patient = dist.new_group(backend="gloo", timeout=START_PATIENCE)
    if rank() > 0:
        dist.barrier(group=patient)
    try:
        yield
    finally:  # whatever stopped the first will stop the others, with the same words
        if rank() == 0:
            dist.barrier(group=patient)
