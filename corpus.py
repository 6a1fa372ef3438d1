"""Where text and pairs come from: files, folders and hub data sets, one record at a time, each with its place."""

import gzip
import hashlib
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tqdm import tqdm

from files import local_path, remove_folder
from hub import WrongChecksumError, first_line, look_for_hub, verify, why_not_given
from process import UserError

if TYPE_CHECKING:
    import datasets
    import pyarrow.parquet

SUFFIXES = (".txt", ".txt.gz", ".txt.xz", ".jsonl", ".jsonl.gz", ".jsonl.xz", ".parquet")
MOST_LINE = 2**24
"""Bytes in a line, its end included."""
SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "validation", "dev", "val"), "test": ("test",)}
LM1B = (("dvruette/lm1b", None), ("billion-word-benchmark/lm1b", "refs/convert/parquet"), ("FrankCCCCC/lm1b", None))
"""LM1B's own entry is a loading script, which `datasets` no longer runs; these hold the same text as parquet."""

PAIR = ("src", "trg")

Keep = Callable[[str], bool]
Place = tuple[int, int]
"""Where a record stands in its source: which file, and the line in it from 1; of a hub data set 0, and the row."""


@dataclass(frozen=True)
class Source:
    """One split of a corpus: either local files or a hub data set."""

    files: tuple[Path, ...] = ()
    hub_name: str = ""
    hub_split: str = ""
    column: str = "text"
    """What is read of each record: text, or src or trg of a pair."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The strings a record must have."""
        return ("text",) if self.column == "text" else PAIR

    def place(self, place: Place) -> str:
        """In words."""
        return f"data set {self.hub_name}, row {place[1]}" if self.hub_name else f"{self.files[place[0]]}:{place[1]}"

    def __str__(self) -> str:
        return self.hub_name or ", ".join(str(file) for file in self.files)


def training_source(data: str) -> Source:
    """Where the training text of `data` is: a file, a folder, or a data set on the hub.

    Raises:
        UserError: if there is none.
    """
    source = find_source(data, "train")
    if source is None:
        raise UserError(f"{data}: it has no training split")
    return source


def scored_source(data: str) -> Source:
    """The file itself, or a folder's or data set's test split, or failing that its validation or training split."""
    return find_source(data, "test") or find_source(data, "valid") or training_source(data)


def find_source(data: str, split: str) -> Source | None:
    """The files or hub data set that hold `split` of `data`; None if `data` exists but has no such split.

    Args:
        data: a file (all training data), a folder with train / valid / test files (unnamed ones are training data), or
            the name of a data set on the hub.
        split: train, valid or test.

    Raises:
        UserError: if `data` is nothing that can be read.
    """
    path = local_path(data)
    if data and path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"{path}: cannot read this kind of file; use one of {', '.join(SUFFIXES)}")
        return Source((path,)) if split == "train" else None
    if data and path.is_dir():
        return _find_in_folder(path, split)
    looks_like_path = data.startswith((".", "/", "~")) or data.endswith(SUFFIXES)
    if not data or looks_like_path or data.count("/") > 1:
        raise UserError(f"{data or '(no path)'}: no such file or folder")
    hub_split = _hub_split(data, split)
    return Source(hub_name=data, hub_split=hub_split) if hub_split else None


def _find_in_folder(folder: Path, split: str) -> Source | None:
    readable = sorted(p for p in folder.iterdir() if p.is_file() and p.name.endswith(SUFFIXES))
    if not readable:
        card = "; its README.md says where the files come from" if (folder / "README.md").exists() else ""
        kinds = ", ".join(SUFFIXES)
        raise UserError(
            f"{folder}: no text in this folder; it should hold train.txt or train.jsonl (any {kinds}){card}"
        )

    def of(path: Path, split: str) -> bool:  # train.txt, train-00000-of-00064.parquet
        return path.name.split(".")[0].split("-")[0] in SPLIT_NAMES[split]

    by_split = {name: [p for p in readable if of(p, name)] for name in SPLIT_NAMES}
    unnamed = [p for p in readable if all(p not in named for named in by_split.values())]
    if split == "train" and not by_split["train"]:
        by_split["train"] = unnamed
    found = by_split[split]
    if len(found) > 1 and split != "train" and any("-" not in p.name for p in found):
        raise UserError(f"{folder}: {split} is ambiguous: {', '.join(p.name for p in found)}; keep one")
    if not found and split == "train":
        raise UserError(f"{folder}: it has {', '.join(p.name for p in readable)} but no train.txt or train.jsonl")
    return Source(tuple(found)) if found else None


def holds_pairs(source: Source, *, streaming: bool = False) -> bool:
    """Whether a source is made of pairs {"src", "trg"} and not of text: its first line, or its columns, decide."""
    if source.hub_name:
        columns = load_hub(source, streaming=streaming).column_names or ()
        return "text" not in columns and set(PAIR) <= set(columns)
    file = source.files[0]
    if file.suffix == ".parquet":
        names = parquet_of(file).schema_arrow.names
        return "text" not in names and set(PAIR) <= set(names)
    lines = enumerate(read_lines(file), start=1) if ".jsonl" in file.name else ()
    record = next((_object(line, file, number) for number, (line, _) in lines if line.strip()), {})
    return "text" not in record and any(name in record for name in PAIR)  # half a pair was meant to be one


def read_sentences(source: Source, *, keep: Keep | None = None, description: str = "reading") -> Iterator[str]:
    """The texts of `read_records`."""
    return (text for text, _ in read_records(source, keep=keep, description=description))


def read_records(
    source: Source, *, keep: Keep | None = None, description: str = "reading"
) -> Iterator[tuple[str, Place]]:
    """One column of a source, stripped, with a progress bar: every non-empty sentence, or one side of every pair.

    A source may be empty, a target may not: what is left of a pair's columns stays aligned.

    Args:
        source: what to read.
        keep: which to take; of a pair, by its source.
        description: for the progress bar.

    Raises:
        UserError: naming file and line, if a line is not UTF-8, not JSON, or lacks what it must have; or if there is
            none.
    """
    found = False
    for record, place in _read_hub(source, description) if source.hub_name else _read_files(source, description):
        found = True
        if keep is None or keep(record[source.columns[0]]):
            yield record[source.column], place
    if not found:
        raise UserError(f"{source}: no text in it; one sentence a line is expected")


def _read_files(source: Source, description: str) -> Iterator[tuple[dict[str, str], Place]]:
    size = sum(file.stat().st_size for file in source.files)
    with tqdm(total=size, unit="B", unit_scale=True, desc=description, leave=False, disable=None) as bar:
        for which, file in enumerate(source.files):
            done = bar.n
            if file.suffix == ".parquet":
                yield from ((row, (which, number + 1)) for number, row in rows_of(file, source.columns) if row)
                bar.update(file.stat().st_size)
                continue
            for number, (line, position) in enumerate(read_lines(file), start=1):
                if number % 1000 == 0:
                    bar.update(done + position - bar.n)
                record = parse_line(line, file, number, source.columns)
                if record:
                    yield record, (which, number)


def read_lines(file: Path) -> Iterator[tuple[bytes, int]]:
    """Lines of a possibly compressed file, each with the position reached in the file as it lies on disk."""
    try:
        with open(file, "rb") as raw:
            opener = {".gz": gzip.open, ".xz": lzma.open}.get(file.suffix)
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


def parquet_of(file: Path) -> "pyarrow.parquet.ParquetFile":
    """An open .parquet file.

    Raises:
        UserError: if it is none.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a .parquet file, or damaged ({first_line(error)})") from error


def rows_of(
    file: Path, columns: tuple[str, ...], start: int = 0, end: int = 2**63
) -> Iterator[tuple[int, dict[str, str]]]:
    """Some rows of a .parquet file, each with its number; a row without text is an empty record.

    Raises:
        UserError: if a column is missing, or a row is no text.
    """
    import pyarrow

    table = parquet_of(file)
    lacking = [column for column in columns if column not in table.schema_arrow.names]
    if lacking:
        found = ", ".join(table.schema_arrow.names[:8])
        raise UserError(f'{file}: no column "{lacking[0]}"; it has {found}')
    begin = 0
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        if begin < end and begin + rows > start:
            try:
                number = begin
                for batch in table.iter_batches(1000, row_groups=[group], columns=list(columns)):
                    for row in batch.to_pylist():
                        if start <= number < end:
                            yield number, check_record(row, columns, f"{file}:{number + 1}")
                        number += 1
            except (pyarrow.ArrowException, OSError) as error:
                raise UserError(f"{file}: damaged ({first_line(error)})") from error
        begin += rows


def parse_line(line: bytes, file: Path, number: int, columns: tuple[str, ...]) -> dict[str, str]:
    """The wanted strings of a line, stripped; nothing if the line is blank or its text is."""
    text = _decoded(line, file, number)
    if ".jsonl" not in file.name:
        if columns == PAIR:
            raise UserError(f'{file}: pairs are read from .jsonl files, one {{"src": ..., "trg": ...}} a line')
        return {"text": text} if text else {}
    return check_record(_object(line, file, number), columns, f"{file}:{number}") if text else {}


def _decoded(line: bytes, file: Path, number: int) -> str:
    if b"\0" in line:
        raise UserError(f"{file}:{number}: it has a NUL byte; if the file is UTF-16, convert it, e.g. with iconv")
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1} of the line is 0x{line[error.start]:02x}"
        raise UserError(f"{file}:{number}: not UTF-8 ({where}); convert the file, e.g. with iconv") from error


def _object(line: bytes, file: Path, number: int) -> dict:
    try:
        record = json.loads(_decoded(line, file, number))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}:{number}: not JSON ({error}); every line must be an object") from error
    if not isinstance(record, dict):
        raise UserError(f"{file}:{number}: every line must be an object; it is a {type(record).__name__}")
    return record


def check_record(given: dict, columns: tuple[str, ...], place: str) -> dict[str, str]:
    """The wanted strings of a record, stripped; nothing if its text is empty.

    Raises:
        UserError: naming the place, if it lacks one of them.
    """
    if not all(isinstance(given.get(name), str) for name in columns):
        wanted = " and ".join(f'"{name}"' for name in columns)
        raise UserError(f"{place}: every line must be an object with a string {wanted}; its keys are {sorted(given)}")
    record = {name: given[name].strip() for name in columns}
    if any("\ud800" <= character <= "\udfff" for text in record.values() for character in text):
        raise UserError(f"{place}: the text has half a surrogate pair, which no encoding can hold; mend the line")
    if record.get("trg") == "":
        raise UserError(f'{place}: the target "trg" is empty; give its text, or leave the pair out')
    return record if record.get("text") != "" else {}


def _hub_candidates(name: str) -> tuple[tuple[str, str | None], ...]:
    return LM1B if name == "lm1b" else ((name, None),)


def _hub_split(name: str, split: str) -> str | None:
    from datasets import get_dataset_split_names

    names = _first_reachable(name, lambda repo, revision: get_dataset_split_names(repo, revision=revision))
    wanted = SPLIT_NAMES[split]
    return next((candidate for candidate in wanted if candidate in names), None)


def load_hub(source: Source, *, streaming: bool = False) -> "datasets.Dataset | datasets.IterableDataset":
    """A hub data set's split, downloaded to the hub's cache; or a stream of it, which leaves nothing on the disk."""
    from datasets import load_dataset

    def load(repo: str, revision: str | None) -> object:
        try:
            dataset = load_dataset(repo, split=source.hub_split, revision=revision, streaming=streaming)
        except Exception:
            verify(repo, "dataset")  # the likelier reason, if it is one
            raise
        if not streaming:
            verify_dataset(repo, dataset)
        return dataset

    return _first_reachable(source.hub_name, load)


def verify_dataset(repo: str, dataset: "datasets.Dataset") -> None:
    """Refuses a data set whose files are not what the hub says; what was made of them is removed with them.

    Raises:
        WrongChecksumError: if so.
    """
    try:
        verify(repo, "dataset")
    except WrongChecksumError:
        for folder in {Path(file["filename"]).parent for file in dataset.cache_files}:
            remove_folder(folder)
        raise


def _read_hub(source: Source, description: str) -> Iterator[tuple[dict[str, str], Place]]:
    dataset = load_hub(source)
    for column in source.columns:
        if column not in dataset.column_names:
            found = ", ".join(dataset.column_names)
            raise UserError(f'data set {source.hub_name}: no column "{column}"; it has {found}')
    with tqdm(total=len(dataset), desc=description, unit="sentence", leave=False, disable=None) as bar:
        for start, rows in enumerate(dataset.iter(batch_size=1000)):
            for number, texts in enumerate(zip(*(rows[column] for column in source.columns), strict=True)):
                given, place = dict(zip(source.columns, texts, strict=True)), (0, 1000 * start + number)
                if record := check_record(given, source.columns, source.place(place)):
                    yield record, place
            bar.update(len(rows[source.column]))


def _first_reachable(name: str, call: Callable[[str, str | None], object]) -> object:
    look_for_hub()
    tried = []
    for repo, revision in _hub_candidates(name):
        try:
            return call(repo, revision)
        except Exception as error:  # the hub fails in many ways, of many types; each is a reason to try the next name
            tried.append(f"{repo}: {why_not_given(error)}")
    raise UserError(
        f"{name}: no such file or folder, and the hub did not give a data set of that name ({'; '.join(tried)}). "
        "Offline: give a .txt or .jsonl file, or a folder with train.txt"
    )


def held_out(fraction: float) -> Keep:
    """Whether a sentence belongs to the held-out part: a stable hash of its text, so equal sentences never part."""
    limit = int(fraction * 2**64)
    return lambda sentence: int.from_bytes(hashlib.blake2b(sentence.encode(), digest_size=8).digest(), "big") < limit


def fingerprint(source: Source) -> str:
    """A hash of a source's content (for a hub data set: its name and split, which the hub's cache keys by content)."""
    digest = hashlib.blake2b(f"{source.hub_name}:{source.hub_split}:{source.column}".encode(), digest_size=16)
    for file in source.files:
        digest.update(os.fsencode(file.name) + f":{file.stat().st_size}:".encode())
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
