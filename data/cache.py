"""Folders of the cache: verified by checksum, rebuilt if damaged, and cleared of the remains of killed processes."""

import contextlib
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

from utils.files import clear_abandoned, folder_written_whole, manifest_error


def is_whole(folder: Path) -> bool:
    """Tell whether a folder exists and matches its checksums; if it is damaged, print a note that it is rebuilt.

    All bytes are hashed, at about 1.8 GB per second; hashing the text itself takes longer.
    """
    if not folder.is_dir():
        return False
    wrong = manifest_error(folder)
    if wrong:
        print(f"note: {folder}: {wrong}; it is rebuilt", file=sys.stderr)
    return not wrong


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[Path]:
    """Fill a temporary folder in the block; it gets its checksums and its name when the block ends."""
    _tidy(folder.parent)
    with folder_written_whole(folder, manifest=True) as temporary:
        yield temporary


@functools.cache
def _tidy(cache: Path) -> None:
    """Clear remains once per process, since listing a large cache takes time."""
    clear_abandoned(cache)
