"""Display of a text while it is generated: frames that overwrite one another in a terminal, else one line per change.

No terminal mode is changed (the cursor stays visible), so the terminal stays usable however the program ends.
"""

import os
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

INTERVAL = 0.1
"""Shortest time between frames, in seconds."""
MOST_SECONDS = 8.0
"""Longest sum of the pauses of one text, in seconds."""
PLAIN, DIM, BRIGHT = "", "\x1b[2m", "\x1b[1;32m"
RESET = "\x1b[0m"

Span = tuple[str, str]
"""A piece of text and its style, one of PLAIN, DIM, BRIGHT."""


class FramePauses:
    """Pauses between the frames of one text: constant at first, shrinking once half of the time is spent."""

    def __init__(self) -> None:
        """Start the clock."""
        self.left, self.last = MOST_SECONDS, time.monotonic()

    def wait(self) -> None:
        """Sleep until the next frame is due; the network's computing time counts."""
        pause = min(INTERVAL, self.left * 2 * INTERVAL / MOST_SECONDS)
        rest = pause - (time.monotonic() - self.last)
        self.left -= pause
        if rest > 0:
            time.sleep(rest)
        self.last = time.monotonic()


class Screen:
    """Frames on a stream; in a capable terminal each overwrites the one before."""

    def __init__(self, stream: TextIO) -> None:
        """Find out what the stream can do: TERM=dumb cannot move the cursor, NO_COLOR turns styles off."""
        self.stream = stream
        self.live = stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
        self.styled = self.live and not os.environ.get("NO_COLOR")
        self.previous, self.rows, self.columns = "", 0, 0
        self.pauses = FramePauses()

    @contextmanager
    def text(self) -> Iterator[None]:
        """Show one text for the duration of a block; its last frame stays, after an interruption too."""
        self.previous, self.rows, self.pauses = "", 0, FramePauses()
        try:
            yield
        finally:
            if self.rows:
                self.write("\n")

    def frame(self, label: str, spans: list[Span], *, last: bool = False) -> None:
        """Show a text, if it has changed.

        Args:
            label: text before the first line.
            spans: the text.
            last: whether this is the final frame, which is shown in full length.
        """
        spans = [(printable(part), style) for part, style in spans]
        text = "".join(part for part, _ in spans)
        if not self.live:
            if text != self.previous:
                self.write(f"{label}{text}\n")
            self.previous = text
            return
        if text == self.previous and not last:
            return
        if self.rows and text != self.previous:
            self.pauses.wait()
        self.previous = text
        self.draw(label, spans, last)

    def draw(self, label: str, spans: list[Span], last: bool) -> None:
        """Write a frame over the previous one."""
        columns, height = size_of(self.stream)
        lines = break_lines([(label, DIM), *spans], columns - 1, len(label))
        if len(lines) >= height and not last:  # lines scrolled off the top cannot be overwritten
            lines = [*lines[: max(1, height - 2)], [("…", DIM)]]
        if self.rows and columns != self.columns:  # after a resize the terminal has wrapped the old lines anew
            self.rows = 0
            self.write("\n")
        up = f"\r\x1b[{self.rows - 1}A" if self.rows > 1 else "\r"
        self.write(up * bool(self.rows) + "\n".join(self.line(line) + "\x1b[K" for line in lines) + "\x1b[J")
        self.rows, self.columns = len(lines), columns

    def line(self, spans: list[Span]) -> str:
        """Return a line with its styles as escape sequences."""
        return "".join(f"{style}{part}{RESET}" if style and self.styled else part for part, style in spans)

    def write(self, text: str) -> None:
        """Write and flush at once, so that no partial frame is visible."""
        self.stream.write(text)
        self.stream.flush()


def size_of(stream: TextIO) -> tuple[int, int]:
    """Return a terminal's columns and rows; 80 and 24 if unknown."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return 80, 24
    return size.columns or 80, size.lines or 24


def printable(text: str) -> str:
    """Replace control characters and line ends, which would move the cursor, by spaces."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)


def width(character: str) -> int:
    """Return a character's columns: 2 if East Asian wide, 0 for a combining mark, else 1."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def break_lines(spans: list[Span], columns: int, indent: int) -> list[list[Span]]:
    """Wrap a text to lines of at most `columns` columns, at spaces where possible.

    Args:
        spans: a text.
        columns: raised to 2 if less.
        indent: indentation of every line but the first; 0 if it exceeds half of the columns.
    """
    columns = max(columns, 2)
    lead = [(" ", PLAIN)] * (indent if indent <= columns // 2 else 0)
    lines, line, taken, space = [], [], 0, 0
    for cell in ((character, style) for part, style in spans for character in part):
        if taken + width(cell[0]) > columns:
            cut = space or len(line)
            lines.append(line[:cut])
            rest = line[cut:]
            line = [*lead, *rest[bool(space) :]]  # without the space at which the line breaks
            taken, space = sum(width(character) for character, _ in line), 0
            if cell[0] == " " and len(line) == len(lead):
                continue
        line.append(cell)
        taken += width(cell[0])
        if cell[0] == " " and len(line) > max(indent, len(lead)):
            space = len(line) - 1
    return [merged(line) for line in [*lines, line]]


def merged(cells: list[Span]) -> list[Span]:
    """Join neighbouring spans of equal style."""
    spans: list[Span] = []
    for text, style in cells:
        if spans and spans[-1][1] == style:
            spans[-1] = spans[-1][0] + text, style
        else:
            spans.append((text, style))
    return spans
