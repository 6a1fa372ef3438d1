"""JSONL log of a run: written line by line, read back, and cut at the step of a saved state.

Lines that could not be written are kept and written with the next one. Lines lost at the end are reported; saved states
and checkpoints are not affected.
"""

import contextlib
import json
from pathlib import Path

from utils.errors import UserError
from utils.files import written_whole
from utils.messages import warn

MAX_PENDING = 2**24
"""Largest number of unwritten bytes kept in memory; later lines are lost."""


class Log:
    """Log file that keeps lines in memory while they cannot be written."""

    def __init__(self, path: Path) -> None:
        """Open the file for appending."""
        self.path, self.pending, self.lost, self.warned = path, b"", 0, False
        self.file = open(path, "ab", buffering=0)
        self.holds_lines = self.file.tell() > 0

    def write(self, line: str) -> None:
        """Write the pending lines, then this one."""
        content = line.encode(errors="replace")
        if len(self.pending) + len(content) > MAX_PENDING:
            self.lost += 1
        else:
            self.pending += content
        self._flush()

    def close(self) -> None:
        """Write the pending lines once more; warn if lines are lost."""
        self._flush()
        lost = self.lost + self.pending.count(b"\n")
        if lost:
            warn(f"{self.path}: {lost} lines of the log are lost; the checkpoints are complete")
        with contextlib.suppress(OSError):
            self.file.close()

    def _flush(self) -> None:
        try:
            while self.pending:
                self.pending = self.pending[self.file.write(self.pending) or 0 :]
        except OSError as error:
            if not self.warned:
                warn(
                    f"{self.path}: the log cannot be written ({error.strerror or error}); free disk space; "
                    "training continues, and these lines are written later"
                )
            self.warned = True


def read_log(log: Path) -> list[dict]:
    """Return the records of a log.

    Raises:
        UserError: if a line is damaged.
    """
    records = []
    for number, line in enumerate(log.read_text(encoding="utf-8").splitlines(), 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{log}:{number}: no JSON; resume the run to repair its log") from error
    return records


def cut_log(log: Path, step: int) -> None:
    """Remove the records of later steps from a log, and an incomplete last line."""
    kept = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else ():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict) or type(record.get("step", 0)) is not int:
            break
        if record.get("step", 0) > step or record.get("steps") is not None:
            break
        kept.append(line)
    with written_whole(log) as file:
        file.writelines(line + "\n" for line in kept)
