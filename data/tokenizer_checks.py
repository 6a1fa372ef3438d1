"""Bounds on tokenizers from other sources, checked before and after the library builds them, to bound their memory.

A tokenizer.json is a small program: steps that replace, split and join text, each applied to the result of the last.
Forty steps that double a text make a terabyte. Remaining failures are panics of the library, turned into a UserError.
"""

import base64
import json
import math
import re
import struct
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.plain_text import errors_in_one_line, without_panic_messages
from utils.errors import UserError, shown
from utils.files import read_bytes

MOST_FILE = 2**28
"""Bytes of a tokenizer's file."""
MOST_STEPS = 64
"""Steps of a normalizer, pre-tokenizer, decoder or post-processor, and their depth of nesting."""
MOST_ENTRY = 1000
"""Characters of an entry, of a step's replacement, and of a word for WordPiece."""
MOST_GROWTH = 256
"""Characters that the steps make of one character."""
MOST_PATTERN = 2**20
"""Characters of a regular expression."""
MOST_REPEATS = 10**5
"""Product of the repetition counts in a regular expression."""
MOST_ADDED = 50_000
"""Tokens added to a model's own."""
MOST_ENTRIES = 10**7
"""Ids of a vocabulary; a network needs a row for each."""
JSON_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
ROLES = ("mask", "pad", "cls", "sep")
PROBES = [
    "",
    " ",
    "The cat's 12 hats, in [rows].",
    "Ünïcödé ﬁ ½ １２\u00a0日本語 हिन्दी 👨‍👩‍👧 \U0001f600\u0301",
    "a" * 300,
]
REPEATS = re.compile(r"(?<!\\x)(?<!\\p)(?<!\\P)\{(\d+)(?:,(\d*))?\}")


def check_tokenizer_files(folder: Path) -> None:
    """Check the files of a tokenizer's folder before they are loaded.

    Raises:
        UserError: with the file and the value out of bounds.
    """
    for name in JSON_FILES:
        if (folder / name).exists():
            found = _read_json(folder / name)
            if name == "tokenizer.json":
                check_steps(found, f"tokenizer {folder / name}")
    for name in ("vocab.txt", "merges.txt"):
        if (folder / name).exists():
            read_bytes(folder / name, MOST_FILE)
    if not (folder / "tokenizer.json").exists():  # transformers then converts a .model file
        for file in folder.glob("*.model"):
            check_pieces(read_bytes(file, MOST_FILE), f"tokenizer {file}")


def _read_json(file: Path) -> object:
    try:
        content = read_bytes(file)  # at most 64 MiB: parsed JSON takes up to 30 times as much
        found = json.loads(content)
        if b"\\ud" in content.lower():
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"tokenizer {file}: contains half a surrogate pair, which is not a character") from error
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        where = f"cannot read the tokenizer in {file.parent}: {file.name}"
        raise UserError(f"{where} is not JSON ({shown(str(error))})") from error
    if not isinstance(found, dict):
        raise UserError(f"cannot read the tokenizer in {file.parent}: {file.name} is not a JSON object")
    return found


def check_steps(whole: dict, name: str) -> None:
    """Check the steps, entries and regular expressions of a tokenizer.json.

    Args:
        whole: content of the file.
        name: name of the tokenizer, for the message.

    Raises:
        UserError: with the value and its bound.
    """
    for part in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        steps = list(_steps(whole.get(part), f"{name}: its {part}"))
        if len(steps) > MOST_STEPS:
            raise UserError(
                f"{name}: its {part} has {len(steps):,} steps, more than {MOST_STEPS}; give another tokenizer"
            )
        growth = math.prod(_growth(step, f"{name}: its {part}") for step in steps)
        if growth > MOST_GROWTH:
            made = f"its {part} makes up to {growth:.3g} characters of one"
            raise UserError(f"{name}: {made}, more than {MOST_GROWTH}; give another tokenizer")
    model, added = whole.get("model"), whole.get("added_tokens")
    if isinstance(added, list) and len(added) > MOST_ADDED:
        raise UserError(f"{name}: {len(added):,} added_tokens, more than {MOST_ADDED:,}; remove some")
    if isinstance(model, dict):
        longest = model.get("max_input_chars_per_word", 100)
        if not isinstance(longest, int) or not 0 <= longest <= MOST_ENTRY:
            raise UserError(f"{name}: max_input_chars_per_word={shown(longest)} must lie in 0..{MOST_ENTRY}")
        for entry in model.get("vocab") or ():  # a dictionary's keys, or pairs of piece and score
            check_entry(entry[0] if isinstance(entry, list) and entry else entry, name)
    for token in added if isinstance(added, list) else ():
        check_entry(token.get("content") if isinstance(token, dict) else token, name)


def check_entry(entry: object, name: str) -> None:
    """Check the length of a vocabulary's entry.

    Raises:
        UserError: with the length and its bound.
    """
    if isinstance(entry, str) and len(entry) > MOST_ENTRY:
        raise UserError(
            f"{name}: an entry of {len(entry):,} characters, more than {MOST_ENTRY} ({shown(entry)}); remove it"
        )


def check_pieces(content: bytes, name: str) -> None:
    """Check the lengths of a SentencePiece model's pieces, since the conversion tries all splits of each.

    Raises:
        UserError: with the piece.
    """
    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        return  # loading it raises the error
    for piece in model.pieces:
        check_entry(piece.piece, name)


def _steps(part: object, name: str, depth: int = 0) -> Iterator[dict]:
    """Yield every object with a type in a part of a tokenizer.json, at any depth."""
    if depth > MOST_STEPS:
        raise UserError(f"{name} has nested steps, deeper than {MOST_STEPS}; give another tokenizer")
    if isinstance(part, dict) and "type" in part:
        yield part
    if isinstance(part, dict | list):
        for inner in part.values() if isinstance(part, dict) else part:
            if isinstance(inner, dict | list):
                yield from _steps(inner, name, depth + 1)


def _growth(step: dict, name: str) -> float:
    """Return the largest number of characters that a step makes of one."""
    pattern = step.get("pattern")
    of_regex = isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str)
    if of_regex:
        check_pattern(pattern["Regex"], name)
    if step.get("type") == "Precompiled":
        return longest_replacement(_decoded(step.get("precompiled_charsmap")))
    content = step.get("content", step.get("prepend", step.get("replacement", "")))
    if isinstance(content, str) and len(content) > MOST_ENTRY:
        raise UserError(f"{name} inserts {len(content):,} characters, more than {MOST_ENTRY}; give another tokenizer")
    if step.get("type") == "TemplateProcessing":
        return max(
            _repeats(step.get("single")), _repeats(step.get("pair")), len(str(step.get("special_tokens"))) // 1000
        )
    if step.get("type") not in ("Replace", "Prepend") or not isinstance(content, str) or not content:
        return 1
    exact = pattern.get("String") if isinstance(pattern, dict) else None
    if isinstance(exact, str) and exact:
        return max(1, len(content) / len(exact))
    between = not of_regex or _matches_empty(pattern["Regex"])
    return len(content) + between


def _matches_empty(pattern: str) -> bool:
    """Tell whether a pattern may match an empty string, so that text is inserted between all characters."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return re.search(pattern, "") is not None
    except (re.error, RecursionError, OverflowError):
        return True


def _repeats(template: object) -> int:
    """Return a template's growth: 1, or more than the bound if it repeats a text or has too many parts."""
    template = template if isinstance(template, list) else []
    if len(template) > MOST_STEPS:
        return MOST_GROWTH + 1
    names = [str(part["Sequence"].get("id")) for part in template if _sequence(part)]
    return MOST_GROWTH + 1 if len(names) > len(set(names)) else 1


def _sequence(part: object) -> bool:
    return isinstance(part, dict) and isinstance(part.get("Sequence"), dict)


def check_pattern(pattern: str, name: str) -> None:
    """Check the size of a regular expression.

    Raises:
        UserError: with the size and its bound.
    """
    repeats = math.prod(max(1, int((most or least)[:9])) for least, most in REPEATS.findall(pattern))
    if len(pattern) > MOST_PATTERN or repeats > MOST_REPEATS:
        raise UserError(
            f"{name} has a regular expression of {len(pattern):,} characters and {repeats:.3g} repetitions, more than "
            f"{MOST_PATTERN:,} and {MOST_REPEATS:,} ({shown(pattern)}); give another tokenizer"
        )


def _decoded(charsmap: object) -> bytes:
    try:
        return base64.b64decode(charsmap) if isinstance(charsmap, str) else b""
    except ValueError:
        return b""  # the library raises the error


def longest_replacement(charsmap: bytes) -> int:
    """Return the length of the longest replacement in SentencePiece's table of characters; 1 without a table.

    Format: size of a trie in bytes (uint32, little-endian), the trie, and replacements that end in a zero byte.
    """
    if len(charsmap) < 4:
        return 1
    texts = charsmap[4 + struct.unpack("<I", charsmap[:4])[0] :]
    return max(1, *(len(text.decode(errors="replace")) for text in texts.split(b"\0")))


# ---- loaded tokenizers -----------------------------------------------------------------------------------------------


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str, roles: tuple[str, ...] = ROLES) -> None:
    """Check a loaded tokenizer's special tokens and ids, and try it on ordinary text; correct an invalid length limit.

    Args:
        tokenizer: the tokenizer; an invalid `model_max_length` is replaced by no limit.
        name: name for the message.
        roles: required special tokens.

    Raises:
        UserError: with the defect.
    """
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer {name}: only fast tokenizers (with a tokenizer.json) are supported")
    with without_panic_messages(), errors_in_one_line(str(name)):
        _check_special(tokenizer, name, roles)
        longest = tokenizer.model_max_length
        if isinstance(longest, bool) or not isinstance(longest, int | float) or not longest > 0:
            tokenizer.model_max_length = int(1e30)  # the library's value for no limit; the network has its own
        largest = max(tokenizer.get_vocab().values(), default=0)
        if largest >= MOST_ENTRIES:
            raise UserError(f"tokenizer {name}: an id of {largest:,}; ids must lie below {MOST_ENTRIES:,}")
        probes = tokenizer(PROBES, add_special_tokens=False, split_special_tokens=True, verbose=False)
        for ids in probes["input_ids"]:
            tokenizer.decode(ids)
    _note_capitals(tokenizer, name)


def _check_special(tokenizer: PreTrainedTokenizerBase, name: str, roles: tuple[str, ...]) -> None:
    ids = {role: getattr(tokenizer, f"{role}_token_id") for role in roles}
    lacking = [role for role in roles if ids[role] is None]
    if lacking:
        raise UserError(
            f"tokenizer {name}: no {', '.join(lacking)} token; give the tokenizer of a masked language model "
            "(BERT, RoBERTa, DistilBERT, ModernBERT, ...)"
        )
    for role, i in ids.items():
        if tokenizer.convert_ids_to_tokens(i) != getattr(tokenizer, f"{role}_token"):
            token = shown(getattr(tokenizer, f"{role}_token"))
            raise UserError(f"tokenizer {name}: its {role} token {token} is not in its vocabulary")
    if "mask" in ids and ids["mask"] in [i for role, i in ids.items() if role != "mask"]:
        raise UserError(f"tokenizer {name}: its mask token is also its pad, cls or sep token")


def _note_capitals(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Print a note if a cased vocabulary's settings lower-case text."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is None or normalizer.normalize_str("A").strip(" ▁") != "a":
        return
    special, entries = set(tokenizer.all_special_tokens), tokenizer.get_vocab()
    capital = sum(entry != entry.lower() for entry in entries if entry not in special and not entry.startswith("["))
    if capital > len(entries) / 100:
        print(
            f"note: tokenizer {name} lower-cases text, but {capital:,} of its {len(entries):,} entries have capital "
            "letters and are never used; if its network is cased, set do_lower_case to false in its "
            "tokenizer_config.json",
            file=sys.stderr,
        )
