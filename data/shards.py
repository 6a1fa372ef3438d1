"""A corpus of any size as pieces that can be read apart, each from any record on: for streams and for counting.

Plain .txt and .jsonl files are cut at bytes, .parquet at rows; a compressed file or a hub data set's shard is a piece,
or, where there are more readers than pieces, several that take turns at its records. A piece's position is where its
next record begins: a byte, a row, or a number of records.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.corpus import Keep, Source, load_hub
from data.parquet import number_of_rows, rows_of
from data.records import check_record, parse_line, read_line, read_lines, wanted_names
from data.sources import kind
from utils.errors import UserError
from utils.files import open_regular
from utils.hub import first_line

MOST_BYTES = 2**26
"""Of a piece: an epoch's order shuffles pieces, then what is read of them."""
LEAST_BYTES = 2**19
"""Of a reader's share, below which it takes turns with the others instead."""
PLAIN = (".txt", ".jsonl")


@dataclass(frozen=True)
class Piece:
    """Records of one file or shard."""

    file: int
    """Which of the source's files, or of the data set's shards."""
    begin: int = 0
    """First position."""
    end: int = 2**63
    """No record begins here or later."""
    turns: int = 1
    """Of the records that are not empty, every so-manieth,"""
    turn: int = 0
    """beginning with this one."""
    weight: float = 1.0
    """About how many bytes."""


@dataclass(frozen=True)
class Record:
    """One text of a piece."""

    text: str
    at: int
    """Its position."""
    next: int
    """The next one's."""


def cut(source: Source, readers: int) -> list[list[Piece]]:
    """Every record of a source in just one piece of one of the readers, shared out evenly by size.

    Raises:
        UserError: if a file cannot be read.
    """
    if not source.hub_name and (size := sum(file.stat().st_size for file in source.files)) < readers * LEAST_BYTES:
        # cut at bytes, one long line or a file of blank ones might be all that a reader has
        files, weight = range(len(source.files)), size / len(source.files) / readers
        return [[Piece(i, turns=readers, turn=turn, weight=weight) for i in files] for turn in range(readers)]
    pieces = _hub_pieces(source) if source.hub_name else _file_pieces(source, readers)
    if len(pieces) < readers:
        turns = -(-readers // len(pieces))
        pieces = [Piece(p.file, p.begin, p.end, turns, turn, p.weight / turns) for p in pieces for turn in range(turns)]
    shares: list[list[Piece]] = [[] for _ in range(readers)]
    loads = [0.0] * readers
    for piece in sorted(pieces, key=lambda piece: -piece.weight):  # largest first, to whoever has least
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
            pieces.append(Piece(i, weight=3 * size))  # text shrinks to about a third
            continue
        pieces += [Piece(i, a, b, weight=size / parts) for a, b in zip(ends, ends[1:], strict=False) if b > a]
    return pieces or [Piece(0)]


def read(source: Source, piece: Piece, start: int = 0, keep: Keep | None = None) -> Iterator[Record]:
    """The non-empty records of a piece from a position on.

    Args:
        source: what it is a piece of.
        piece: which.
        start: 0 for its beginning, or a `Record.next` of it.
        keep: which to take; of a pair, by its source.

    Raises:
        UserError: naming file and line, if a record is none.
    """
    file = None if source.hub_name else source.files[piece.file]
    if file is not None and not file.is_file():
        raise UserError(f"{file}: it was there and is gone; bring it back, and start again to go on")
    begin = start if piece.turns == 1 else 0  # whose turn it is, only counting from the beginning tells
    if file is None:
        found = _of_hub(source, piece, begin)
    elif kind(file) == ".parquet":
        found = _of_parquet(source, file, piece, max(begin, piece.begin))
    elif kind(file) in PLAIN:
        found = _of_plain(source, file, piece, begin)
    else:
        found = _of_compressed(source, file, begin)
    kept = (entry for entry in found if entry[0] and (keep is None or keep(entry[0][source.columns[0]])))
    for number, (record, at, following) in enumerate(kept):
        if (number + piece.file) % piece.turns == piece.turn and at >= start:
            yield Record(record[source.column], at, following)


def _of_plain(source: Source, file: Path, piece: Piece, start: int) -> Iterator[tuple[dict, int, int]]:
    with open_regular(file) as stream:
        if start:
            stream.seek(start)
        elif piece.begin:  # the line that runs across the cut is the piece's before
            stream.seek(piece.begin - 1)
            read_line(stream, file, partial(line_at, file, piece.begin))
        at = stream.tell()
        while at < piece.end and (line := read_line(stream, file, partial(line_at, file, at))):
            try:
                record = parse_line(line, file, 1 if at == 0 else 2, source.columns)
            except UserError:  # the line's number is counted when it is asked for
                parse_line(line, file, line_at(file, at), source.columns)
                raise
            yield record, at, at + len(line)
            at += len(line)


def _of_compressed(source: Source, file: Path, start: int) -> Iterator[tuple[dict, int, int]]:
    for number, (line, _) in enumerate(read_lines(file)):
        if number >= start:
            yield parse_line(line, file, number + 1, source.columns), number, number + 1


def _of_parquet(source: Source, file: Path, piece: Piece, start: int) -> Iterator[tuple[dict, int, int]]:
    for number, record in rows_of(file, source.columns, start, piece.end):
        yield record, number, number + 1


def _of_hub(source: Source, piece: Piece, start: int) -> Iterator[tuple[dict, int, int]]:
    try:
        yield from _rows_of_hub(source, piece, start)
    except UserError:
        raise
    except Exception as error:  # a stream breaks off in as many ways as there are libraries beneath it
        raise UserError(f"data set {source.hub_name}: {first_line(error)}; start again to go on") from error


def _rows_of_hub(source: Source, piece: Piece, start: int) -> Iterator[tuple[dict, int, int]]:
    whole = load_hub(source, streaming=True)
    shard = whole.shard(num_shards=whole.num_shards, index=piece.file)
    number = start
    for rows in (shard.skip(start) if start else shard).iter(batch_size=1000):  # iter: left alone by workers' rules
        names = wanted_names(source.columns, rows, f"data set {source.hub_name}")
        for texts in zip(*(rows[name] for name in names), strict=True):
            place = f"data set {source.hub_name}, shard {piece.file}, row {number}"
            record = dict(zip(source.columns, texts, strict=True))
            yield check_record(record, source.columns, place), number, number + 1
            number += 1


def line_at(file: Path, at: int) -> int:
    """The number, from 1, of the line that begins at a byte."""
    number = 1
    with open(file, "rb") as stream:
        while at > 0 and (block := stream.read(min(at, 1 << 20))):
            number, at = number + block.count(b"\n"), at - len(block)
    return number


def place(source: Source, file: int, at: int) -> str:
    """A record's position in words."""
    if source.hub_name:
        return f"data set {source.hub_name}, shard {file}, row {at}"
    path = source.files[file]
    return f"{path}:{line_at(path, at) if kind(path) in PLAIN else at + 1}"
