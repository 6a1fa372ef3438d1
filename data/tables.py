"""Rows of tables: .parquet, .csv and .tsv with a header, and .json of objects."""

from collections.abc import Iterator
from pathlib import Path

from data.column_names import Columns
from data.json_objects import json_objects
from data.parquet import column_names, parquet_rows
from data.records import check_record, wanted_names
from data.separated import separated_rows
from data.sources import TABLES, form


def is_table(file: Path) -> bool:
    """Return whether a file is read by rows, not by lines."""
    return form(file) in (*TABLES, ".parquet")


def table_columns(file: Path) -> list[str]:
    """Return the names of a table's columns; of a .json file, the keys of its first object."""
    if form(file) == ".parquet":
        return column_names(file)
    rows = json_objects(file) if form(file) == ".json" else separated_rows(file)
    _, first = next(iter(rows), (0, {}))
    return list(first)


def table_rows(file: Path, columns: Columns, start: int = 0, end: int = 2**63) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a table whose numbers lie in start..end-1; a row without text is an empty record.

    A number is that of the row or object, from 0, and of .csv and .tsv that of the line at which the row begins.

    Raises:
        UserError: with file and number from 1, if a column is missing, a value is not text, or the file is damaged.
    """
    if form(file) == ".parquet":
        yield from parquet_rows(file, columns, start, end)
        return
    is_json = form(file) == ".json"
    for number, row in json_objects(file) if is_json else separated_rows(file):
        if start <= number < end:
            location = f"{file}: object {number + 1}" if is_json else f"{file}:{number + 1}"
            if not is_json:
                wanted_names(columns, row, str(file))
            yield number, check_record(row, columns, location)
