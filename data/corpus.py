"""Text and pairs, one record at a time, each with its place: the reading of what `data/sources.py` finds.

`data/records.py` reads a line, `data/parquet.py` a table. What other modules need of all four is named here.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from data.parquet import names_of, rows_of
from data.records import check_record, means_pairs, parse_line, parse_object, read_lines, wanted_names
from data.sources import (
    PAIR,
    Place,
    Source,
    announce,
    find_source,
    fingerprint,
    first_reachable,
    kind,
    overlap,
    say_once,
    scored_source,
    training_source,
)
from utils.errors import UserError
from utils.files import remove_folder
from utils.hub import WrongChecksumError, verify

__all__ = [
    "PAIR", "Keep", "Place", "Source", "announce", "find_source", "fingerprint", "held_out", "holds_pairs", "load_hub",
    "overlap", "read_records", "read_sentences", "say_once", "scored_source", "smallest_part", "training_source",
    "verify_dataset",
]  # fmt: skip

Keep = Callable[[str], bool]


def holds_pairs(source: Source, *, streaming: bool = False) -> bool:
    """Whether a source is made of pairs and not of text: its first line, or its columns, decide.

    Raises:
        UserError: if it could be both.
    """
    if source.hub_name:
        return means_pairs(load_hub(source, streaming=streaming).column_names or (), f"data set {source.hub_name}")
    file = source.files[0]
    if kind(file) == ".parquet":
        return means_pairs(names_of(file), str(file))
    lines = enumerate(read_lines(file), start=1) if kind(file).startswith(".jsonl") else ()
    found = ((parse_object(line, file, number), number) for number, (line, _) in lines if line.strip())
    record, number = next(found, ({}, 0))
    return means_pairs(record, f"{file}:{number}")


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
            if kind(file) == ".parquet":
                yield from ((row, (which, number + 1)) for number, row in rows_of(file, source.columns) if row)
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

    return first_reachable(source.hub_name, load)


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
    names = wanted_names(source.columns, dataset.column_names, f"data set {source.hub_name}")
    with tqdm(total=len(dataset), desc=description, unit="sentence", leave=False, disable=None) as bar:
        for start, rows in enumerate(dataset.iter(batch_size=1000)):
            for number, texts in enumerate(zip(*(rows[name] for name in names), strict=True)):
                given, place = dict(zip(source.columns, texts, strict=True)), (0, 1000 * start + number)
                if record := check_record(given, source.columns, source.place(place)):
                    yield record, place
            bar.update(len(rows[names[0]]))


# ---- what is held out ------------------------------------------------------------------------------------------------


def held_out(fraction: float) -> Keep:
    """Whether a sentence belongs to the held-out part: a stable hash of its text, so equal sentences never part."""
    return _below(int(fraction * 2**64))


def smallest_part(texts: Iterable[str], fraction: float) -> Keep | None:
    """Whether a sentence is held out of so few that `held_out` takes none of them, or leaves none.

    Args:
        texts: all of them; they are held in memory as 8 bytes each.
        fraction: the share to take, by the smallest hashes; at least one sentence is taken and one left.

    Returns:
        None if all are one and the same.
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
