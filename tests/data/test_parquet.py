"""parquet.py: a small file that expands to gigabytes is refused before it does; ordinary tables are read."""

import resource
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data import parquet
from data.column_names import Columns
from utils.errors import UserError


def write(folder: Path, texts: pyarrow.Array, **options: object) -> Path:
    """Write a table of one column, highly compressed."""
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), folder / "a.PARQUET", compression="zstd", **options)
    return folder / "a.PARQUET"


def repeated(text: str, times: int) -> pyarrow.Array:
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * times, pyarrow.int32()), pyarrow.array([text]))


@pytest.mark.parametrize(
    ("length", "times", "message"),
    [
        (70 << 20, 1, "expand to 73,4..,... in 1 rows"),
        (100 << 20, 2000, "expand to 104,8"),
        (20 << 20, 2000, "a value of 20,971,520 bytes in one of the rows 1 to 1000"),
        (1 << 20, 500, "its texts are 1,000 times its size"),
    ],
)
@pytest.mark.slow
def test_a_value_that_expands_to_gigabytes_is_refused(tmp_path: Path, length: int, times: int, message: str) -> None:
    file = write(tmp_path, repeated("x" * length, times))
    assert file.stat().st_size < 50_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message):
        for _ in parquet.parquet_rows(file, Columns(("text",))):
            pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()])
def test_ordinary_tables_are_read(tmp_path: Path, kind: pyarrow.DataType) -> None:
    texts = [f"{i} é " + "w " * 300 for i in range(5000)]  # more than fit into a dictionary page
    file = write(tmp_path, pyarrow.array(texts, kind), row_group_size=1700)
    assert [row["text"] for _, row in parquet.parquet_rows(file, Columns(("text",)))] == [
        text.strip() for text in texts
    ]
    middle = list(parquet.parquet_rows(file, Columns(("text",)), 1699, 1702))
    assert [number for number, _ in middle] == [1699, 1700, 1701] and middle[1][1]["text"].startswith("1700 é")
    assert parquet.number_of_rows(file) == 5000


def test_a_row_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    raw = pyarrow.array([b"ok", b"\xff\xfe", b"x"], pyarrow.binary())
    file = write(tmp_path, pyarrow.Array.from_buffers(pyarrow.string(), 3, [None, *raw.buffers()[1:]]))
    with pytest.raises(UserError, match="a.PARQUET:2: not UTF-8"):
        list(parquet.parquet_rows(file, Columns(("text",))))


@pytest.mark.parametrize("values", [[1, 2], [["a"], ["b"]], [b"a", b"b"]])
def test_a_column_that_is_not_text_is_refused(tmp_path: Path, values: list) -> None:
    with pytest.raises(UserError, match='the column "text" is .*, not text; write it as strings'):
        list(parquet.parquet_rows(write(tmp_path, pyarrow.array(values)), Columns(("text",))))
