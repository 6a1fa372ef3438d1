"""Parsing of a file's line or a table's row into the wanted strings; an error names its location.

Pairs have the keys "src" and "trg". Without these, and without "text", exactly one of "src" and "tgt", "source" and
"target", or "input" and "output" is accepted.
"""

import contextlib
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from data.column_names import Columns
from data.sources import PAIR, kind
from utils.errors import UserError, shown
from utils.files import open_regular

MOST_LINE = 2**24
"""Bytes of a line, its end and all keys of a .jsonl line included."""
MOST_TEXT = 2**21
"""Characters of a text; a tokenizer takes about 190 bytes of memory for each, 0.4 GB in all."""
PAIRS = (PAIR, ("src", "tgt"), ("source", "target"), ("input", "output"))
COLUMNS = {
    "text", "sentence", "sentence1", "sentence2", "question", "question1", "question2", "source", "target", "src",
    "trg", "tgt", "input", "output", "label", "id", "content", "title", "body", "premise", "hypothesis", "context",
    "answer", "document", "summary", "review", "index",
}  # fmt: skip
"""Column names by which the first line of a table is recognised."""
HALF = re.compile("[\ud800-\udfff]")
NAMING = "; --text_column, or --source_column and --target_column, name others"
ARRAY = "write one object per line (from an array: jq -c '.[]' FILE > FILE.jsonl)"


def pair_names(names: Collection[str]) -> tuple[str, str] | None:
    """Return the names of source and target in a record or table; None if absent or ambiguous."""
    found = [pair for pair in PAIRS if set(pair) <= set(names)]
    return found[0] if len(found) == 1 or PAIR in found else None


def means_pairs(names: Collection[str], location: str) -> bool:
    """Tell whether a record with these names is a pair; one of "src" and "trg" is enough.

    Raises:
        UserError: if it has "text" as well.
    """
    if "text" in names and set(PAIR) <= set(names):
        raise UserError(f'{location}: it has "text" and "src" and "trg"; remove what is not to be trained on')
    return "text" not in names and (pair_names(names) is not None or any(name in names for name in PAIR))


def wanted_names(columns: Columns, names: Collection[str], location: str) -> tuple[str, ...]:
    """Return a table's names of the wanted columns.

    Raises:
        UserError: if a column is missing.
    """
    found = names_of(columns, names)
    lacking = [column for column in found if column not in names]
    if lacking:
        listed = shown(", ".join(list(names)[:8]))[1:-1]
        raise UserError(f'{location}: no column "{lacking[0]}"; it has {listed}{"" if columns.names else NAMING}')
    return found


def names_of(columns: Columns, names: Collection[str]) -> tuple[str, ...]:
    """Return the names of the wanted columns among those of a record or table; one may be missing."""
    return columns.names or ((pair_names(names) or PAIR) if columns.keys == PAIR else columns.keys)


# ---- lines -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(file: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open a file within a block; return its content, decompressed, and the file on disk, which knows the position.

    Raises:
        UserError: if it cannot be read, also within the block.
    """
    try:
        with open_regular(file) as raw:
            opener = {".gz": gzip.open, ".xz": lzma.open, ".zst": _open_zst}.get(file.suffix.lower())
            with opener(raw, "rb") if opener else raw as stream:
                yield stream, raw
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error


def _open_zst(raw: BinaryIO, mode: str) -> BinaryIO:
    import pyarrow  # for these files only

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd"))


def read_lines(file: Path) -> Iterator[tuple[bytes, int]]:
    """Yield the lines of a file, compressed or not, each with the position reached in the file on disk."""
    with opened(file) as (stream, raw):
        number = 1
        while line := read_line(stream, file, partial(int, number)):
            yield line, raw.tell()
            number += 1


def read_line(stream: BinaryIO, file: Path, number: Callable[[], int]) -> bytes:
    """Read the next line, or b"" at the end.

    Args:
        stream: the open file.
        file: its path, for the message.
        number: returns the line's number, for the message.

    Raises:
        UserError: if the line is longer than MOST_LINE, which is all that is read of it.
    """
    line = stream.readline(MOST_LINE + 1)
    if len(line) > MOST_LINE:
        raise UserError(f"{file}:{number()}: the line is longer than {MOST_LINE:,} bytes; split it into several")
    return line


def parse_line(line: bytes, file: Path, number: int, columns: Columns) -> dict[str, str]:
    """Return the wanted strings of a line, stripped; empty if the line or its text is blank."""
    text = decoded(line, file, number)
    if not kind(file).startswith(".jsonl"):
        if columns.names:
            raise UserError(f"{file}: a .txt file has no columns, so none is called {columns.names[0]}; give no name")
        if columns.keys == PAIR:
            raise UserError(f'{file}: pairs are read from .jsonl files, one {{"src": ..., "trg": ...}} per line')
        if number == 1:
            require_prose(text, file)
        return {"text": bounded(text, f"{file}:{number}")} if text else {}
    return check_record(parse_object(line, file, number), columns, f"{file}:{number}") if text else {}


def require_prose(text: str, file: Path) -> None:
    """Refuse JSON and tables in a .txt file, by their first line."""
    if text in ("{", "[") or text.startswith("[{"):
        raise UserError(f"{file}:1: JSON in a .txt file; {ARRAY}, and name it .jsonl")
    if text.startswith("{"):
        try:
            if isinstance(json.loads(text), dict):
                raise UserError(f"{file}:1: a JSON object in a .txt file; if every line is an object, name it .jsonl")
        except (ValueError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
    for mark, name in (("\t", "tabs"), (",", "commas")):
        fields = [field.strip('"').lower() for field in text.split(mark)]
        if len(fields) > 1 and all(re.fullmatch(r"[a-z_][a-z_0-9]*", f) for f in fields) and COLUMNS & set(fields):
            suffix, column = {"\t": ".tsv", ",": ".csv"}[mark], "" if "text" in fields else ", and give --text_column"
            raise UserError(
                f"{file}:1: the header of a table with {name} ({shown(text)[1:-1]}), not text; "
                f"name the file {suffix}{column}"
            )


def bounded(text: str, location: str) -> str:
    """Return a text of at most MOST_TEXT characters, the limit for a tokenizer.

    Raises:
        UserError: if the text is longer.
    """
    if len(text) > MOST_TEXT:
        raise UserError(
            f"{location}: a text of {len(text):,} characters, more than {MOST_TEXT:,}; split it into several lines"
        )
    return text


def decoded(line: bytes, file: Path, number: int) -> str:
    """Decode a line of text, stripped and without a byte order mark; errors are those of `decoded_whole`."""
    return decoded_whole(line, file, number).strip()


def decoded_whole(line: bytes, file: Path, number: int) -> str:
    """Decode a line of text, without a byte order mark.

    Raises:
        UserError: with file and line, if it is not UTF-8.
    """
    if b"\0" in line:
        raise UserError(f"{file}:{number}: a NUL byte; if the file is UTF-16, convert it, e.g. with iconv")
    if number == 1 and line.strip().count(b"\r") > 1:
        raise UserError(f"{file}: lines end in carriage returns alone; convert it, e.g. with tr '\\r' '\\n'")
    try:
        return line.decode("utf-8").removeprefix("\ufeff")  # concatenated files have several marks
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1} of the line is 0x{line[error.start]:02x}"
        raise UserError(f"{file}:{number}: not UTF-8 ({where}); convert the file, e.g. with iconv") from error


def parse_object(line: bytes, file: Path, number: int) -> dict:
    """Parse the JSON object in a line of a .jsonl file.

    Raises:
        UserError: with file and line, if there is none.
    """
    text = decoded(line, file, number)
    if text in ("[", "{") or text.startswith("[{"):
        raise UserError(
            f"{file}:{number}: not JSON, one object per line, but an array or an object over several lines; {ARRAY}"
        )
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}:{number}: not JSON ({error}); every line must be an object") from error
    if not isinstance(record, dict):
        raise UserError(f"{file}:{number}: every line must be an object; it is a {type(record).__name__}")
    return record


def check_record(given: dict, columns: Columns, location: str) -> dict[str, str]:
    """Return the wanted strings of a record, stripped; empty if its text is empty.

    Raises:
        UserError: with the location, if a string is missing or too long.
    """
    names = names_of(columns, given)
    if not all(isinstance(given.get(name), str) for name in names):
        raise UserError(f"{location}: {_missing(given, names)}{'' if columns.names else NAMING}")
    record = {key: bounded(given[name].strip(), location) for key, name in zip(columns.keys, names, strict=True)}
    if any(HALF.search(text) for text in record.values()):
        raise UserError(
            f"{location}: the text has half a surrogate pair, which no encoding represents; correct the line"
        )
    if record.get("trg") == "":
        raise UserError(f'{location}: the target "{names[1]}" is empty; give it text, or remove the pair')
    return record if record.get("text") != "" else {}


def _missing(given: dict, names: tuple[str, ...]) -> str:
    wanted = f"every line must be an object with a string {' and '.join(json.dumps(name) for name in names)}"
    wrong = next((name for name in names if name in given and not isinstance(given[name], str)), None)
    if wrong is not None:
        return f'{wanted}; its "{wrong}" is {shown(given[wrong]) if given[wrong] is not None else "null"}'
    known = "; a pair's are src and trg, source and target, or input and output" if names == ("text",) else ""
    return f"{wanted}; its keys are {shown(sorted(given))}{known}"
