"""Where text and pairs come from: files, folders and hub data sets, one record at a time, each with its place."""

import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from hub import look_for_hub, why_not_given
from process import UserError
from runtime import local_path

if TYPE_CHECKING:
    import datasets

SUFFIXES = (".txt", ".txt.gz", ".txt.xz", ".jsonl", ".jsonl.gz", ".jsonl.xz")
SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "validation", "dev", "val"), "test": ("test",)}
LM1B = (("dvruette/lm1b", None), ("billion-word-benchmark/lm1b", "refs/convert/parquet"), ("FrankCCCCC/lm1b", None))
"""LM1B's own entry is a loading script, which `datasets` no longer runs; these hold the same text as parquet."""

PAIR = ("src", "trg")

Keep = Callable[[str], bool]


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
    by_split = {name: [p for p in readable if p.name.split(".")[0] in SPLIT_NAMES[name]] for name in SPLIT_NAMES}
    unnamed = [p for p in readable if all(p not in named for named in by_split.values())]
    if split == "train" and not by_split["train"]:
        by_split["train"] = unnamed
    found = by_split[split]
    if len(found) > 1 and split != "train":
        raise UserError(f"{folder}: {split} is ambiguous: {', '.join(p.name for p in found)}; keep one")
    if not found and split == "train":
        raise UserError(f"{folder}: it has {', '.join(p.name for p in readable)} but no train.txt or train.jsonl")
    return Source(tuple(found)) if found else None


def holds_pairs(source: Source) -> bool:
    """Whether a source is made of pairs {"src", "trg"} and not of text: its first line, or its columns, decide."""
    if source.hub_name:
        columns = _load_hub(source).column_names
        return "text" not in columns and set(PAIR) <= set(columns)
    file = source.files[0]
    lines = enumerate(_read_lines(file), start=1) if ".jsonl" in file.name else ()
    record = next((_object(line, file, number) for number, (line, _) in lines if line.strip()), {})
    return "text" not in record and any(name in record for name in PAIR)  # half a pair was meant to be one


def read_sentences(source: Source, *, keep: Keep | None = None, description: str = "reading") -> Iterator[str]:
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
    for record in _read_hub(source, description) if source.hub_name else _read_files(source, description):
        found = True
        if keep is None or keep(record[source.columns[0]]):
            yield record[source.column]
    if not found:
        raise UserError(f"{source}: no text in it; one sentence a line is expected")


def _read_files(source: Source, description: str) -> Iterator[dict[str, str]]:
    size = sum(file.stat().st_size for file in source.files)
    with tqdm(total=size, unit="B", unit_scale=True, desc=description, leave=False, disable=None) as bar:
        for file in source.files:
            done = bar.n
            for number, (line, position) in enumerate(_read_lines(file), start=1):
                if number % 1000 == 0:
                    bar.update(done + position - bar.n)
                record = _parse(line, file, number, source.columns)
                if record:
                    yield record


def _read_lines(file: Path) -> Iterator[tuple[bytes, int]]:
    """Lines of a possibly compressed file, each with the position reached in the file as it lies on disk."""
    try:
        with open(file, "rb") as raw:
            opener = {".gz": gzip.open, ".xz": lzma.open}.get(file.suffix)
            with opener(raw, "rb") if opener else raw as stream:
                for line in stream:
                    yield line, raw.tell()
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error


def _parse(line: bytes, file: Path, number: int, columns: tuple[str, ...]) -> dict[str, str]:
    """The wanted strings of a line, stripped; nothing if the line is blank or its text is."""
    text = _decoded(line, file, number)
    if ".jsonl" not in file.name:
        if columns == PAIR:
            raise UserError(f'{file}: pairs are read from .jsonl files, one {{"src": ..., "trg": ...}} a line')
        return {"text": text} if text else {}
    return _checked(_object(line, file, number), columns, f"{file}:{number}") if text else {}


def _decoded(line: bytes, file: Path, number: int) -> str:
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


def _checked(given: dict, columns: tuple[str, ...], place: str) -> dict[str, str]:
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


def _load_hub(source: Source) -> "datasets.Dataset":
    from datasets import load_dataset

    def load(repo: str, revision: str | None) -> object:
        return load_dataset(repo, split=source.hub_split, revision=revision)

    return _first_reachable(source.hub_name, load)


def _read_hub(source: Source, description: str) -> Iterator[dict[str, str]]:
    dataset = _load_hub(source)
    for column in source.columns:
        if column not in dataset.column_names:
            found = ", ".join(dataset.column_names)
            raise UserError(f'data set {source.hub_name}: no column "{column}"; it has {found}')
    with tqdm(total=len(dataset), desc=description, unit="sentence", leave=False, disable=None) as bar:
        for start, rows in enumerate(dataset.iter(batch_size=1000)):
            for number, texts in enumerate(zip(*(rows[column] for column in source.columns), strict=True)):
                given, place = dict(zip(source.columns, texts, strict=True)), f"row {1000 * start + number}"
                if record := _checked(given, source.columns, f"data set {source.hub_name}, {place}"):
                    yield record
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
        digest.update(f"{file.name}:{file.stat().st_size}:".encode())
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
