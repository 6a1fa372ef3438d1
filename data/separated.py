"""Rows of .csv and .tsv files with a header.

In a .csv file a cell may be quoted, as in RFC 4180, and then hold commas, quotes ("") and line breaks. If the header
has more semicolons than commas, semicolons separate the cells. In a .tsv file a row is a line; a cell that begins and
ends with a quotation mark is unquoted, other quotation marks are text.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from data.records import MOST_TEXT, decoded_whole, read_lines
from data.sources import form
from utils.errors import UserError, shown


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
    for number, line in enumerate(_lines(file)):
        if line.strip():
            yield number, [_unquoted(cell) for cell in line.rstrip("\r\n").split("\t")]


def _unquoted(cell: str) -> str:
    inside = cell[1:-1]
    is_quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inside.replace('""', "")
    return inside.replace('""', '"') if is_quoted else cell


def _comma_separated(file: Path) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(4 * MOST_TEXT)
    first = next(_lines(file), "")
    separator = ";" if first.count(";") > first.count(",") else ","
    rows = csv.reader(_lines(file), delimiter=separator, strict=True)
    while True:
        number = rows.line_num
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise UserError(
                f"{file}:{number + 1}: the row that begins here is no CSV ({error}); quotation marks in a quoted cell "
                "must be doubled"
            ) from error
        if cells is None:
            return
        if cells:
            yield number, cells
