"""Rows of .csv and .tsv files with a header.

In a .csv file a cell may be quoted, as in RFC 4180, and then hold commas, quotes ("") and line breaks. Its cells are
separated by commas, semicolons or tabs, whichever the header has most of, or as its first line says (`sep=;`). In a
.tsv file a row is a line; a cell that begins and ends with a quotation mark is unquoted, others are text.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from data.records import MOST_TEXT, decoded_whole, read_lines
from data.sources import form, say_once
from utils.errors import UserError, shown

MOST_LINES = 20
"""Lines after an opening quotation mark within which a closing one is noticed."""


def separated_rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row after the header, by column, with the number of its first line from 0; blank lines are left out.

    Raises:
        UserError: with file and line, if it has not the header's number of cells, or is not UTF-8 or no CSV.
    """
    header: list[str] = []
    for number, cells in _tab_separated(file) if form(file) == ".tsv" else _comma_separated(file):
        if not header:
            header = _checked_header(file, number, cells)
        elif len(cells) != len(header):
            raise UserError(
                f"{file}:{number + 1}: the row has {len(cells)} cells, the header {len(header)}; correct it, or quote "
                "cells that hold a separator or a line break"
            )
        else:
            yield number, dict(zip(header, cells, strict=True))
    if not header:
        raise UserError(f"{file}: empty; the first line must be a header with the names of the columns")


def _checked_header(file: Path, number: int, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = next((name for name in names if name and names.count(name) > 1), None)  # spreadsheets leave some blank
    if twice is not None:
        raise UserError(f"{file}:{number + 1}: the header names {shown(twice)} twice; the first line must name columns")
    return names


def _lines(file: Path) -> Iterator[str]:
    return (decoded_whole(line, file, number) for number, (line, _) in enumerate(read_lines(file), start=1))


def _tab_separated(file: Path) -> Iterator[tuple[int, list[str]]]:
    quotation = _Quotation(file)
    for number, line in enumerate(_lines(file), start=1):
        if line.strip():
            cells = line.rstrip("\r\n").split("\t")
            quotation.follow(number, cells)
            yield number - 1, [_unquoted(cell) for cell in cells]


class _Quotation:
    """Quotation mark that a cell of a .tsv file opens and a later line closes; the first such place is told."""

    def __init__(self, file: Path) -> None:
        self.file, self.line, self.told = file, 0, False

    def follow(self, number: int, cells: list[str]) -> None:
        """Look at the cells of the line with this number."""
        if self.told:
            return
        if self.line and number <= self.line + MOST_LINES and any(_closes(cell) for cell in cells):
            say_once(
                f"note: {self.file}:{self.line}: a quotation mark opens a cell, and line {number} closes it; if that "
                "is one cell with line breaks, write a .csv, since every line of a .tsv is a row"
            )
            self.told = True
        if cells[-1].startswith('"') and cells[-1].count('"') % 2:
            self.line = number


def _closes(cell: str) -> bool:
    """Return whether a cell ends with a quotation mark that it does not open."""
    return cell == '"' or (cell.endswith('"') and not cell.startswith('"') and cell.count('"') % 2 == 1)


def _unquoted(cell: str) -> str:
    inside = cell[1:-1]
    is_quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inside.replace('""', "")
    return inside.replace('""', '"') if is_quoted else cell


def _separator(file: Path) -> tuple[str, bool]:
    """Return the character between cells, and whether the first line, which then is no row, declares it."""
    first = next((line.strip("\r\n") for line in _lines(file) if line.strip()), "")
    if declared := re.fullmatch("sep=(.)", first, re.IGNORECASE):
        return declared[1], True
    return max(",;\t", key=re.sub('"[^"]*"', "", first).count), False


def _comma_separated(file: Path) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(4 * MOST_TEXT)
    separator, skip = _separator(file)
    rows = csv.reader(_lines(file), delimiter=separator, strict=True)
    while True:
        number = rows.line_num
        try:
            cells = next(rows, None)
        except csv.Error as error:
            reason = f"is no CSV ({error}); quotation marks in a quoted cell must be doubled"
            if "field limit" in str(error):
                reason = f"has a cell of more than {4 * MOST_TEXT:,} characters; close its quotation mark, or split it"
            raise UserError(f"{file}:{number + 1}: the row that begins here {reason}") from error
        if cells is None:
            return
        if cells and not skip:
            yield number, cells
        skip = skip and not any(cell.strip() for cell in cells)
