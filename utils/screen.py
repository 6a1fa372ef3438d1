"""A text that emerges, to be watched: in a terminal frame over frame, at a pace for the eye; elsewhere a line a change.

Nothing is hidden or switched over for the duration (the cursor stays as it is), so whatever ends the program leaves the
terminal in order.
"""

import os
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

INTERVAL = 0.1
"""Seconds from one frame to the next, at least."""
MOST_SECONDS = 8.0
"""What the pauses of one text add up to at most."""
PLAIN, DIM, BRIGHT = "", "\x1b[2m", "\x1b[1;32m"
RESET = "\x1b[0m"

Run = tuple[str, str]
"""A piece of text and its style, one of PLAIN, DIM, BRIGHT."""


class Pace:
    """Pauses between the frames of one text: even at first, and ever shorter once half of the time is spent."""

    def __init__(self) -> None:
        """Begin now."""
        self.left, self.last = MOST_SECONDS, time.monotonic()

    def wait(self) -> None:
        """Sleep until the next frame is due; the time that the network took counts."""
        pause = min(INTERVAL, self.left * 2 * INTERVAL / MOST_SECONDS)
        rest = pause - (time.monotonic() - self.last)
        self.left -= pause
        if rest > 0:
            time.sleep(rest)
        self.last = time.monotonic()


class Screen:
    """Frames on a stream, one over the other where it is a terminal that can."""

    def __init__(self, stream: TextIO) -> None:
        """Look what the stream can do: TERM=dumb cannot go back, and NO_COLOR asks for no styles."""
        self.stream = stream
        self.live = stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
        self.styled = self.live and not os.environ.get("NO_COLOR")
        self.previous, self.rows, self.columns = "", 0, 0
        self.pace = Pace()

    @contextmanager
    def text(self) -> Iterator[None]:
        """Begin a text, whose last frame stays; interrupted, what is shown stays, too."""
        self.previous, self.rows, self.pace = "", 0, Pace()
        try:
            yield
        finally:
            if self.rows:
                self.write("\n")

    def frame(self, label: str, runs: list[Run], *, last: bool = False) -> None:
        """Show a text, if it is not what is shown already.

        Args:
            label: stands before it.
            runs: the text.
            last: whether it is the one that stays, which is shown whole however long it is.
        """
        runs = [(printable(part), style) for part, style in runs]
        text = "".join(part for part, _ in runs)
        if not self.live:
            if text != self.previous:
                self.write(f"{label}{text}\n")
            self.previous = text
            return
        if text == self.previous and not last:
            return
        if self.rows and text != self.previous:
            self.pace.wait()
        self.previous = text
        self.draw(label, runs, last)

    def draw(self, label: str, runs: list[Run], last: bool) -> None:
        """Write a frame over the one before it."""
        columns, height = size_of(self.stream)
        lines = break_lines([(label, DIM), *runs], columns - 1, len(label))
        if len(lines) >= height and not last:  # what has left the screen at the top cannot be written over
            lines = [*lines[: max(1, height - 2)], [("…", DIM)]]
        if self.rows and columns != self.columns:  # a terminal of another width has broken the lines anew
            self.rows = 0
            self.write("\n")
        up = f"\r\x1b[{self.rows - 1}A" if self.rows > 1 else "\r"
        self.write(up * bool(self.rows) + "\n".join(self.line(line) + "\x1b[K" for line in lines) + "\x1b[J")
        self.rows, self.columns = len(lines), columns

    def line(self, runs: list[Run]) -> str:
        """A line with its styles."""
        return "".join(f"{style}{part}{RESET}" if style and self.styled else part for part, style in runs)

    def write(self, words: str) -> None:
        """Write and flush at once, so that no frame is seen by halves."""
        self.stream.write(words)
        self.stream.flush()


def size_of(stream: TextIO) -> tuple[int, int]:
    """Columns and rows of a terminal; 80 and 24 if it does not say."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return 80, 24
    return size.columns or 80, size.lines or 24


def printable(text: str) -> str:
    """A text without what would move the cursor: control characters and ends of lines are spaces."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)


def width(character: str) -> int:
    """Columns that a character takes: two of East Asian width, none of a mark on the letter before it."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def break_lines(runs: list[Run], columns: int, indent: int) -> list[list[Run]]:
    """Lines of so many columns at most, broken at spaces where there are some.

    Args:
        runs: a text.
        columns: at least two.
        indent: columns left free at the beginning of every line but the first, if half of them are left.
    """
    columns = max(columns, 2)
    lead = [(" ", PLAIN)] * (indent if indent <= columns // 2 else 0)
    lines, line, taken, space = [], [], 0, 0
    for cell in ((character, style) for part, style in runs for character in part):
        if taken + width(cell[0]) > columns:
            cut = space or len(line)
            lines.append(line[:cut])
            rest = line[cut:]
            line = [*lead, *rest[bool(space) :]]  # the space itself is the end of the line
            taken, space = sum(width(character) for character, _ in line), 0
            if cell[0] == " " and len(line) == len(lead):
                continue
        line.append(cell)
        taken += width(cell[0])
        if cell[0] == " " and len(line) > max(indent, len(lead)):
            space = len(line) - 1
    return [merged(line) for line in [*lines, line]]


def merged(cells: list[Run]) -> list[Run]:
    """Neighbours of one style put together."""
    runs: list[Run] = []
    for text, style in cells:
        if runs and runs[-1][1] == style:
            runs[-1] = runs[-1][0] + text, style
        else:
            runs.append((text, style))
    return runs
