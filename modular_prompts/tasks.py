"""Tasks: a folder with a card (card.json), train.jsonl and test.jsonl, and examples drawn from it by a seed.

The card is an object with "type", for classification and pairs "labels", and if wanted "question", "language" and
"split". By type, a line is

    classification     {"text", "label"}, the label being one of the card's
    pair               {"text_a", "text_b", "label"}
    multiple-choice    {"text", "options", "label"}, the label being the number of the right option, from 0
    extraction         {"question", "text", "answer"}, the answer being a part of the text
    generation         {"src", "trg"}

Without a card, a folder whose lines are pairs is a generation task. Without test.jsonl, valid.jsonl is read. Empty
options at the end of a list are no options: data sets fill lists of unequal length with them.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.records import HALF, MOST_TEXT, decoded, parse_object, read_lines, require_prose
from utils.errors import UserError, shown
from utils.files import local_path, read_text

FIELDS = {
    "classification": ("text",),
    "pair": ("text_a", "text_b"),
    "multiple-choice": ("text",),
    "extraction": ("question", "text"),
    "generation": ("src",),
}
"""Fields of a line that hold its texts, by the type of the task."""
WRITTEN = {"extraction": "answer", "generation": "trg"}
"""Field that holds the answer, of tasks whose answer is a text of its own."""
LABELLED = ("classification", "pair")
"""Types whose card has the labels."""
MOST_OPTIONS = 1000
HALVED = "has half of a surrogate pair, which is no character; remove it"
UNEVEN = 1.2
"""Frequency of a label, relative to the mean, above which labels are uneven."""


@dataclass(frozen=True)
class Row:
    """A row of a task."""

    texts: tuple[str, ...]
    """One text, or two of a pair."""
    options: tuple[str, ...]
    """Possible answers."""
    label: int
    """Number of the right one; -1 if the answer is a text."""
    answer: str = ""
    """The right answer, where it is a text of its own."""

    @property
    def target(self) -> str:
        """The right answer as a text."""
        return self.answer or self.options[self.label]


@dataclass(frozen=True)
class Card:
    """What a task asks."""

    name: str
    kind: str
    """A key of `FIELDS`."""
    labels: tuple[str, ...]
    """Answers of all rows; empty if these differ by row."""
    question: str = ""
    language: str = "en"

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of a line that hold its texts."""
        return FIELDS[self.kind]

    @property
    def spaced(self) -> bool:
        """Whether its language separates words by spaces."""
        return not self.language.startswith(("zh", "ja"))

    def entries(self) -> dict:
        """Return the content of card.json."""
        known = {"labels": list(self.labels)} if self.labels else {}
        return {"type": self.kind, **known, "question": self.question, "language": self.language}


@dataclass(frozen=True)
class Task:
    """A task with its rows."""

    card: Card
    train: list[Row]
    test: list[Row]

    @property
    def has_options(self) -> bool:
        """Whether an answer is one of several options."""
        return self.card.kind not in WRITTEN


def load_task(folder: str | Path) -> Task:
    """Read a task's folder.

    Raises:
        UserError: with file and line, if something is missing or does not fit the card.
    """
    path = local_path(folder)
    if not path.is_dir():
        raise UserError(f"task {path}: no such folder; it must contain card.json, train.jsonl and test.jsonl")
    card = read_card(path)
    test = path / ("valid.jsonl" if (path / "valid.jsonl").exists() else "test.jsonl")
    test = path / "test.jsonl" if (path / "test.jsonl").exists() else test
    return Task(card, _read_rows(path / "train.jsonl", card), _read_rows(test, card))


def find_tasks(names: str, split: str = "", language: str = "") -> list[Path]:
    """Return folders of tasks.

    Args:
        names: folders by comma; one without train.jsonl stands for the folders of tasks in it.
        split, language: keep the tasks whose card has these entries; "": all.

    Raises:
        UserError: if a folder holds no task, two tasks have one name, or none is left.
    """
    found: list[Path] = []
    if not names.strip(" ,"):
        raise UserError("tasks is empty; give folders with card.json, train.jsonl and test.jsonl")
    for name in filter(None, map(str.strip, names.split(","))):
        folder = local_path(name)
        inside = [folder] if (folder / "train.jsonl").exists() else sorted(folder.glob("*/train.jsonl"))
        if not inside:
            raise UserError(f"tasks={name}: no task there; give folders with card.json, train.jsonl and test.jsonl")
        found += [path if path == folder else path.parent for path in inside]
    for path in found:
        _require_utf8(path.resolve().name)
    kept = [path for path in found if _is_wanted(path, {"split": split, "language": language})]
    if not kept:
        raise UserError(f"tasks={names}: none is left with split={split!r}, language={language!r}; give other values")
    twice = [path for i, path in enumerate(kept) if path.resolve().name in {other.resolve().name for other in kept[:i]}]
    if twice:
        raise UserError(f"tasks={names}: two have the name {twice[0].resolve().name}; rename a folder")
    return kept


def _require_utf8(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"tasks: {name!r} is a path that is not UTF-8; rename it") from error


def _is_wanted(folder: Path, wanted: dict[str, str]) -> bool:
    wanted = {name: value for name, value in wanted.items() if value}
    if not wanted:
        return True
    read_card(folder)  # checks it
    entries = json.loads(read_text(folder / "card.json")) if (folder / "card.json").exists() else {}
    return all(str(entries.get(name, "en" if name == "language" else "")) == value for name, value in wanted.items())


def read_card(folder: Path) -> Card:
    """Read card.json of a task.

    Raises:
        UserError: naming the file, if it is missing or wrong.
    """
    file, name = folder / "card.json", folder.resolve().name
    try:
        return checked_card(json.loads(read_text(file)), name, str(file))
    except UserError:
        raise
    except FileNotFoundError as error:
        if _holds_pairs(folder / "train.jsonl"):
            return Card(name, "generation", ())
        raise UserError(f"{file}: no such file; it names the type, the labels and the question of a task") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({error}); correct it") from error


def _holds_pairs(file: Path) -> bool:
    if not file.is_file():
        return False
    line = next((line for line, _ in read_lines(file) if line.strip()), "{}")
    return {"src", "trg"} <= parse_object(line, file, 1).keys()


def checked_card(entries: object, name: str, location: str) -> Card:
    """Return a task's card.

    Args:
        entries: its content.
        name: the task's name.
        location: for messages.

    Raises:
        UserError: if an entry is wrong.
    """
    if not isinstance(entries, dict):
        raise UserError(f"{location}: must hold an object; it holds {shown(entries)}")
    kind, labels, question = entries.get("type"), entries.get("labels") or [], entries.get("question", "")
    if not isinstance(kind, str) or kind not in FIELDS:
        raise UserError(f"{location}: type={shown(kind)} must be one of {', '.join(FIELDS)}")
    if not isinstance(labels, list) or not all(isinstance(label, str) and label.strip() for label in labels):
        raise UserError(f"{location}: labels={shown(labels)} must be a list of texts that are not empty")
    if not isinstance(question, str):
        raise UserError(f"{location}: question={shown(question)} must be a text")
    if half := next((text for text in (question, *labels) if HALF.search(text)), ""):
        raise UserError(f"{location}: {shown(half)} {HALVED}")
    if kind in LABELLED and not 2 <= len(set(labels)) == len(labels) <= MOST_OPTIONS:
        raise UserError(
            f"{location}: labels={shown(labels)}: a task of this type needs 2 to {MOST_OPTIONS} different ones"
        )
    language = str(entries.get("language", "en"))
    return Card(name, kind, tuple(labels) if kind in LABELLED else (), question, language)


def _read_rows(file: Path, card: Card) -> list[Row]:
    lines = enumerate(read_lines(file), start=1)
    rows = [_row(parse_object(line, file, i), card, f"{file}:{i}") for i, (line, _) in lines if line.strip()]
    if not rows:
        raise UserError(f"{file}: empty; a task needs rows")
    return rows


def read_inputs(file: Path, card: Card) -> list[tuple[Row, dict]]:
    """Read rows whose answer is to be predicted, and the entries of their lines.

    A .jsonl file has lines as in train.jsonl, with or without an answer, and a .txt file a text on each.

    Raises:
        UserError: with file and line, if a row does not fit the card.
    """
    suffixes = [suffix.lower() for suffix in file.suffixes]
    as_json = ".jsonl" in suffixes
    if not as_json and (".txt" not in suffixes or len(card.fields) > 1 or card.kind == "multiple-choice"):
        texts = "" if len(card.fields) > 1 or card.kind == "multiple-choice" else ", or a .txt file of texts"
        raise UserError(f"{file}: a row of {card.name} needs {' and '.join(card.fields)}; give a .jsonl file{texts}")
    rows = []
    for i, (line, _) in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        entries = parse_object(line, file, i) if as_json else {card.fields[0]: decoded(line, file, i)}
        if not rows and not as_json:
            require_prose(entries[card.fields[0]], file)
        texts = _texts(entries, card, f"{file}:{i}")
        rows.append((Row(texts, card.labels or _options(entries, card, f"{file}:{i}"), -1), entries))
    if not rows:
        raise UserError(f"{file}: empty; give rows")
    return rows


def _row(entries: dict, card: Card, location: str) -> Row:
    texts = _texts(entries, card, location)
    if card.kind in WRITTEN:
        return _written_row(texts, entries.get(WRITTEN[card.kind]), card, location)
    label = entries.get("label")
    if card.labels:
        if label not in card.labels:
            raise UserError(
                f"{location}: label={shown(label)} is not in the card; it has {', '.join(card.labels[:20])}"
            )
        return Row(texts, card.labels, card.labels.index(label))
    options = _options(entries, card, location)
    if type(label) is not int or not 0 <= label < len(options):
        raise UserError(f"{location}: label={shown(label)} must be the number of an option, 0..{len(options) - 1}")
    return Row(texts, options, label)


def _texts(entries: dict, card: Card, location: str) -> tuple[str, ...]:
    texts = tuple(entries.get(name) for name in FIELDS[card.kind])
    if not all(isinstance(text, str) and text.strip() and len(text) <= MOST_TEXT for text in texts):
        names, found = " and ".join(FIELDS[card.kind]), ", ".join(map(shown, texts))
        raise UserError(
            f"{location}: a row of this task needs {names}, not empty, with at most {MOST_TEXT:,} characters; it has "
            f"{found}"
        )
    if half := next((text for text in texts if HALF.search(text)), ""):
        raise UserError(f"{location}: {shown(half)} {HALVED}")
    return texts


def _options(entries: dict, card: Card, location: str) -> tuple[str, ...]:
    """Return the options of a row of multiple choice; none for types whose answers are texts."""
    if card.kind in WRITTEN:
        return ()
    options = entries.get("options")
    while isinstance(options, list) and options and options[-1] == "":
        options = options[:-1]
    if not isinstance(options, list) or not 2 <= len(options) <= MOST_OPTIONS:
        raise UserError(f"{location}: options={shown(options)} must be a list of 2 to {MOST_OPTIONS} texts")
    if not all(isinstance(option, str) and option.strip() for option in options):
        raise UserError(f"{location}: options={shown(options)}: each must be a text that is not empty")
    if half := next((option for option in options if HALF.search(option)), ""):
        raise UserError(f"{location}: {shown(half)} {HALVED}")
    return tuple(options)


def _written_row(texts: tuple[str, ...], answer: object, card: Card, location: str) -> Row:
    name = WRITTEN[card.kind]
    if not isinstance(answer, str) or not answer.strip() or len(answer) > MOST_TEXT or HALF.search(answer):
        raise UserError(f"{location}: {name}={shown(answer)} must be a text of at most {MOST_TEXT:,} characters")
    if card.kind == "extraction" and answer.strip() not in texts[-1]:
        raise UserError(f"{location}: answer={shown(answer)} does not occur in the text; it must be a part of it")
    return Row(texts, (), -1, answer.strip())


def find_answer(answer: str, text: str) -> int:
    """Return where an answer begins in a text, as whole words if it occurs so; -1 if it does not occur."""
    found = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text)
    return found.start() if found else text.find(answer)


def majority(rows: Sequence[Row]) -> float:
    """Return the share of the most frequent label."""
    return Counter(row.label for row in rows).most_common(1)[0][1] / len(rows)


def is_uneven(card: Card, labels: Sequence[int]) -> bool:
    """Return whether the most frequent label is far more frequent than the mean, so that accuracy says little."""
    return bool(card.labels) and Counter(labels).most_common(1)[0][1] / len(labels) > UNEVEN / len(card.labels)


def macro_f1(choices: Sequence[int], labels: Sequence[int]) -> float:
    """Return the mean over the labels that occur of F1 = 2 TP / (2 TP + FP + FN)."""
    scores = []
    for label in sorted(set(labels)):
        hits = sum(c == label == t for c, t in zip(choices, labels, strict=True))
        wrong = sum((c == label) != (t == label) for c, t in zip(choices, labels, strict=True))
        scores.append(2 * hits / (2 * hits + wrong))
    return sum(scores) / len(scores)
