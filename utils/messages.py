"""Lines for the person who waits: on stdout above a progress bar, notes and warnings on stderr."""

import contextlib
import os
import sys

from tqdm import tqdm

from utils import distributed


def note(text: str) -> None:
    """Say on stderr what must be known of a figure."""
    print(f"note: {text}", file=sys.stderr)


def warn(text: str) -> None:
    """One line on stderr, whatever it is made of."""
    with contextlib.suppress(OSError):  # on a full disk, too
        print(f"warning: {' '.join(text.split())[:500]}", file=sys.stderr, flush=True)


def speak(text: str) -> None:
    """Print above any progress bar; where stdout can be written no more (a file on a full disk), say so once.

    Raises:
        BrokenPipeError: if nobody reads any more.
    """
    try:
        tqdm.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        warn(f"nothing more is printed: stdout cannot be written ({error.strerror or error}); the training goes on")
        with contextlib.suppress(OSError, ValueError):  # what is left in its buffer goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """Print once, however many processes there are."""
    if distributed.rank() == 0:
        speak(text)
