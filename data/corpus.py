"""Reading of text and pairs from the sources that `data/sources.py` finds, one record at a time, with its location.

`data/records.py` parses a line, `data/tables.py` reads a table. Other modules import the names of all four from here.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from data.hub_datasets import HubDataset, first_reachable
from data.records import check_record, means_pairs, parse_line, parse_object, read_lines, wanted_names
from data.sources import (
    PAIR,
    Location,
    Source,
    announce,
    find_source,
    fingerprint,
    kind,
    overlap,
    say_once,
    scored_source,
    training_source,
)
from data.tables import is_table, table_columns, table_rows
from utils.errors import UserError
from utils.files import remove_folder
from utils.hub import WrongChecksumError, verify

__all__ = [
    "PAIR", "Keep", "Location", "Source", "announce", "find_source", "fingerprint", "held_out", "holds_pairs",
    "load_hub", "overlap", "read_records", "read_sentences", "say_once", "scored_source", "smallest_part",
    "training_source", "verify_dataset",
]  # fmt: skip

Keep = Callable[[str], bool]


def holds_pairs(source: Source, *, streaming: bool = False) -> bool:
    """Tell whether a source holds pairs instead of text, by its first line or its columns.

    Raises:
        UserError: if it could be both.
    """
    if source.names.given:
        return not source.names.text_column
    if source.hub_name:
        return means_pairs(load_hub(source, streaming=streaming).column_names or (), f"data set {source.hub_name}")
    file = source.files[0]
    if is_table(file):
        return means_pairs(table_columns(file), str(file))
    lines = enumerate(read_lines(file), start=1) if kind(file).startswith(".jsonl") else ()
    found = ((parse_object(line, file, number), number) for number, (line, _) in lines if line.strip())
    record, number = next(found, ({}, 0))
    return means_pairs(record, f"{file}:{number}")


def read_sentences(source: Source, *, keep: Keep | None = None, description: str = "reading") -> Iterator[str]:
    """Yield the texts of `read_records`."""
    return (text for text, _ in read_records(source, keep=keep, description=description))


def read_records(
    source: Source, *, keep: Keep | None = None, description: str = "reading"
) -> Iterator[tuple[str, Location]]:
    """Yield one column of a source, stripped, with locations and a progress bar.

    Empty sentences are left out. Of pairs every record counts, so that both columns stay aligned: a source may be
    empty, a target may not.

    Args:
        source: files or data set, and the column.
        keep: selects records by their text, or by a pair's source.
        description: label of the progress bar.

    Raises:
        UserError: with file and line, if a line is not UTF-8, not JSON, or lacks a string; or if there is no record.
    """
    found = False
    for record, location in _read_hub(source, description) if source.hub_name else _read_files(source, description):
        found = True
        if keep is None or keep(record[source.columns.keys[0]]):
            yield record[source.column], location
    if not found:
        raise UserError(f"{source}: contains no text; one sentence per line is expected")


def _read_files(source: Source, description: str) -> Iterator[tuple[dict[str, str], Location]]:
    size = sum(file.stat().st_size for file in source.files)
    with tqdm(total=size, unit="B", unit_scale=True, desc=description, leave=False, disable=None) as bar:
        for which, file in enumerate(source.files):
            done = bar.n
            if is_table(file):
                yield from ((row, (which, number + 1)) for number, row in table_rows(file, source.columns) if row)
                bar.update(file.stat().st_size)
                continue
            for number, (line, position) in enumerate(read_lines(file), start=1):
                if number % 1000 == 0:
                    bar.update(done + position - bar.n)
                record = parse_line(line, file, number, source.columns)
                if record:
                    yield record, (which, number)


# ---- the hub ---------------------------------------------------------------------------------------------------------


def load_hub(source: Source, *, streaming: bool = False) -> "datasets.Dataset | datasets.IterableDataset":
    """Load a hub data set's split into the hub's cache, or as a stream, which writes nothing to disk."""
    from datasets import load_dataset

    def load(of: HubDataset) -> object:
        split, revision = source.hub_split, of.revision
        try:
            dataset = load_dataset(of.repo, of.configuration, split=split, revision=revision, streaming=streaming)
        except Exception:
            verify(of.repo, "dataset")  # a wrong checksum is the likelier cause
            raise
        if not streaming:
            verify_dataset(of.repo, dataset)
        return dataset

    return first_reachable(source.hub_name, load)


def verify_dataset(repo: str, dataset: "datasets.Dataset") -> None:
    """Check a data set's files against the hub's checksums; if one differs, remove what was built from them.

    Raises:
        WrongChecksumError: if one differs.
    """
    try:
        verify(repo, "dataset")
    except WrongChecksumError:
        for folder in {Path(file["filename"]).parent for file in dataset.cache_files}:
            remove_folder(folder)
        raise


def _read_hub(source: Source, description: str) -> Iterator[tuple[dict[str, str], Location]]:
    dataset = load_hub(source)
    names = wanted_names(source.columns, dataset.column_names, f"data set {source.hub_name}")
    with tqdm(total=len(dataset), desc=description, unit="sentence", leave=False, disable=None) as bar:
        for start, rows in enumerate(dataset.iter(batch_size=1000)):
            for number, texts in enumerate(zip(*(rows[name] for name in names), strict=True)):
                given, location = dict(zip(names, texts, strict=True)), (0, 1000 * start + number)
                if record := check_record(given, source.columns, source.location(location)):
                    yield record, location
            bar.update(len(rows[names[0]]))


# ---- held-out text --------------------------------------------------------------------------------------------------


def held_out(fraction: float) -> Keep:
    """Return the test for the held-out part, a hash of the sentence, so that equal sentences stay together."""
    return _below(int(fraction * 2**64))


def smallest_part(texts: Iterable[str], fraction: float) -> Keep | None:
    """Return a held-out test for a small text, of which `held_out` would take nothing or everything.

    Args:
        texts: the whole text; each sentence takes 8 bytes of memory.
        fraction: share with the smallest hashes; at least one sentence is held out, and one is not.

    Returns:
        None if all sentences are equal.
    """
    hashes = sorted({_hash(text) for text in texts})
    number = min(max(1, int(fraction * len(hashes))), len(hashes) - 1)
    return _below(hashes[number]) if number > 0 else None


def _below(limit: int) -> Keep:
    return lambda sentence: _hash(sentence) < limit


def _hash(sentence: str) -> int:
    return int.from_bytes(hashlib.blake2b(sentence.encode(), digest_size=8).digest(), "big")


if TYPE_CHECKING:
    import datasets
