"""Helper processes: how many, without threads of their own, and gone when their parent is."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """For a helper process: when the one that made it is killed, it goes too (Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
    if prctl:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def one_core() -> None:
    """For a process that is one of several: a tokenizer's threads do not survive a fork, and it would wait for them."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
