"""Partition of a corpus of any size into pieces that can be read independently, from any record: streams and counts.

It is written by hand instead of `datasets` with a stateful loader, which would lose exact resumption at a record.

Plain .txt and .jsonl files are cut at bytes, .parquet files at rows. A compressed file, another table or a hub data
set's shard is one piece; if there are more readers than pieces, several readers take its records in turn. A position
in a piece is the start of a record: a byte, a row, or a number of records.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.corpus import Keep, Source, load_hub
from data.parquet import number_of_rows
from data.records import check_record, parse_line, read_line, read_lines, wanted_names
from data.sources import COMPRESSED, kind
from data.tables import is_table, table_rows
from utils.errors import UserError
from utils.files import open_regular
from utils.hub import first_line

MOST_BYTES = 2**26
"""Bytes of the largest piece; an epoch shuffles first pieces, then records within a pool."""
LEAST_BYTES = 2**19
"""Bytes of the smallest share of a reader; with less text all readers take records in turn."""
PLAIN = (".txt", ".jsonl")


@dataclass(frozen=True)
class Piece:
    """Records of one file or shard."""

    file: int
    """Index of the source's file, or of the data set's shard."""
    begin: int = 0
    """First position."""
    end: int = 2**63
    """End of the positions, exclusive."""
    turns: int = 1
    """Number of readers that take the records in turn."""
    turn: int = 0
    """Turn of this reader, 0 to turns - 1: records turn, turn + turns, ..., empty ones not counted."""
    weight: float = 1.0
    """Approximate size in bytes."""


@dataclass(frozen=True)
class Record:
    """One text of a piece."""

    text: str
    at: int
    """Position of this record."""
    next: int
    """Position of the next record."""


def partition(source: Source, readers: int) -> list[list[Piece]]:
    """Partition a source among readers, evenly by size; every record is in exactly one piece of one reader.

    Raises:
        UserError: if a file cannot be read.
    """
    if not source.hub_name and (size := sum(file.stat().st_size for file in source.files)) < readers * LEAST_BYTES:
        # with cuts at bytes, a reader's share might be part of a long line, or blank lines only
        files, weight = range(len(source.files)), size / len(source.files) / readers
        return [[Piece(i, turns=readers, turn=turn, weight=weight) for i in files] for turn in range(readers)]
    pieces = _hub_pieces(source) if source.hub_name else _file_pieces(source, readers)
    if len(pieces) < readers:
        turns = -(-readers // len(pieces))
        pieces = [Piece(p.file, p.begin, p.end, turns, turn, p.weight / turns) for p in pieces for turn in range(turns)]
    shares: list[list[Piece]] = [[] for _ in range(readers)]
    loads = [0.0] * readers
    for piece in sorted(pieces, key=lambda piece: -piece.weight):  # largest first, to the smallest share
        reader = loads.index(min(loads))
        shares[reader].append(piece)
        loads[reader] += piece.weight
    return shares


def _hub_pieces(source: Source) -> list[Piece]:
    return [Piece(shard) for shard in range(load_hub(source, streaming=True).num_shards)]


def _file_pieces(source: Source, readers: int) -> list[Piece]:
    sizes = [file.stat().st_size for file in source.files]
    at_most = max(1, min(MOST_BYTES, sum(sizes) // (4 * readers)))
    pieces = []
    for i, (file, size) in enumerate(zip(source.files, sizes, strict=True)):
        parts = max(1, -(-size // at_most))
        if kind(file) in PLAIN:
            ends = [size * part // parts for part in range(parts + 1)]
        elif kind(file) == ".parquet":
            rows = number_of_rows(file)
            parts = min(parts, max(1, rows))
            ends = [rows * part // parts for part in range(parts + 1)]
        else:
            packed = kind(file).endswith(COMPRESSED)
            pieces.append(Piece(i, weight=3 * size if packed else size))  # compression to about a third
            continue
        pieces += [Piece(i, a, b, weight=size / parts) for a, b in zip(ends, ends[1:], strict=False) if b > a]
    return pieces or [Piece(0)]


def read(source: Source, piece: Piece, start: int = 0, keep: Keep | None = None) -> Iterator[Record]:
    """Yield the non-empty records of a piece from a position on.

    Args:
        source: source of the piece.
        piece: the piece.
        start: 0 for its beginning, or a `Record.next` of it.
        keep: selects records by their text, or by a pair's source.

    Raises:
        UserError: with file and line, if a record is invalid.
    """
    file = None if source.hub_name else source.files[piece.file]
    if file is not None and not file.is_file():
        raise UserError(f"{file}: no longer exists; restore it, and restart to resume")
    begin = start if piece.turns == 1 else 0  # turns are counted from the beginning
    if file is None:
        found = _of_hub(source, piece, begin)
    elif is_table(file):
        found = _of_table(source, file, piece, max(begin, piece.begin))
    elif kind(file) in PLAIN:
        found = _of_plain(source, file, piece, begin)
    else:
        found = _of_compressed(source, file, begin)
    kept = (entry for entry in found if entry[0] and (keep is None or keep(entry[0][source.columns.keys[0]])))
    for number, (record, at, following) in enumerate(kept):
        if (number + piece.file) % piece.turns == piece.turn and at >= start:
            yield Record(record[source.column], at, following)


def _of_plain(source: Source, file: Path, piece: Piece, start: int) -> Iterator[tuple[dict, int, int]]:
    with open_regular(file) as stream:
        if start:
            stream.seek(start)
        elif piece.begin:  # a line across the cut belongs to the previous piece
            stream.seek(piece.begin - 1)
            read_line(stream, file, partial(line_at, file, piece.begin))
        at = stream.tell()
        while at < piece.end and (line := read_line(stream, file, partial(line_at, file, at))):
            try:
                record = parse_line(line, file, 1 if at == 0 else 2, source.columns)
            except UserError:  # count lines only for an error message
                parse_line(line, file, line_at(file, at), source.columns)
                raise
            yield record, at, at + len(line)
            at += len(line)


def _of_compressed(source: Source, file: Path, start: int) -> Iterator[tuple[dict, int, int]]:
    for number, (line, _) in enumerate(read_lines(file)):
        if number >= start:
            yield parse_line(line, file, number + 1, source.columns), number, number + 1


def _of_table(source: Source, file: Path, piece: Piece, start: int) -> Iterator[tuple[dict, int, int]]:
    for number, record in table_rows(file, source.columns, start, piece.end):
        yield record, number, number + 1


def _of_hub(source: Source, piece: Piece, start: int) -> Iterator[tuple[dict, int, int]]:
    try:
        yield from _rows_of_hub(source, piece, start)
    except UserError:
        raise
    except Exception as error:  # the libraries below raise many types
        raise UserError(f"data set {source.hub_name}: {first_line(error)}; restart to resume") from error


def _rows_of_hub(source: Source, piece: Piece, start: int) -> Iterator[tuple[dict, int, int]]:
    whole = load_hub(source, streaming=True)
    shard = whole.shard(num_shards=whole.num_shards, index=piece.file)
    number = start
    for rows in (shard.skip(start) if start else shard).iter(batch_size=1000):  # __iter__ would split by worker
        names = wanted_names(source.columns, rows, f"data set {source.hub_name}")
        for texts in zip(*(rows[name] for name in names), strict=True):
            location = f"data set {source.hub_name}, shard {piece.file}, row {number}"
            record = dict(zip(names, texts, strict=True))
            yield check_record(record, source.columns, location), number, number + 1
            number += 1


def line_at(file: Path, at: int) -> int:
    """Return the number, from 1, of the line that begins at a byte."""
    number = 1
    with open(file, "rb") as stream:
        while at > 0 and (block := stream.read(min(at, 1 << 20))):
            number, at = number + block.count(b"\n"), at - len(block)
    return number


def location(source: Source, file: int, at: int) -> str:
    """Format a record's position: file and line, or data set, shard and row."""
    if source.hub_name:
        return f"data set {source.hub_name}, shard {file}, row {at}"
    path = source.files[file]
    return f"{path}:{line_at(path, at) if kind(path) in PLAIN else at + 1}"
