"""Messages to the user: lines on stdout above a progress bar, notes and warnings on stderr."""

import contextlib
import os
import sys

from tqdm import tqdm

from utils import job


def note(text: str) -> None:
    """Print a note on stderr, for example how to read a figure."""
    print(f"note: {text}", file=sys.stderr)


def warn(text: str) -> None:
    """Print a warning on stderr as one line of at most 500 characters."""
    with contextlib.suppress(OSError):  # stderr may be a file on a full disk
        print(f"warning: {' '.join(text.split())[:500]}", file=sys.stderr, flush=True)


def speak(text: str) -> None:
    """Print above any progress bar; if stdout cannot be written (a file on a full disk), warn once and go on.

    Raises:
        BrokenPipeError: if the reader has closed the pipe.
    """
    try:
        tqdm.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        warn(f"stdout cannot be written ({error.strerror or error}); training goes on without output")
        with contextlib.suppress(OSError, ValueError):  # discard the rest of its buffer
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """Print on the first process only."""
    if job.rank() == 0:
        speak(text)
