"""shards.py: every record is in one piece, and a piece can be read from any record on."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data import corpus, records, shards
from data.corpus import Source
from utils.errors import UserError

LINES = [f"line {i} " + "word " * (i % 7) for i in range(500)]
KINDS = ["txt", "jsonl", "parquet", "txt.gz", "mixed"]


def write(folder: Path, kind: str, number: int = 3) -> Source:
    """Write the lines to several files of unequal size, with blank lines."""
    folder.mkdir(exist_ok=True)
    cuts = [0, 40, 300, 500][: number + 1]
    files = []
    for i, (a, b) in enumerate(zip(cuts, cuts[1:], strict=False)):
        each = kind if kind != "mixed" else ["txt", "parquet", "txt.gz"][i]
        files.append(folder / f"part-{i}.{each}")
        lines = [line for text in LINES[a:b] for line in ([text, ""] if i == 1 else [text])]
        text = "\n".join(json.dumps({"text": line}) if each == "jsonl" else line for line in lines) + "\n" * (i % 2)
        if each == "parquet":
            pyarrow.parquet.write_table(pyarrow.table({"text": lines, "n": range(len(lines))}), files[-1], 37)
        else:
            (gzip.open if each.endswith("gz") else open)(files[-1], "wt").write(text)
    return Source(tuple(files))


def texts(source: Source, piece: shards.Piece, start: int = 0) -> list[str]:
    return [record.text for record in shards.read(source, piece, start)]


@pytest.fixture(params=["cut", "in turns"])
def cut_or_in_turns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat the files as large, cut into ranges, or as small, whose records are read in turns."""
    if request.param == "cut":
        monkeypatch.setattr(shards, "LEAST_BYTES", 0)


@pytest.mark.usefixtures("cut_or_in_turns")
@pytest.mark.parametrize("readers", [1, 2, 8, 24])
@pytest.mark.parametrize("kind", KINDS)
def test_every_record_is_read_by_exactly_one_reader(tmp_path: Path, kind: str, readers: int) -> None:
    source = write(tmp_path, kind)
    shares = shards.partition(source, readers)
    texts_by_reader = [[text for piece in share for text in texts(source, piece)] for share in shares]
    assert sorted(text for share in texts_by_reader for text in share) == sorted(line.strip() for line in LINES)
    assert len(shares) == readers and all(shares)
    if kind in ("txt", "jsonl"):
        sizes = [sum(len(text) for text in share) for share in texts_by_reader]
        assert max(sizes) < 2 * sum(sizes) / readers


@pytest.mark.usefixtures("cut_or_in_turns")
@pytest.mark.parametrize("kind", KINDS)
def test_a_piece_can_be_read_from_any_record(tmp_path: Path, kind: str) -> None:
    source = write(tmp_path, kind)
    for piece in [piece for share in shards.partition(source, 5) for piece in share]:
        records = list(shards.read(source, piece))
        for i, record in enumerate(records):
            if i % 9 == 0 or i + 1 == len(records):
                assert texts(source, piece, record.next) == [later.text for later in records[i + 1 :]]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_cuts_within_lines_neither_lose_nor_repeat_text(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n\ntwo\r\n  three\nfour \xc3\xa4\n\nx")
    source = Source((tmp_path / "a.txt",))
    pieces = [shards.Piece(0, begin, begin + size) for begin in range(0, 40, size)]
    assert [text for piece in pieces for text in texts(source, piece)] == ["one", "two", "three", "four ä", "x"]


@pytest.mark.parametrize("kind", ["txt", "txt.gz", "parquet"])
def test_blank_and_long_lines_leave_no_reader_without_text(tmp_path: Path, kind: str) -> None:
    """Readers take records in turn, with blank lines, files of one line, and one line longer than all others."""
    folder = tmp_path / kind
    folder.mkdir()
    texts_of = {0: [word for i in range(40) for word in (f"a {i}", "")], 1: ["b"], 2: ["", " "], 3: ["c" * 10_000]}
    texts_of |= {i: [f"file {i}"] for i in range(4, 20)}
    for i, lines in texts_of.items():
        if kind == "parquet":
            pyarrow.parquet.write_table(pyarrow.table({"text": lines}), folder / f"{i:02}.parquet")
        else:
            (gzip.open if kind.endswith("gz") else open)(folder / f"{i:02}.{kind}", "wt").write("\n".join(lines) + "\n")
    source = Source(tuple(sorted(folder.iterdir())))
    shares = shards.partition(source, 8)
    texts_by_reader = [[text for piece in share for text in texts(source, piece)] for share in shares]
    assert sorted(sum(texts_by_reader, [])) == sorted(
        line for lines in texts_of.values() for line in lines if line.strip()
    )
    assert min(map(len, texts_by_reader)) >= 5


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet", "txt.gz"])
def test_a_position_is_reported_as_file_and_line(tmp_path: Path, kind: str) -> None:
    source = write(tmp_path, kind, number=1)
    for piece in [piece for share in shards.partition(source, 3) for piece in share]:
        for record in shards.read(source, piece):
            line = LINES.index(next(line for line in LINES if line.strip() == record.text)) + 1
            assert shards.location(source, piece.file, record.at) == f"{source.files[0]}:{line}"


def test_a_malformed_line_and_a_missing_file_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "b.jsonl"
    bad.write_text('{"text": "good"}\n' * 20 + '{"text": 3}\n')
    source = Source((bad,))
    with pytest.raises(UserError, match="b.jsonl:21: every line must be an object with a string"):
        [texts(source, piece) for share in shards.partition(source, 4) for piece in share]
    pieces = shards.partition(source, 1)[0]
    bad.unlink()
    with pytest.raises(UserError, match="no longer exists; restore it"):
        texts(source, pieces[0])


def test_long_lines_are_refused_before_they_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_LINE", 100)
    (tmp_path / "a.txt").write_text("short\n" + "x" * 99 + "\n" + "y" * 100 + "\n")
    source = Source((tmp_path / "a.txt",))
    with pytest.raises(UserError, match="a.txt:3: the line is longer than 100 bytes"):
        texts(source, shards.Piece(0))
    with pytest.raises(UserError, match="a.txt:3: the line is longer than 100 bytes"):
        list(corpus.read_sentences(source))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not a .parquet file"), (b"PAR1" + b"\0" * 50 + b"PAR1", "not a .parquet file"), (None, 'no column "text"')],
)
def test_an_invalid_parquet_file_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "a.parquet"
    if content is None:
        pyarrow.parquet.write_table(pyarrow.table({"words": ["a"]}), file)
    else:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(corpus.read_sentences(Source((file,))))


def test_parquet_files_are_read_like_text_files(tmp_path: Path) -> None:
    source = write(tmp_path, "parquet")
    assert list(corpus.read_sentences(source)) == [line.strip() for line in LINES]
    assert corpus.find_source(str(tmp_path), "train").files == source.files
    damaged = bytearray(source.files[2].read_bytes())
    damaged[100:400] = bytes(300)
    source.files[2].write_bytes(damaged)
    with pytest.raises(UserError, match="part-2.parquet"):
        list(corpus.read_sentences(source))
