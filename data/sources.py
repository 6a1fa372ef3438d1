"""Sources of text and pairs (a file, a folder with splits, or a hub data set) and the split of each file.

In a folder, a word in a file's name gives its split, in any case: ptb.train.txt, wiki-train-00000-of-00004.parquet,
qqpDev.jsonl. Words end at any character that is not a letter and before a capital, so latest.txt names no split.
"heldout" is the validation split if there is no other, else the test split if there is no other.
"""

import hashlib
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from data.column_names import UNNAMED, ColumnNames, Columns
from data.hub_datasets import is_hub_name, split_in
from utils.errors import UserError, shown
from utils.files import local_path, open_regular
from utils.job import rank

LINES, TABLES, COMPRESSED = (".txt", ".jsonl"), (".csv", ".tsv", ".json"), (".gz", ".xz", ".zst")
"""Formats with one record per line, and formats whose records take several; suffixes after either."""
SUFFIXES = (*(form + more for form in LINES + TABLES for more in ("", *COMPRESSED)), ".parquet")
SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "validation", "dev", "val"), "test": ("test",)}
"""Names of a hub data set's splits."""
HELD_OUT = "heldout"
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "trn": "train",
    **dict.fromkeys(("valid", "validation", "validate", "validating", "val", "eval", "evaluation"), "valid"),
    **dict.fromkeys(("dev", "devel", "development", "newsdev"), "valid"),
    **dict.fromkeys(("test", "tests", "testing", "tst", "devtest", "newstest"), "test"),
    HELD_OUT: HELD_OUT,
}
"""Words in a file's name, and the split that each means; "set" or "data" may follow directly (testset)."""
NO_CORPUS = {"readme", "license", "licence", "notice", "changelog", "vocab", "merges", "requirements"}
"""Names of files that often lie beside a corpus but do not belong to it."""
PAIR = ("src", "trg")
FEW = 3
"""Largest number of file names in a message."""

KINDS = ".txt, .jsonl, .csv, .tsv or .json, each also with .gz, .xz or .zst, or .parquet"

Location = tuple[int, int]
"""Location of a record in its source: (file index, line from 1), or for a hub data set (0, row from 0).

Rows of .parquet and objects of .json count as lines.
"""


@dataclass(frozen=True)
class Source:
    """One split of a corpus: local files or a hub data set."""

    files: tuple[Path, ...] = ()
    hub_name: str = ""
    hub_split: str = ""
    column: str = "text"
    """Column that is read: text, or src or trg of a pair."""
    names: ColumnNames = UNNAMED
    """Names of the columns in the files."""
    folder: Path | None = field(default=None, compare=False)
    """Folder in which the files were found; None if a file was named."""

    @property
    def columns(self) -> Columns:
        """Strings that a record must have."""
        return Columns(("text",) if self.column == "text" else PAIR, self.names.given)

    @property
    def recipe(self) -> str:
        """Column and its name, which determine the text that is read from the same files."""
        return ":".join([self.column, *self.names.given])

    def location(self, location: Location) -> str:
        """Format a location: file and line, or data set and row."""
        return (
            f"data set {self.hub_name}, row {location[1]}"
            if self.hub_name
            else f"{self.files[location[0]]}:{location[1]}"
        )

    def __str__(self) -> str:
        more = f" and {len(self.files) - 3:,} more files" if len(self.files) > 3 else ""
        return self.hub_name or ", ".join(str(file) for file in self.files[:3]) + more


def kind(file: Path) -> str:
    """Return the suffix of a file's name among `SUFFIXES`, in any case; "" if it has none of them."""
    return next((suffix for suffix in SUFFIXES if file.name.lower().endswith(suffix)), "")


def form(file: Path) -> str:
    """Return the suffix of a file's format without that of a compression."""
    found = kind(file)
    return f".{found.split('.')[1]}" if found else ""


def training_source(data: str, names: ColumnNames = UNNAMED) -> Source:
    """Return the training split of a file, a folder, or a hub data set.

    Raises:
        UserError: if it has no training split.
    """
    source = find_source(data, "train", names)
    if source is None:
        raise UserError(f"{data}: no training split")
    return source


def scored_source(data: str, names: ColumnNames = UNNAMED) -> Source:
    """Return a file itself, or the first of a folder's or data set's test, validation and training split."""
    return find_source(data, "test", names) or find_source(data, "valid", names) or training_source(data, names)


def find_source(data: str, split: str, names: ColumnNames = UNNAMED) -> Source | None:
    """Return a split of `data`; None if `data` exists but has no such split.

    Args:
        data: a file (all training data), a folder whose files name their splits (if none does, all are training data),
            or a hub data set, NAME or NAME:CONFIGURATION.
        split: train, valid or test.
        names: names of the columns.

    Raises:
        UserError: if `data` cannot be read, or the names of its files are ambiguous.
    """
    found = _find(data, split)
    return replace(found, names=names.column_names) if found else None


def _find(data: str, split: str) -> Source | None:
    path = local_path(data)
    if data and path.is_file():
        if not kind(path):
            raise UserError(f"{path}: not a supported kind of file; use one of {KINDS}")
        return Source((path,)) if split == "train" else None
    if data and path.is_dir():
        return _find_in_folder(path, split)
    if data and path.exists():
        open_regular(path).close()  # raises for a pipe, device or socket
    if data and path.is_symlink():
        raise UserError(f"{path}: a link without a target, or to itself; correct it, or give the file")
    looks_like_path = data.startswith((".", "/", "~")) or bool(kind(path)) or not is_hub_name(data)
    if looks_like_path:
        raise UserError(f"{shown(data)[1:-1] or '(no path)'}: no such file or folder")
    repo, _, configuration = data.partition(":")
    if configuration and local_path(repo).exists():
        raise UserError(f"{data}: {repo} is a local file or folder, which has no configurations; give {repo}")
    hub_split = split_in(data, SPLIT_NAMES[split])
    return Source(hub_name=data, hub_split=hub_split) if hub_split else None


# ---- folders ---------------------------------------------------------------------------------------------------------


def split_of(name: str) -> str:
    """Return the split in a file's name: train, valid, test or heldout; "" if there is none.

    Raises:
        UserError: if there are two.
    """
    stem = re.sub(r"(?i)held[-_. ]?out|hold[-_. ]?out", HELD_OUT, _stem(Path(name)))
    found = {SPLIT_WORDS[word] for word in SPLIT_WORDS if _is_word_of(word, stem)}
    if len(found) > 1 and "train" not in found:
        found -= {HELD_OUT}  # heldout_test.txt
    if len(found) > 1:
        raise UserError(f"{name} names two splits ({' and '.join(sorted(found))}); rename it")
    return found.pop() if found else ""


def _is_word_of(word: str, stem: str) -> bool:
    """Tell whether a name contains a word, bounded by other characters than letters or by a change of case."""
    for match in re.finditer(word + "(?:set|data)?", stem, re.IGNORECASE):
        before, own, after = stem[: match.start()][-1:], match[0], stem[match.end() :][:1]
        begins = not before.isalpha() or (before.isupper() != own[0].isupper()) or own[:2].istitle()
        ends = not after.isalpha() or (after.isupper() and not own[-1].isupper()) or (own.isupper() and after.islower())
        if begins and ends:
            return True
    return False


def _stem(file: Path) -> str:
    return file.name[: len(file.name) - len(kind(file))] if kind(file) else file.stem


def _listed(files: Iterable[Path]) -> str:
    names = [shown(file.name)[1:-1] for file in files]
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW:,} more" if len(names) > FEW else "")


def _readable(folder: Path) -> list[Path]:
    """Return a folder's files that may be a corpus, by name, without hidden files, which other programs leave."""
    files = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.is_file() and kind(p))
    files = [file for file in files if _stem(file).lower() not in NO_CORPUS]
    # a table or JSON that names no split may be anything: counts, labels, settings
    sure = [file for file in files if form(file) not in TABLES or _names_split(file)]
    return sure or [file for file in files if form(file) != ".json"]


def _names_split(file: Path) -> bool:
    try:
        return bool(split_of(file.name))
    except UserError:  # two splits, which is reported later
        return True


def _splits_of(folder: Path) -> dict[str, list[Path]]:
    """Return a folder's corpus files by split; "heldout" for held-out files that are neither valid nor test.

    Raises:
        UserError: if the names are ambiguous, or two files seem to hold one text.
    """
    files = _readable(folder)
    by_stem: dict[str, list[Path]] = {}
    by_split: dict[str, list[Path]] = {name: [] for name in ("train", "valid", "test", HELD_OUT, "")}
    for file in files:
        by_stem.setdefault(_stem(file).lower(), []).append(file)
        try:
            by_split[split_of(file.name)].append(file)
        except UserError as error:
            raise UserError(f"{folder}: {error}, move it away, or give one file") from error
    twice = next((same for same in by_stem.values() if len(same) > 1), None)
    if twice:
        raise UserError(f"{folder}: {_listed(twice)} hold one text twice, by their names; keep one, or rename it")
    unnamed = by_split.pop("")
    if unnamed and len(unnamed) < len(files):
        named = [file for file in files if file not in unnamed]
        raise UserError(
            f"{folder}: {_listed(named)} name a split, {_listed(unnamed)} none; put it in the name (train, valid, "
            "test), move the file away, or give one file"
        )
    _require_no_hidden_split(folder, unnamed)
    by_split["train"] += unnamed
    for split in ("valid", "test"):
        if not by_split[split]:
            by_split[split], by_split[HELD_OUT] = by_split[HELD_OUT], []
    return by_split


def _require_no_hidden_split(folder: Path, unnamed: list[Path]) -> None:
    """Refuse to train on both mytrain.txt and mytest.txt, whose names contain a split, though not as a word."""
    training = [file for file in unnamed if "train" in _stem(file).lower()]
    others = [file for file in unnamed if re.search("test|valid|held|hold", _stem(file).lower())]
    if training and others:
        raise UserError(
            f"{folder}: {_listed(others)} beside {_listed(training)}: if these are splits, separate the word "
            "(my_test.txt); if not, rename them, or give one file"
        )


def _find_in_folder(folder: Path, split: str) -> Source | None:
    if not (readable := _readable(folder)):
        card = "; its README.md names the files' origin" if (folder / "README.md").exists() else ""
        named = "; a .json needs a split in its name: train.json" if any(folder.glob("*.json*")) else ""
        raise UserError(
            f"{folder}: no text in this folder; it must contain a file like train.txt ({KINDS}){named}{card}"
        )
    found = _splits_of(folder)[split]
    if len(found) > 1 and split != "train" and not _are_shards(found):
        raise UserError(f"{folder}: {split} is ambiguous: {_listed(found)}; keep one, or give one file")
    if not found and split == "train":
        raise UserError(f"{folder}: contains {_listed(readable)} but no train.txt or train.jsonl; add one")
    return Source(tuple(found), folder=folder) if found else None


def _are_shards(files: list[Path]) -> bool:
    """Tell whether files are shards of one corpus: their names differ only in numbers, or contain N-of-M."""
    alike = len({re.sub(r"\d+", "", file.name) for file in files}) == 1
    return alike or all(re.search(r"\d-of-\d", file.name) for file in files)


# ---- messages on sources ---------------------------------------------------------------------------------------------

_said: set[str] = set()


def announce(parts: dict[str, Source | str]) -> None:
    """Print once on stderr, by one process of a job, which files are read as which split, and which are not read.

    Args:
        parts: the source of each split, or a description of it.
    """
    say_once(summarise(parts))


def say_once(line: str) -> None:
    """Print a line once on stderr, by one process of a job."""
    if rank() == 0 and line not in _said:
        _said.add(line)
        print(line, file=sys.stderr)


def summarise(parts: dict[str, Source | str]) -> str:
    """Return the line that `announce` prints."""
    sources = [part for part in parts.values() if isinstance(part, Source)]
    used = {file for source in sources for file in source.files}
    said = [f"{name}: {_described(part)}" for name, part in parts.items()]
    for folder in dict.fromkeys(source.folder for source in sources if source.folder):
        for split, files in _splits_of(folder).items():
            if rest := [file for file in files if file not in used]:
                said.append(f"{split} is left alone: {_listed(rest)}")
        tables = [file for file in sorted(folder.iterdir()) if form(file) in TABLES and file not in _readable(folder)]
        if tables:
            said.append(f"tables that name no split: {_listed(tables)}")
    return "reading " + "; ".join(said)


def _described(part: Source | str) -> str:
    if isinstance(part, str):
        return part
    return f"{part.hub_name} ({part.hub_split})" if part.hub_name else _listed(part.files)


def overlap(train: Source, valid: Source) -> str:
    """Return a validation file that is training text too, by path or content; "" if there is none."""
    sizes = {file.stat().st_size for file in train.files}
    for file in valid.files:
        if file.stat().st_size in sizes and (file.resolve() in {f.resolve() for f in train.files}):
            return str(file)
        same = [f for f in train.files if f.stat().st_size == file.stat().st_size]
        if same and fingerprint(Source((file,))) in {fingerprint(Source((f,))) for f in same}:
            return str(file)
    return ""


# ---- content ---------------------------------------------------------------------------------------------------------


def fingerprint(source: Source, *, named: bool = False) -> str:
    """Hash a source's content, or a hub data set's name and split, as the hub's cache is keyed by content.

    Args:
        source: the source.
        named: hash the files' names too, as in older runs.
    """
    digest = hashlib.blake2b(f"{source.hub_name}:{source.hub_split}:{source.recipe}".encode(), digest_size=16)
    for file in source.files:
        name = os.fsencode(file.name) if named else kind(file).encode()  # the kind determines the parsing
        digest.update(name + f":{file.stat().st_size}:".encode())
        with open_regular(file) as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
