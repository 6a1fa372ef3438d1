"""tables.py: every format of a table gives the same records, whole and in parts, and names what is wrong."""

import csv
import gzip
import json
import lzma
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data import shards
from data.column_names import ColumnNames
from data.corpus import find_source, fingerprint, holds_pairs, read_records, read_sentences, training_source
from data.tables import table_columns
from utils.errors import UserError

TEXTS = ["a cat, and a dog", 'she said "no"', "line one\nline two", "[MASK] [SEP]", "Größe 世界", "", "  last  "]
READ = [text.strip() for text in TEXTS if text]
FORMATS = ("csv", "tsv", "json", "parquet", "jsonl")


def write(file: Path, column: str = "text", texts: list[str] = TEXTS) -> Path:
    """Write texts and their number as a table of the format in the file's name, perhaps compressed."""
    form = file.name.split(".")[1]
    rows = [{"id": str(i), column: text, "more": "x"} for i, text in enumerate(texts)]
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        return file
    plain = file.with_name("plain")
    with open(plain, "w", newline="", encoding="utf-8") as stream:
        if form == "csv":
            writer = csv.DictWriter(stream, ["id", column, "more"])
            writer.writeheader()
            writer.writerows(rows)
        elif form == "tsv":
            stream.write(f"id\t{column}\tmore\n")
            stream.writelines("\t".join(" ".join(v.splitlines()) for v in row.values()) + "\n" for row in rows)
        elif form == "json":
            json.dump(rows, stream, indent=1)
        else:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
    content = plain.read_bytes()
    pack = {"gz": gzip.compress, "xz": lzma.compress, "zst": lambda b: pyarrow.compress(b, "zstd", asbytes=True)}
    file.write_bytes(pack.get(file.suffix[1:], bytes)(content))
    return file


def expected(form: str) -> list[str]:
    return [" ".join(text.splitlines()) for text in READ] if form == "tsv" else READ


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("column", ["text", "Satz mit Wort"])
def test_every_format_gives_the_same_texts(tmp_path: Path, form: str, column: str) -> None:
    file = write(tmp_path / f"my.{form}", column)
    names = ColumnNames(text_column="" if column == "text" else column)
    source = training_source(str(file), names)
    assert list(read_sentences(source)) == expected(form) and not holds_pairs(source)
    if form != "jsonl":
        assert table_columns(file) == ["id", column, "more"]
    if column != "text":
        with pytest.raises(UserError, match=r'"text".*; --text_column, or --source_column and --target_column'):
            list(read_sentences(training_source(str(file))))
        assert fingerprint(source) != fingerprint(training_source(str(file), ColumnNames(text_column="id")))


@pytest.mark.parametrize("form", ["csv", "tsv", "json", "jsonl"])
@pytest.mark.parametrize("packed", ["gz", "xz", "zst"])
def test_every_compression_is_read(tmp_path: Path, form: str, packed: str) -> None:
    file = write(tmp_path / f"my.{form}.{packed}")
    assert list(read_sentences(training_source(str(file)))) == expected(form)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match="cannot be read"):
        list(read_sentences(training_source(str(file))))


@pytest.mark.parametrize("form", FORMATS)
def test_pairs_are_read_from_every_format(tmp_path: Path, form: str) -> None:
    rows = [{"Frage": "what, now", "Antwort": "this", "src": "x", "trg": "y"}]
    file = tmp_path / f"my.{form}"
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif form == "csv":
        file.write_text('Frage,Antwort,src,trg\n"what, now",this,x,y\n')
    elif form == "tsv":
        file.write_text("Frage\tAntwort\tsrc\ttrg\nwhat, now\tthis\tx\ty\n")
    else:
        file.write_text(json.dumps(rows if form == "json" else rows[0]))
    source = training_source(str(file), ColumnNames(source_column="Frage", target_column="Antwort"))
    assert holds_pairs(source)
    for column, text in (("src", "what, now"), ("trg", "this")):
        assert list(read_sentences(replace(source, column=column))) == [text]
    usual = training_source(str(file))
    assert holds_pairs(usual) and list(read_sentences(replace(usual, column="trg"))) == ["y"]


@pytest.mark.parametrize("form", ["csv", "tsv", "json", "csv.zst"])
@pytest.mark.parametrize("readers", [1, 3])
def test_a_table_in_pieces_is_the_whole_and_goes_on_anywhere(tmp_path: Path, form: str, readers: int) -> None:
    rng = np.random.default_rng(0)
    lines = [f"text {i}" + "\nmore" * int(rng.integers(2)) * (form != "tsv") for i in range(500)]
    source = training_source(str(write(tmp_path / f"my.{form}", texts=lines)))
    found = []
    for share in shards.partition(source, readers):
        for piece in share:
            records = list(shards.read(source, piece))
            found += [record.text for record in records]
            again = list(shards.read(source, piece, records[7].next))
            assert [r.text for r in again] == [r.text for r in records[8:]]
    assert sorted(found) == sorted(lines)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv: empty; the first line must be a header"),
        ("a.csv", "text\n", "a.csv: contains no text"),
        ("a.csv", "id,text\n1,a\n2,b,c\n", "a.csv:3: the row has 3 cells, the header 2"),
        ("a.csv", 'id,text\n1,"a\nb"\n2,"b" c\n', "a.csv:4: the row that begins here is no CSV"),
        ("a.csv", 'id,text\n1,"a\n2,b\n', "a.csv:2: the row that begins here is no CSV"),
        ("a.csv", "text,text\na,b\n", "a.csv:1: the header names 'text' twice"),
        ("a.csv", "id,sentence\n1,a\n", 'no column "text"; it has id, sentence; --text_column'),
        ("a.csv", b"text\nab\0c\n", "a.csv:2: a NUL byte"),
        ("a.csv", b"text\nab\xff\n", "a.csv:2: not UTF-8"),
        ("a.csv", b"text\rab\rcd\r", "lines end in carriage returns alone"),
        ("a.tsv", "id\ttext\n1\ta\tb\n", "a.tsv:2: the row has 3 cells, the header 2"),
        ("a.json", "", "a.json: contains no text"),
        ("a.json", "[]", "a.json: contains no text"),
        ("a.json", '[{"text": "a"} {"text": "b"}]', "no comma, or one too many, after object 1"),
        ("a.json", '[{"text": "a"},]', "no comma, or one too many, after object 1"),
        ("a.json", '[{"text": "a"}', "no comma, or one too many, after object 1"),
        ("a.json", '[{"text": "a"}] x', "text after the end of the array"),
        ("a.json", '[{"text": "a"}, {"text": 5}]', 'a.json: object 2: .*its "text" is 5'),
        ("a.json", '[{"text": "a"}, 7]', "value 2 is a int; every one must be an object"),
        ("a.json", '[{"text": "a"}, {"text": ', "object 2 is not JSON"),
        ("a.json", '{"data": [{"text": "a"}]}', r"object 1: .*its keys are \['data'\]"),
        ("a.json", "[" * 100_000, "object 1 is not JSON"),
        ("a.json", b'[{"text": "\xff"}]', "not UTF-8"),
        ("a.txt", "text,label\na,1\n", "name the file .csv$"),
        ("a.txt", "sentence\tlabel\na\t1\n", "name the file .tsv, and give --text_column"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        list(read_sentences(training_source(str(tmp_path / name))))


def test_names_of_columns_do_not_apply_to_plain_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(UserError, match="a .txt file has no columns, so none is called body; give no name"):
        list(read_sentences(training_source(str(tmp_path / "a.txt"), ColumnNames(text_column="body"))))


def test_a_location_is_the_line_at_which_a_row_begins(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b'\xef\xbb\xbftext\r\n"a\r\nb"\r\n\r\nc\r\n')  # a byte order mark, and lines of Windows
    assert [(text, line) for text, (_, line) in read_records(training_source(str(file)))] == [("a\r\nb", 2), ("c", 5)]
    assert find_source(str(file), "train").location((0, 5)) == f"{file}:5"
