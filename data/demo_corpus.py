"""Docstring corpus: English sentences from the docstrings of the installed Python packages.

    python -m data.demo_corpus --output out/demo/corpus
    python -m data.demo_corpus --output conditional_data/docstrings --pairs true

The docstrings of Python and of the packages in requirements.txt are read with `ast` (nothing is imported or run),
cut into sentences, cleaned, and split by a hash into train, valid and test. The result is one sentence per line, or
pairs of a function's name and the first sentence of its docstring. No sentence is in two splits, and no pair's name.
"""

import ast
import json
import re
import sysconfig
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import ClassVar

from tqdm import tqdm

from data.corpus import held_out
from utils.command_line import parse, run_script
from utils.errors import UserError
from utils.files import require_writable, written_whole

REQUIREMENTS = Path(__file__).parent.with_name("requirements.txt")
HEADING = re.compile(
    r"(Args|Arguments|Parameters|Returns?|Raises|Examples?|Notes?|See Also|References|Yields|Attributes|Warnings?|Usage"
    r"|Inputs?|Outputs?|Shape|Methods|Todo)\s*:?\s*$"
)
MARKUP = (">>>", "...", ".. ", ":", "@", "|", "+", "#", "=", "~", "`", "$")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
WORD = re.compile(r"(?:[A-Z]?[a-z]+|A|I),?$")
SUMMARY_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9'-]*,?$")
MARKED = re.compile(r":\w+:`~?\.?([^`<]*?)(?: ?<[^`]*>)?`|[`*]")  # :func:`name`, ``code``, *emphasis*
NAME_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")
"""Fields of a node that list statements, in the order of `ast.iter_child_nodes`."""
HOLDERS = (ast.stmt, ast.ExceptHandler, ast.match_case)


@dataclass(frozen=True)
class CorpusArgs:
    """Selection of sentences."""

    group: ClassVar[str] = "corpus"

    output: str = field(metadata={"help": "folder for train.txt, valid.txt, test.txt (or .jsonl)"})
    pairs: bool = field(default=False, metadata={"help": "pairs of a name and its summary, for seq2seq"})
    min_words: int = field(default=5, metadata={"help": "words of the shortest sentence"})
    max_words: int = field(default=14, metadata={"help": "words of the longest sentence"})
    known_words: int = field(
        default=3000, metadata={"help": "number of most frequent words that a sentence may contain"}
    )
    held_out_fraction: float = field(default=0.02, metadata={"help": "share of sentences in valid, and again in test"})
    workers: int = field(default=2, metadata={"help": "processes that read source files"})

    def __post_init__(self) -> None:
        if not 1 <= self.min_words <= self.max_words:
            raise UserError(f"min_words={self.min_words}, max_words={self.max_words}: must be 1 <= min <= max")
        if self.known_words < 1:
            raise UserError(f"known_words={self.known_words} must be at least 1")
        if not 0 < self.held_out_fraction <= 0.4:
            raise UserError(
                f"held_out_fraction={self.held_out_fraction} must lie in (0, 0.4]: valid and test each take it"
            )
        if not 1 <= self.workers <= 64:
            raise UserError(f"workers={self.workers} must lie in 1..64")


def main() -> None:
    """Write the corpus and print its size."""
    (args,) = parse([CorpusArgs], __doc__)
    require_writable("output", Path(args.output), folder=True)
    records = collect(source_files(), args)
    suffix = "jsonl" if args.pairs else "txt"
    parts = split(records, args.held_out_fraction)
    for name, part in parts.items():
        with written_whole(Path(args.output) / f"{name}.{suffix}") as file:
            file.writelines(line_of(*record, pairs=args.pairs) + "\n" for record in part)
    words = sum(len(sentence.split()) for _, sentence in records)
    counts = ", ".join(f"{len(part):,} in {name}.{suffix}" for name, part in parts.items())
    print(f"{len(records):,} {'pairs' if args.pairs else 'sentences'}, {words:,} words in {args.output}: {counts}")


def line_of(name: str, sentence: str, *, pairs: bool) -> str:
    """Return a record as a line of its file."""
    return json.dumps({"src": name, "trg": sentence}, ensure_ascii=False) if pairs else sentence


def source_files() -> list[Path]:
    """Return the Python files of the standard library, of requirements.txt and of its dependencies, without tests."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in library.rglob("*.py") if "site-packages" not in path.parts]
    pending = [line.split("#")[0] for line in REQUIREMENTS.read_text().splitlines()]
    seen: set[str] = set()
    while pending:
        match = re.match(r"\s*([A-Za-z0-9._-]+)", pending.pop())
        name = re.sub(r"[-_.]+", "-", match.group(1)).lower() if match else ""
        if not name or name in seen:
            continue
        seen.add(name)
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        pending += [need for need in package.requires or [] if "extra ==" not in need]
        files += [Path(package.locate_file(file)) for file in package.files or [] if file.suffix == ".py"]
    return sorted({path for path in files if not {"test", "tests", "testing", "idlelib"} & set(path.parts)})


def collect(files: list[Path], args: CorpusArgs) -> list[tuple[str, str]]:
    """Return distinct clean sentences with their names, in the order of the files; for pairs distinct names too.

    Raises:
        UserError: if there are none.
    """
    records: dict[str, tuple[str, str]] = {}
    names: set[str] = set()
    with ProcessPoolExecutor(args.workers) as pool:
        found = pool.map(summaries_of if args.pairs else sentences_of, files, chunksize=32)
        for new in tqdm(found, total=len(files), desc="reading docstrings", unit="file", leave=False, disable=None):
            for name, sentence in new:
                fits = args.min_words <= sentence.count(" ") + 1 <= args.max_words
                if fits and sentence.lower() not in records and not (args.pairs and name in names):
                    records[sentence.lower()] = name, sentence
                    names.add(name)
    frequent = Counter(word for sentence in records for word in words_of(sentence))
    known = {word for word, _ in frequent.most_common(args.known_words)}
    kept = [record for lower, record in records.items() if known.issuperset(words_of(lower))]
    if not kept:
        raise UserError(
            f"no documentation of {args.min_words} to {args.max_words} words found; allow longer or shorter sentences, "
            "or use a Python that is installed with its sources"
        )
    return kept


def documented(file: Path) -> Iterator[tuple[ast.AST, str, str]]:
    """Yield each documented node of a source file: the node, its qualified name, its docstring."""
    try:
        source = file.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError, RecursionError):
        return  # not every installed .py file is meant for this Python
    statements = list(walk_statements(tree))
    inside = {child: node.name for node in statements if isinstance(node, ast.ClassDef) for child in node.body}
    for node in statements:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Module)) and (doc := ast.get_docstring(node)):
            yield node, f"{inside.get(node, '')}.{getattr(node, 'name', '')}", doc


def walk_statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes of `ast.walk` that can hold statements, in its order, without the many expressions."""
    pending = deque([tree])
    while pending:
        node = pending.popleft()
        pending += (child for name in BLOCKS for child in getattr(node, name, ()) if isinstance(child, HOLDERS))
        yield node


def sentences_of(file: Path) -> list[tuple[str, str]]:
    """Return (name, sentence) for the clean sentences of a source file's docstrings."""
    return [
        (name, s)
        for _, name, doc in documented(file)
        for p in paragraphs(doc)
        for s in SENTENCE_END.split(p)
        if is_prose(s)
    ]


def summaries_of(file: Path) -> list[tuple[str, str]]:
    """Return (words of the name, summary) for a source file's functions and classes with a plain summary."""
    found = []
    for node, name, doc in documented(file):
        summary = SENTENCE_END.split(next(paragraphs(doc), ""))[0].removesuffix(".") + "."
        summary = MARKED.sub(r"\1", summary)
        if not isinstance(node, ast.Module) and name_words(name) and is_prose(summary, SUMMARY_WORD):
            found.append((name_words(name), summary))
    return found


def name_words(name: str) -> str:
    """Split `SafeConfigParser.read_file` into "safe config parser . read file"."""
    return " . ".join(" ".join(NAME_PART.findall(part)).lower() for part in name.split(".") if part)


def paragraphs(doc: str) -> Iterator[str]:
    """Yield runs of plain lines, joined; headings, code, tables and markup end a run."""
    run: list[str] = []
    for line in [*doc.splitlines(), ""]:
        text = line.strip()
        item = text.startswith(("- ", "* "))
        if item or not text or text.startswith(MARKUP) or HEADING.match(text) or set(text) <= set("-=~^*_. "):
            if run:
                yield " ".join(run)
            run = [text[2:].strip()] if item else []
        else:
            run.append(text)


def is_prose(sentence: str, word: re.Pattern = WORD) -> bool:
    """Tell whether a sentence has a capital first, a full stop last, and only plain words and commas between."""
    return sentence[:1].isupper() and sentence.endswith(".") and all(map(word.match, sentence[:-1].split(" ")))


def words_of(sentence: str) -> Iterable[str]:
    """Return lower-case words without punctuation."""
    return re.findall(r"[a-z]+", sentence.lower())


def split(records: list[tuple[str, str]], fraction: float) -> dict[str, list[tuple[str, str]]]:
    """Split into train, valid and test by the hash of the lower-cased sentence."""
    in_both, in_valid = held_out(2 * fraction), held_out(fraction)
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "valid": [], "test": []}
    for name, sentence in records:
        key = sentence.lower()
        parts["valid" if in_valid(key) else "test" if in_both(key) else "train"].append((name, sentence))
    return parts


if __name__ == "__main__":
    run_script(main)
