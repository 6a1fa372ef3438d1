"""This process in its job: rank, world size and restarts, from the environment that torchrun or Slurm sets."""

import os

from utils.errors import UserError


def rank() -> int:
    """Return this process's rank under torchrun, else 0."""
    return _number("RANK", 0) if world_size() > 1 else 0


def world_size() -> int:
    """Return the number of processes: torchrun's WORLD_SIZE, else 1."""
    return _number("WORLD_SIZE", 1)


def restarts() -> int:
    """Return how often torchrun has restarted the processes of this node; other nodes may count differently."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def started_again() -> bool:
    """Tell whether torchrun or Slurm has restarted this job."""
    return restarts() > 0 or _number("SLURM_RESTART_COUNT", 0) > 0


def _number(variable: str, otherwise: int) -> int:
    text = os.environ.get(variable) or str(otherwise)
    if not text.isdecimal() or (variable == "WORLD_SIZE" and int(text) < 1):
        raise UserError(f"{variable}={text} in the environment must be a whole number from torchrun or Slurm; unset it")
    return int(text)


def name() -> str:
    """Return the job's name from torchrun or Slurm, equal after every restart; "" without them."""
    found = os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID") or ""
    return "" if found == "none" else found


def require_single(script: str) -> None:
    """Refuse to run a script of one process under torchrun.

    Raises:
        UserError: with the remedy.
    """
    if world_size() > 1:
        raise UserError(f"WORLD_SIZE={world_size()}: {script} runs as one process; start it with python, not torchrun")
