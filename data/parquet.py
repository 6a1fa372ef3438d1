"""Rows of .parquet files, with bounds, since a few bytes of a compressed or repeated value may expand to gigabytes."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow
from pyarrow import compute
from pyarrow.parquet import ParquetFile

from data.column_names import Columns
from data.records import MOST_TEXT, check_record, wanted_names
from utils.errors import UserError
from utils.files import open_regular
from utils.hub import first_line

AT_ONCE = 1000
"""Largest number of rows decoded together."""
MOST_AT_ONCE = 2**26
"""Bytes of the rows decoded together, approximately."""
MOST_VALUE = 4 * MOST_TEXT
"""Bytes of a value; a character takes at most 4."""
MOST_PACKED = 200
"""Largest compression ratio of a column; that of text is about 5."""
MOST_UNPACKED = 1000
"""Largest ratio of all texts of a file to its size; a value may be repeated."""


def open_parquet(file: Path, columns: tuple[str, ...] = ()) -> ParquetFile:
    """Open a .parquet file, with the given columns dictionary-encoded: a repeated value is in memory once.

    Raises:
        UserError: if it is not a .parquet file.
    """
    try:
        open_regular(file).close()
        return ParquetFile(file, read_dictionary=list(columns))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a .parquet file, or damaged ({first_line(error)})") from error


def column_names(file: Path) -> list[str]:
    """Return the column names of a .parquet file."""
    return open_parquet(file).schema_arrow.names


def number_of_rows(file: Path) -> int:
    """Return the number of rows of a .parquet file.

    Raises:
        UserError: if there are more rows than a file of this size can hold.
    """
    metadata = open_parquet(file).metadata
    rows, size = metadata.num_rows, file.stat().st_size
    if rows > max(10**6, MOST_PACKED * size):
        raise UserError(f"{file}: {rows:,} rows in {size:,} bytes, too many for text; check the file")
    return rows


def parquet_rows(
    file: Path, columns: Columns, start: int = 0, end: int = 2**63
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield rows start..end-1 of a .parquet file with their numbers from 0; a row without text is an empty record.

    Raises:
        UserError: if a column is missing, a value is not text, or the data expand to more than text does.
    """
    schema = open_parquet(file).schema_arrow
    names = wanted_names(columns, schema.names, str(file))
    for name in names:
        _require_text(file, name, schema.field(name).type)
    number_of_rows(file)
    left = max(MOST_AT_ONCE, MOST_UNPACKED * file.stat().st_size)
    for number, row in _rows(file, names, start, end):
        record = check_record(row, columns, f"{file}:{number + 1}")
        left -= sum(map(len, record.values()))
        if left < 0:
            raise UserError(f"{file}: its texts are {MOST_UNPACKED:,} times its size; check the file")
        yield number, record


def _rows(file: Path, names: tuple[str, ...], start: int, end: int) -> Iterator[tuple[int, dict]]:
    table = open_parquet(file, names)
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
        raise UserError(f'{file}: the column "{name}" is {str(kind)[:80]}, not text; write it as strings')


def _rows_at_once(file: Path, metadata: "FileMetaData", group: int, names: tuple[str, ...]) -> int:
    """Return the number of rows to decode together.

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
                f"{file}: {packed:,} of its bytes expand to {size:,} in {row_group.num_rows:,} rows; a text may have "
                f"{MOST_TEXT:,} characters; split the texts, or check the file"
            )
        largest = max(largest, each)
    return max(1, min(AT_ONCE, MOST_AT_ONCE // largest))


def _unpacked(file: Path, number: int, batch: pyarrow.RecordBatch, names: tuple[str, ...]) -> Iterator[dict]:
    """Yield the rows of a batch, few at a time if one is long: decoding copies a repeated value for each row."""
    longest = 1
    for column in batch.columns:
        values = column.dictionary if isinstance(column, pyarrow.DictionaryArray) else column
        longest = max(longest, (not pyarrow.types.is_null(values.type) and compute.max(_lengths(values)).as_py()) or 1)
    if longest > MOST_VALUE:
        raise UserError(
            f"{file}: a value of {longest:,} bytes in one of the rows {number + 1} to {number + len(batch)}; a text "
            f"may have {MOST_TEXT:,} characters; split it"
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
