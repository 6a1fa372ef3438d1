"""One line of a file, or one row of a table, to the strings that are wanted of it; what is none is named by its place.

Pairs have the keys "src" and "trg", or, if there is just one of these and no "text", "src" and "tgt", "source" and
"target", or "input" and "output".
"""

import gzip
import json
import lzma
import re
import zlib
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from data.sources import PAIR, kind
from utils.errors import UserError, shown
from utils.files import open_regular

MOST_LINE = 2**24
"""Bytes in a line, its end and whatever else the line of a .jsonl file holds included."""
MOST_TEXT = 2**21
"""Characters in a text: a tokenizer takes about 190 bytes of memory for each, 0.4 GB in all."""
PAIRS = (PAIR, ("src", "tgt"), ("source", "target"), ("input", "output"))
COLUMNS = {
    "text", "sentence", "sentence1", "sentence2", "question", "question1", "question2", "source", "target", "src",
    "trg", "tgt", "input", "output", "label", "id", "content", "title", "body", "premise", "hypothesis", "context",
    "answer", "document", "summary", "review", "index",
}  # fmt: skip
"""Names by which a table's first line is known."""
HALF = re.compile("[\ud800-\udfff]")
ARRAY = "write one object a line (from an array: jq -c '.[]' FILE > FILE.jsonl)"


def pair_names(names: Collection[str]) -> tuple[str, str] | None:
    """Under which names a record or a table has source and target; None if under none, or not clearly."""
    found = [pair for pair in PAIRS if set(pair) <= set(names)]
    return found[0] if len(found) == 1 or PAIR in found else None


def means_pairs(names: Collection[str], place: str) -> bool:
    """Whether what has these names is a pair; half a pair was meant to be one.

    Raises:
        UserError: if it is text as well.
    """
    if "text" in names and set(PAIR) <= set(names):
        raise UserError(f'{place}: it has "text" and "src" and "trg"; leave out what is not to be learnt')
    return "text" not in names and (pair_names(names) is not None or any(name in names for name in PAIR))


def wanted_names(columns: tuple[str, ...], names: Collection[str], place: str) -> tuple[str, ...]:
    """The names that a table has for the wanted columns.

    Raises:
        UserError: if it lacks one.
    """
    found = (pair_names(names) or PAIR) if columns == PAIR else columns
    lacking = [column for column in found if column not in names]
    if lacking:
        raise UserError(f'{place}: no column "{lacking[0]}"; it has {shown(", ".join(list(names)[:8]))[1:-1]}')
    return found


# ---- lines -----------------------------------------------------------------------------------------------------------


def read_lines(file: Path) -> Iterator[tuple[bytes, int]]:
    """Lines of a possibly compressed file, each with the position reached in the file as it lies on disk."""
    try:
        with open_regular(file) as raw:
            opener = {".gz": gzip.open, ".xz": lzma.open}.get(file.suffix.lower())
            with opener(raw, "rb") if opener else raw as stream:
                number = 1
                while line := read_line(stream, file, partial(int, number)):
                    yield line, raw.tell()
                    number += 1
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error


def read_line(stream: BinaryIO, file: Path, number: Callable[[], int]) -> bytes:
    """The next line, or b"" at the end; `number` tells which it is, if it must be told.

    Raises:
        UserError: if it is too long; no more of it than that is ever in memory.
    """
    line = stream.readline(MOST_LINE + 1)
    if len(line) > MOST_LINE:
        raise UserError(f"{file}:{number()}: the line is longer than {MOST_LINE:,} bytes; split it into several")
    return line


def parse_line(line: bytes, file: Path, number: int, columns: tuple[str, ...]) -> dict[str, str]:
    """The wanted strings of a line, stripped; nothing if the line is blank or its text is."""
    text = decoded(line, file, number)
    if not kind(file).startswith(".jsonl"):
        if columns == PAIR:
            raise UserError(f'{file}: pairs are read from .jsonl files, one {{"src": ..., "trg": ...}} a line')
        if number == 1:
            _require_prose(text, file)
        return {"text": bounded(text, f"{file}:{number}")} if text else {}
    return check_record(parse_object(line, file, number), columns, f"{file}:{number}") if text else {}


def _require_prose(text: str, file: Path) -> None:
    """Refuses JSON and tables under the name of a text, by their first line; prose has no such line."""
    if text in ("{", "[") or text.startswith("[{"):
        raise UserError(f"{file}:1: JSON in a .txt file; {ARRAY}, and name it .jsonl")
    if text.startswith("{"):
        try:
            if isinstance(json.loads(text), dict):
                raise UserError(f"{file}:1: a JSON object in a .txt file; if every line is one, name it .jsonl")
        except (ValueError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
    for mark, name in (("\t", "tabs"), (",", "commas")):
        fields = [field.strip('"').lower() for field in text.split(mark)]
        if len(fields) > 1 and all(re.fullmatch(r"[a-z_][a-z_0-9]*", f) for f in fields) and COLUMNS & set(fields):
            raise UserError(
                f"{file}:1: the head of a table with {name} ({shown(text)[1:-1]}), not a text; write the column that "
                'is meant, one sentence a line, or {"text": ...} a line as .jsonl'
            )


def bounded(text: str, place: str) -> str:
    """A text that is not too long for a tokenizer.

    Raises:
        UserError: if it is.
    """
    if len(text) > MOST_TEXT:
        raise UserError(
            f"{place}: a text of {len(text):,} characters, more than {MOST_TEXT:,}; split it: a line is a text"
        )
    return text


def decoded(line: bytes, file: Path, number: int) -> str:
    """A line of text, stripped, and the first one without its byte order mark.

    Raises:
        UserError: naming file and line, if it is not UTF-8.
    """
    if b"\0" in line:
        raise UserError(f"{file}:{number}: it has a NUL byte; if the file is UTF-16, convert it, e.g. with iconv")
    if number == 1 and line.strip().count(b"\r") > 1:
        raise UserError(f"{file}: its lines end in carriage returns alone; convert it, e.g. with tr '\\r' '\\n'")
    try:
        return line.decode("utf-8").removeprefix("\ufeff").strip()  # of files put together every first line has a mark
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1} of the line is 0x{line[error.start]:02x}"
        raise UserError(f"{file}:{number}: not UTF-8 ({where}); convert the file, e.g. with iconv") from error


def parse_object(line: bytes, file: Path, number: int) -> dict:
    """The object in a line of a .jsonl file.

    Raises:
        UserError: naming file and line, if there is none.
    """
    text = decoded(line, file, number)
    if text in ("[", "{") or text.startswith("[{"):
        raise UserError(f"{file}:{number}: not JSON, one object a line, but an array or a value over several; {ARRAY}")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}:{number}: not JSON ({error}); every line must be an object") from error
    if not isinstance(record, dict):
        raise UserError(f"{file}:{number}: every line must be an object; it is a {type(record).__name__}")
    return record


def check_record(given: dict, columns: tuple[str, ...], place: str) -> dict[str, str]:
    """The wanted strings of a record, stripped; nothing if its text is empty.

    Raises:
        UserError: naming the place, if it lacks one of them, or one is too long.
    """
    names = (pair_names(given) or PAIR) if columns == PAIR else columns
    if not all(isinstance(given.get(name), str) for name in names):
        raise UserError(f"{place}: {_whats_lacking(given, names)}")
    record = {column: bounded(given[name].strip(), place) for column, name in zip(columns, names, strict=True)}
    if any(HALF.search(text) for text in record.values()):
        raise UserError(f"{place}: the text has half a surrogate pair, which no encoding can hold; mend the line")
    if record.get("trg") == "":
        raise UserError(f'{place}: the target "{names[1]}" is empty; give its text, or leave the pair out')
    return record if record.get("text") != "" else {}


def _whats_lacking(given: dict, names: tuple[str, ...]) -> str:
    wanted = f"every line must be an object with a string {' and '.join(json.dumps(name) for name in names)}"
    wrong = next((name for name in names if name in given and not isinstance(given[name], str)), None)
    if wrong is not None:
        return f'{wanted}; its "{wrong}" is {shown(given[wrong]) if given[wrong] is not None else "null"}'
    known = "; a pair's are src and trg, source and target, or input and output" if names == ("text",) else ""
    return f"{wanted}; its keys are {shown(sorted(given))}{known}"
