"""Helper processes: their number, no tokenizer threads, and an end with their parent."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Let the system kill this helper process when its parent dies (Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
    if prctl:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def disable_tokenizer_threads() -> None:
    """Turn off a tokenizer's threads in a helper process: they do not survive a fork, and it would wait for them."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
