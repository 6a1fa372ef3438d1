"""Rows of .parquet files, with bounds: a few bytes of a compressed or repeated value may stand for gigabytes."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow
from pyarrow import compute
from pyarrow.parquet import ParquetFile

from data.records import MOST_TEXT, check_record, wanted_names
from utils.errors import UserError
from utils.files import open_regular
from utils.hub import first_line

AT_ONCE = 1000
"""Rows decoded together, at most,"""
MOST_AT_ONCE = 2**26
"""and about so many bytes of them."""
MOST_VALUE = 4 * MOST_TEXT
"""Bytes in a value; characters take at most four."""
MOST_PACKED = 200
"""How many bytes one in the file may stand for; text is packed about 5 to 1."""
MOST_UNPACKED = 1000
"""The same of all texts of a file, where a value may be repeated."""


def parquet_of(file: Path, columns: tuple[str, ...] = ()) -> ParquetFile:
    """An open .parquet file; of these columns a value that is repeated is kept once.

    Raises:
        UserError: if it is none.
    """
    try:
        open_regular(file).close()
        return ParquetFile(file, read_dictionary=list(columns))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a .parquet file, or damaged ({first_line(error)})") from error


def names_of(file: Path) -> list[str]:
    """The columns of a .parquet file."""
    return parquet_of(file).schema_arrow.names


def number_of_rows(file: Path) -> int:
    """How many rows a .parquet file has.

    Raises:
        UserError: if they are more than such a file can hold.
    """
    metadata = parquet_of(file).metadata
    rows, size = metadata.num_rows, file.stat().st_size
    if rows > max(10**6, MOST_PACKED * size):
        raise UserError(f"{file}: {rows:,} rows in {size:,} bytes; no text does that, look what it is")
    return rows


def rows_of(
    file: Path, columns: tuple[str, ...], start: int = 0, end: int = 2**63
) -> Iterator[tuple[int, dict[str, str]]]:
    """Some rows of a .parquet file, each with its number from 0; a row without text is an empty record.

    Raises:
        UserError: if a column is missing, a row is no text, or something unpacks to more than text does.
    """
    schema = parquet_of(file).schema_arrow
    names = wanted_names(columns, schema.names, str(file))
    for name in names:
        _require_text(file, name, schema.field(name).type)
    number_of_rows(file)
    left = max(MOST_AT_ONCE, MOST_UNPACKED * file.stat().st_size)
    for number, row in _rows(file, names, start, end):
        record = check_record(row, columns, f"{file}:{number + 1}")
        left -= sum(map(len, record.values()))
        if left < 0:
            raise UserError(f"{file}: its texts are {MOST_UNPACKED:,} times its size; look what it is")
        yield number, record


def _rows(file: Path, names: tuple[str, ...], start: int, end: int) -> Iterator[tuple[int, dict]]:
    table = parquet_of(file, names)
    begin = 0
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        number, begin = begin, begin + rows
        if number >= end or begin <= start:
            continue
        at_once = _rows_at_once(file, table.metadata, group, names)
        try:
            for batch in table.iter_batches(at_once, row_groups=[group], columns=list(names)):
                if number < end and number + len(batch) > start:
                    found = enumerate(_unpacked(file, number, batch, names), start=number)
                    yield from ((i, row) for i, row in found if start <= i < end)
                number += len(batch)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{file}: damaged ({first_line(error)})") from error


def _require_text(file: Path, name: str, kind: pyarrow.DataType) -> None:
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    is_text = pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_string_view(kind)
    if not is_text and not pyarrow.types.is_null(kind):
        raise UserError(f'{file}: its column "{name}" is {str(kind)[:80]}, not text; write it as strings')


def _rows_at_once(file: Path, metadata: "FileMetaData", group: int, names: tuple[str, ...]) -> int:
    """How many rows to decode together.

    Raises:
        UserError: if a column would not fit into memory.
    """
    row_group = metadata.row_group(group)
    largest = 1
    for column in (row_group.column(i) for i in range(row_group.num_columns)):
        if column.path_in_schema.split(".")[0] not in names:
            continue
        size, packed = column.total_uncompressed_size, max(1, column.total_compressed_size)
        each = size // max(1, row_group.num_rows)
        if each > MOST_VALUE or size > max(MOST_AT_ONCE, MOST_PACKED * packed):
            raise UserError(
                f"{file}: {packed:,} bytes in it unpack to {size:,} in {row_group.num_rows:,} rows; a text may have "
                f"{MOST_TEXT:,} characters: split the texts, or look what it is"
            )
        largest = max(largest, each)
    return max(1, min(AT_ONCE, MOST_AT_ONCE // largest))


def _unpacked(file: Path, number: int, batch: pyarrow.RecordBatch, names: tuple[str, ...]) -> Iterator[dict]:
    """The rows of a batch, few at a time if one is long: a value kept once would be copied for each."""
    longest = 1
    for column in batch.columns:
        values = column.dictionary if isinstance(column, pyarrow.DictionaryArray) else column
        longest = max(longest, (not pyarrow.types.is_null(values.type) and compute.max(_lengths(values)).as_py()) or 1)
    if longest > MOST_VALUE:
        raise UserError(
            f"{file}: a value of {longest:,} bytes in one of the rows {number + 1} to {number + len(batch)}; a text "
            f"may have {MOST_TEXT:,} characters: split it"
        )
    step = max(1, MOST_AT_ONCE // longest)
    for start in range(0, len(batch), step):
        part = batch.slice(start, step)
        try:
            columns = [part.column(name).to_pylist() for name in names]
        except UnicodeDecodeError:
            columns = [[_decoded(file, number + start + i, value) for i, value in enumerate(part[n])] for n in names]
        for values in zip(*columns, strict=True):
            yield dict(zip(names, values, strict=True))


def _lengths(values: pyarrow.Array) -> pyarrow.Array:
    return compute.binary_length(values.cast(pyarrow.large_binary()) if len(values) else values)


def _decoded(file: Path, number: int, value: pyarrow.Scalar) -> str | None:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}:{number + 1}: not UTF-8; write the column as UTF-8 strings") from error


if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData
