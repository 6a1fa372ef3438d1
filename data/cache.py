"""Folders of the cache: whole, or made again; what killed processes left there is removed."""

import contextlib
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

from utils.files import clear_abandoned, folder_written_whole, whats_wrong


def is_whole(folder: Path) -> bool:
    """Whether a folder is there just as it was written; if it is there and is not, a note says why it is made again.

    Every byte is compared with its checksum, at about 1.8 GB a second: less work than the hash of the text itself.
    """
    if not folder.is_dir():
        return False
    wrong = whats_wrong(folder)
    if wrong:
        print(f"note: {folder}: {wrong}; it is made again", file=sys.stderr)
    return not wrong


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[Path]:
    """A folder of the cache, to be written in the block; it gets its name, and its checksums, when the block ends."""
    _tidy(folder.parent)
    with folder_written_whole(folder, manifest=True) as temporary:
        yield temporary


@functools.cache
def _tidy(cache: Path) -> None:
    """Once a process: the look at every name in a large cache takes time."""
    clear_abandoned(cache)
