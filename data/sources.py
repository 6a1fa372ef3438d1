"""Where text and pairs lie: a file, a folder with its splits, or a hub data set; and which of it is read as what.

A file of a folder belongs to the split that a word of its name says, whatever stands around it and in whatever case:
ptb.train.txt, wiki-train-00000-of-00004.parquet, qqpDev.jsonl. Words end at anything that is no letter and where a
capital begins, so that latest.txt names nothing. "heldout" is validation where nothing else is, and else the test.
"""

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from utils.distributed import rank
from utils.errors import UserError, shown
from utils.files import local_path, open_regular
from utils.hub import look_for_hub, why_not_given

SUFFIXES = (".txt", ".txt.gz", ".txt.xz", ".jsonl", ".jsonl.gz", ".jsonl.xz", ".parquet")
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
"""Words of a file's name that say its split; "set" or "data" may follow without a space (testset)."""
NO_CORPUS = {"readme", "license", "licence", "notice", "changelog", "vocab", "merges", "requirements"}
"""Files of these names stand beside a corpus and are none of it."""
LM1B = (("dvruette/lm1b", None), ("billion-word-benchmark/lm1b", "refs/convert/parquet"), ("FrankCCCCC/lm1b", None))
"""LM1B's own entry is a loading script, which `datasets` no longer runs; these hold the same text as parquet."""
PAIR = ("src", "trg")
FEW = 3
"""Names of files in a message, at most."""
REMEDIES = {
    ".json": 'write one object a line, {"text": ...}, as .jsonl (from an array: jq -c ".[]" FILE > FILE.jsonl)',
    ".csv": 'write its column as .txt, one sentence a line, or as .jsonl, one {"text": ...} a line',
}
REMEDIES[".tsv"] = REMEDIES[".csv"]

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
    folder: Path | None = field(default=None, compare=False)
    """The folder in which the files were found, if it was not they that were named."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The strings a record must have."""
        return ("text",) if self.column == "text" else PAIR

    def place(self, place: Place) -> str:
        """A record's place in words."""
        return f"data set {self.hub_name}, row {place[1]}" if self.hub_name else f"{self.files[place[0]]}:{place[1]}"

    def __str__(self) -> str:
        more = f" and {len(self.files) - 3:,} more files" if len(self.files) > 3 else ""
        return self.hub_name or ", ".join(str(file) for file in self.files[:3]) + more


def kind(file: Path) -> str:
    """Which of `SUFFIXES` a file's name ends in, whatever its case; "" if in none."""
    return next((suffix for suffix in SUFFIXES if file.name.lower().endswith(suffix)), "")


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
        data: a file (all training data), a folder whose files name their splits (if none does, all are training data),
            or the name of a data set on the hub.
        split: train, valid or test.

    Raises:
        UserError: if `data` is nothing that can be read, or its files do not say clearly what they are.
    """
    path = local_path(data)
    if data and path.is_file():
        if not kind(path):
            kinds = f"use one of {', '.join(SUFFIXES)}"
            raise UserError(f"{path}: cannot read this kind of file; {REMEDIES.get(path.suffix.lower(), kinds)}")
        return Source((path,)) if split == "train" else None
    if data and path.is_dir():
        return _find_in_folder(path, split)
    if data and path.exists():
        open_regular(path).close()  # says what it is instead
    if data and path.is_symlink():
        raise UserError(f"{path}: a link that leads nowhere, or to itself; mend it, or give the file")
    looks_like_path = data.startswith((".", "/", "~")) or bool(kind(path))
    if not data or looks_like_path or data.count("/") > 1:
        raise UserError(f"{shown(data)[1:-1] or '(no path)'}: no such file or folder")
    hub_split = _hub_split(data, split)
    return Source(hub_name=data, hub_split=hub_split) if hub_split else None


# ---- folders ---------------------------------------------------------------------------------------------------------


def split_of(name: str) -> str:
    """The split that a file's name says: train, valid, test or heldout; "" if none.

    Raises:
        UserError: if it says two.
    """
    stem = re.sub(r"(?i)held[-_. ]?out|hold[-_. ]?out", HELD_OUT, _stem(Path(name)))
    found = {SPLIT_WORDS[word] for word in SPLIT_WORDS if _stands_in(word, stem)}
    if len(found) > 1 and "train" not in found:
        found -= {HELD_OUT}  # heldout_test.txt
    if len(found) > 1:
        raise UserError(f"{name} names two splits ({' and '.join(sorted(found))}); rename it")
    return found.pop() if found else ""


def _stands_in(word: str, stem: str) -> bool:
    """Whether a word stands in a name as one: between other characters than letters, or where capitals begin or end."""
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
    """What a folder holds that may be a corpus, by name; no hidden files, which other programs leave."""
    files = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.is_file() and kind(p))
    return [file for file in files if _stem(file).lower() not in NO_CORPUS]


def _splits_of(folder: Path) -> dict[str, list[Path]]:
    """Every corpus file of a folder, by the split it is read as; "heldout" if it is none of the three.

    Raises:
        UserError: if the names leave open what is what, or a text seems to be there twice.
    """
    files = _readable(folder)
    by_stem: dict[str, list[Path]] = {}
    by_split: dict[str, list[Path]] = {name: [] for name in ("train", "valid", "test", HELD_OUT, "")}
    for file in files:
        by_stem.setdefault(_stem(file).lower(), []).append(file)
        try:
            by_split[split_of(file.name)].append(file)
        except UserError as error:
            raise UserError(f"{folder}: {error}, move it away, or give the one file that is meant") from error
    twice = next((same for same in by_stem.values() if len(same) > 1), None)
    if twice:
        raise UserError(f"{folder}: {_listed(twice)} are one text twice, by their names; keep one, or rename it")
    unnamed = by_split.pop("")
    if unnamed and len(unnamed) < len(files):
        named = [file for file in files if file not in unnamed]
        raise UserError(
            f"{folder}: {_listed(named)} name a split, {_listed(unnamed)} none; say it in the name (train, valid, "
            "test), move the file away, or give the one file that is meant"
        )
    _require_no_hidden_split(folder, unnamed)
    by_split["train"] += unnamed
    for split in ("valid", "test"):
        if not by_split[split]:
            by_split[split], by_split[HELD_OUT] = by_split[HELD_OUT], []
    return by_split


def _require_no_hidden_split(folder: Path, unnamed: list[Path]) -> None:
    """Refuse to train on all of mytrain.txt and mytest.txt: their names say a split, though not as a word."""
    training = [file for file in unnamed if "train" in _stem(file).lower()]
    others = [file for file in unnamed if re.search("test|valid|held|hold", _stem(file).lower())]
    if training and others:
        raise UserError(
            f"{folder}: {_listed(others)} beside {_listed(training)}: if their names say a split, set it apart "
            "(my_test.txt); if not, rename them, or give the one file that is meant"
        )


def _find_in_folder(folder: Path, split: str) -> Source | None:
    if not (readable := _readable(folder)):
        card = "; its README.md says where the files come from" if (folder / "README.md").exists() else ""
        others = [file for file in sorted(folder.iterdir()) if file.is_file() and file.suffix.lower() in REMEDIES]
        remedy = f"; {_listed(others)}: {REMEDIES[others[0].suffix.lower()]}" if others else card
        kinds = ", ".join(SUFFIXES)
        raise UserError(
            f"{folder}: no text in this folder; it should hold train.txt or train.jsonl (any {kinds}){remedy}"
        )
    found = _splits_of(folder)[split]
    if len(found) > 1 and split != "train" and not _are_shards(found):
        raise UserError(f"{folder}: {split} is ambiguous: {_listed(found)}; keep one, or give the one that is meant")
    if not found and split == "train":
        raise UserError(f"{folder}: it has {_listed(readable)} but no train.txt or train.jsonl")
    return Source(tuple(found), folder=folder) if found else None


def _are_shards(files: list[Path]) -> bool:
    """Whether files are parts of one, by their names: they differ in their numbers alone, or count themselves."""
    alike = len({re.sub(r"\d+", "", file.name) for file in files}) == 1
    return alike or all(re.search(r"\d-of-\d", file.name) for file in files)


# ---- what is said of them --------------------------------------------------------------------------------------------

_said: set[str] = set()


def announce(parts: dict[str, Source | str]) -> None:
    """Say on stderr which files were read as what, and which were not; once, by one process of a job.

    Args:
        parts: by its name a source, or what the part is made of in words.
    """
    say_once(describe(parts))


def say_once(line: str) -> None:
    """Say something on stderr, by one process of a job, if it has not said it before."""
    if rank() == 0 and line not in _said:
        _said.add(line)
        print(line, file=sys.stderr)


def describe(parts: dict[str, Source | str]) -> str:
    """What `announce` says."""
    sources = [part for part in parts.values() if isinstance(part, Source)]
    used = {file for source in sources for file in source.files}
    said = [f"{name}: {_described(part)}" for name, part in parts.items()]
    for folder in dict.fromkeys(source.folder for source in sources if source.folder):
        for split, files in _splits_of(folder).items():
            if rest := [file for file in files if file not in used]:
                said.append(f"{split} is left alone: {_listed(rest)}")
        others = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in REMEDIES]
        if others:
            said.append(f"of no kind that is read: {_listed(others)}")
    return "reading " + "; ".join(said)


def _described(part: Source | str) -> str:
    if isinstance(part, str):
        return part
    return f"{part.hub_name} ({part.hub_split})" if part.hub_name else _listed(part.files)


def overlap(train: Source, valid: Source) -> str:
    """Which file of the training text is validation text too, by path or by content; "" if none."""
    sizes = {file.stat().st_size for file in train.files}
    for file in valid.files:
        if file.stat().st_size in sizes and (file.resolve() in {f.resolve() for f in train.files}):
            return str(file)
        same = [f for f in train.files if f.stat().st_size == file.stat().st_size]
        if same and fingerprint(Source((file,))) in {fingerprint(Source((f,))) for f in same}:
            return str(file)
    return ""


# ---- the hub ---------------------------------------------------------------------------------------------------------


def _hub_candidates(name: str) -> tuple[tuple[str, str | None], ...]:
    return LM1B if name == "lm1b" else ((name, None),)


def _hub_split(name: str, split: str) -> str | None:
    from datasets import get_dataset_split_names

    names = first_reachable(name, lambda repo, revision: get_dataset_split_names(repo, revision=revision))
    wanted = SPLIT_NAMES[split]
    return next((candidate for candidate in wanted if candidate in names), None)


def first_reachable(name: str, call: Callable[[str, str | None], object]) -> object:
    """What `call` makes of the first repository and revision of a data set that the hub gives.

    Raises:
        UserError: if it gives none.
    """
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


# ---- content ---------------------------------------------------------------------------------------------------------


def fingerprint(source: Source, *, named: bool = False) -> str:
    """A hash of a source's content (for a hub data set: its name and split, which the hub's cache keys by content).

    Args:
        source: what is read.
        named: whether the files' names count, as they did for runs begun before content alone did.
    """
    digest = hashlib.blake2b(f"{source.hub_name}:{source.hub_split}:{source.column}".encode(), digest_size=16)
    for file in source.files:
        name = os.fsencode(file.name) if named else kind(file).encode()  # the kind says how it is read
        digest.update(name + f":{file.stat().st_size}:".encode())
        with open_regular(file) as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
