"""Objects of .json files: an array of objects, or objects one after the other.

A file is read in parts, so that an array of any size takes the memory of its largest object.
"""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path

from data.records import MOST_LINE, opened
from utils.errors import UserError

PART = 2**20
"""Bytes read at once."""
LONGEST_ATOM = 32
"""An error at least so many characters before the end of the buffer is in the file; nearer the end, a number, a word
such as `false` or an escape may only be cut off."""


def json_objects(file: Path) -> Iterator[tuple[int, dict]]:
    """Yield each object with its number from 0.

    Raises:
        UserError: with the number from 1, if the file is not UTF-8, not JSON, or holds something else than objects.
    """
    with opened(file) as (stream, _):
        text = _Text(file, stream)
        in_array, number = text.take("["), 0
        while True:
            if text.next_character() == ("]" if in_array else ""):
                break
            found = text.value(number)
            if not isinstance(found, dict):
                raise UserError(f"{file}: value {number + 1} is a {type(found).__name__}; every one must be an object")
            yield number, found
            number += 1
            has_comma = text.take(",") if in_array else False
            if in_array and has_comma == (text.next_character() == "]"):
                raise UserError(f"{file}: no comma, or one too many, after object {number}; correct the array")
        if in_array and (not text.take("]") or text.next_character()):
            raise UserError(f"{file}: text after the end of the array; write one array")


class _Text:
    """Text of a file from the present position on, in a buffer that grows as needed."""

    def __init__(self, file: Path, stream) -> None:  # noqa: ANN001 (a binary stream)
        self.file, self.stream, self.buffer, self.at, self.ended = file, stream, "", 0, False
        self.lines = 0  # line ends before the buffer
        self.decoder, self.json = codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder()

    def read(self) -> None:
        """Read as much again as the buffer holds, so that a long object is parsed a few times only."""
        part = self.stream.read(max(PART, len(self.buffer) - self.at))
        try:
            more = self.decoder.decode(part, final=not part)
        except UnicodeDecodeError as error:
            raise UserError(f"{self.file}: not UTF-8 ({error.reason}); convert it, e.g. with iconv") from error
        self.lines += self.buffer.count("\n", 0, self.at)
        self.buffer, self.at, self.ended = self.buffer[self.at :] + more, 0, not part

    def next_character(self) -> str:
        """Return the next character that is not white space, or "" at the end."""
        while True:
            while self.at < len(self.buffer) and self.buffer[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.buffer) or self.ended:
                return self.buffer[self.at : self.at + 1]
            self.read()

    def take(self, character: str) -> bool:
        """Skip the next character if it is this one; return whether it was."""
        found = self.next_character() == character
        self.at += found
        return found

    def value(self, number: int) -> object:
        """Parse the next value."""
        while True:
            try:
                found, self.at = self.json.raw_decode(self.buffer, self.at)
                return found
            except json.JSONDecodeError as error:
                # more text helps, unless the error lies well before the end of the buffer
                is_cut = error.msg.startswith("Unterminated") or len(self.buffer) - error.pos < LONGEST_ATOM
                if self.ended or not is_cut:
                    line = self.lines + self.buffer.count("\n", 0, error.pos) + 1
                    raise UserError(
                        f"{self.file}:{line}: object {number + 1} is not JSON ({error.msg}); correct it"
                    ) from error
            except (ValueError, RecursionError) as error:
                raise UserError(f"{self.file}: object {number + 1} is not JSON ({error}); correct it") from error
            if len(self.buffer) - self.at > MOST_LINE:
                raise UserError(f"{self.file}: object {number + 1} has more than {MOST_LINE:,} characters; split it")
            self.read()
