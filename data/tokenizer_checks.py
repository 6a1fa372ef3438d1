"""Bounds on tokenizers from elsewhere, checked before and after the library builds them: none may eat all memory.

A tokenizer.json is a program of sorts: steps that replace, split and put together, each fed with what the one before
gave. Forty that double a text are a text of a terabyte. What remains panics, which is no Exception, and is made one.
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

from data.plain_text import failing_in_one_line, without_panic_messages
from utils.errors import UserError, shown
from utils.files import read_bytes

MOST_BYTES = 2**28
"""Of a file of a tokenizer,"""
MOST_STEPS = 64
"""of the steps of its normalizer, say, and how deep they lie within each other,"""
MOST_WORDS = 1000
"""of the characters of an entry, or of what a step puts in the place of others; a word for WordPiece is no longer,"""
MOST_GROWTH = 256
"""of the characters that come out of the steps for one that goes in,"""
MOST_PATTERN = 2**20
"""of the characters of a regular expression,"""
MOST_REPEATS = 10**5
"""of the product of its numbers of repetitions,"""
MOST_ADDED = 50_000
"""of the tokens that are added to a model's own,"""
MOST_ENTRIES = 10**7
"""and of the ids of a vocabulary: a network needs a row for each."""
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
    """Refuse a tokenizer's folder before it is loaded.

    Raises:
        UserError: naming the file and what is out of bounds.
    """
    for name in JSON_FILES:
        if (folder / name).exists():
            found = _read_json(folder / name)
            if name == "tokenizer.json":
                check_steps(found, f"tokenizer {folder / name}")
    for name in ("vocab.txt", "merges.txt"):
        if (folder / name).exists():
            read_bytes(folder / name, MOST_BYTES)
    if not (folder / "tokenizer.json").exists():  # or transformers converts these by itself
        for file in folder.glob("*.model"):
            check_pieces(read_bytes(file, MOST_BYTES), f"tokenizer {file}")


def _read_json(file: Path) -> object:
    try:
        content = read_bytes(file)  # 64 MiB: JSON takes up to thirty times as much once it is read
        found = json.loads(content)
        if b"\\ud" in content.lower():
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"tokenizer {file}: half a surrogate pair in it, which is no character") from error
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        where = f"cannot read the tokenizer in {file.parent}: {file.name}"
        raise UserError(f"{where} is not JSON ({shown(str(error))})") from error
    if not isinstance(found, dict):
        raise UserError(f"cannot read the tokenizer in {file.parent}: {file.name} is not a JSON object")
    return found


def check_steps(whole: dict, name: str) -> None:
    """Refuse a tokenizer.json whose steps, entries or expressions are out of bounds.

    Args:
        whole: its content.
        name: of the tokenizer, for the message.

    Raises:
        UserError: naming what is out of bounds, and the bound.
    """
    for part in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        steps = list(_steps(whole.get(part), f"{name}: its {part}"))
        if len(steps) > MOST_STEPS:
            raise UserError(f"{name}: its {part} has {len(steps):,} steps, more than the {MOST_STEPS} that it may have")
        growth = math.prod(_growth(step, f"{name}: its {part}") for step in steps)
        if growth > MOST_GROWTH:
            raise UserError(
                f"{name}: its {part} makes up to {growth:.3g} characters of one, more than the {MOST_GROWTH} it may"
            )
    model, added = whole.get("model"), whole.get("added_tokens")
    if isinstance(added, list) and len(added) > MOST_ADDED:
        raise UserError(f"{name}: {len(added):,} added_tokens, more than the {MOST_ADDED:,} that it may have")
    if isinstance(model, dict):
        longest = model.get("max_input_chars_per_word", 100)
        if not isinstance(longest, int) or not 0 <= longest <= MOST_WORDS:
            raise UserError(f"{name}: max_input_chars_per_word={shown(longest)} must lie in 0..{MOST_WORDS}")
        for entry in model.get("vocab") or ():  # a dictionary's keys, or pairs of piece and score
            check_entry(entry[0] if isinstance(entry, list) and entry else entry, name)
    for token in added if isinstance(added, list) else ():
        check_entry(token.get("content") if isinstance(token, dict) else token, name)


def check_entry(entry: object, name: str) -> None:
    """Refuse an entry of a vocabulary that is too long.

    Raises:
        UserError: with both numbers.
    """
    if isinstance(entry, str) and len(entry) > MOST_WORDS:
        raise UserError(
            f"{name}: an entry of {len(entry):,} characters, more than the {MOST_WORDS} it may have ({shown(entry)})"
        )


def check_pieces(content: bytes, name: str) -> None:
    """Refuse a SentencePiece model with a piece that is too long: what converts it takes all cuts of each.

    Raises:
        UserError: naming the piece.
    """
    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        return  # whoever needs it says so
    for piece in model.pieces:
        check_entry(piece.piece, name)


def _steps(part: object, name: str, depth: int = 0) -> Iterator[dict]:
    """Every object with a type in a part of a tokenizer.json, however deep."""
    if depth > MOST_STEPS:
        raise UserError(f"{name} has steps in steps, deeper than {MOST_STEPS}")
    if isinstance(part, dict) and "type" in part:
        yield part
    if isinstance(part, dict | list):
        for inner in part.values() if isinstance(part, dict) else part:
            if isinstance(inner, dict | list):
                yield from _steps(inner, name, depth + 1)


def _growth(step: dict, name: str) -> float:
    """Characters that a step makes of one, at most."""
    pattern = step.get("pattern")
    of_regex = isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str)
    if of_regex:
        check_pattern(pattern["Regex"], name)
    if step.get("type") == "Precompiled":
        return longest_replacement(_decoded(step.get("precompiled_charsmap")))
    content = step.get("content", step.get("prepend", step.get("replacement", "")))
    if isinstance(content, str) and len(content) > MOST_WORDS:
        raise UserError(f"{name} puts in {len(content):,} characters, more than the {MOST_WORDS} it may")
    if step.get("type") == "TemplateProcessing":
        return max(
            _repeats(step.get("single")), _repeats(step.get("pair")), len(str(step.get("special_tokens"))) // 1000
        )
    if step.get("type") not in ("Replace", "Prepend") or not isinstance(content, str) or not content:
        return 1
    exact = pattern.get("String") if isinstance(pattern, dict) else None
    if isinstance(exact, str) and exact:
        return max(1, len(content) / len(exact))
    between = not of_regex or _matches_nothing(pattern["Regex"])
    return len(content) + between


def _matches_nothing(pattern: str) -> bool:
    """Whether it may match where nothing stands: then something is put between all characters."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return re.search(pattern, "") is not None
    except (re.error, RecursionError, OverflowError):
        return True


def _repeats(template: object) -> int:
    """How often a template puts in the same text: 1, or this refuses by its growth."""
    template = template if isinstance(template, list) else []
    if len(template) > MOST_STEPS:
        return MOST_GROWTH + 1
    names = [str(part["Sequence"].get("id")) for part in template if _sequence(part)]
    return MOST_GROWTH + 1 if len(names) > len(set(names)) else 1


def _sequence(part: object) -> bool:
    return isinstance(part, dict) and isinstance(part.get("Sequence"), dict)


def check_pattern(pattern: str, name: str) -> None:
    """Refuse a regular expression that is too large to build.

    Raises:
        UserError: with the bound.
    """
    repeats = math.prod(max(1, int((most or least)[:9])) for least, most in REPEATS.findall(pattern))
    if len(pattern) > MOST_PATTERN or repeats > MOST_REPEATS:
        raise UserError(
            f"{name} has a regular expression of {len(pattern):,} characters and {repeats:.3g} repetitions, more than "
            f"the {MOST_PATTERN:,} and {MOST_REPEATS:,} that it may have ({shown(pattern)})"
        )


def _decoded(charsmap: object) -> bytes:
    try:
        return base64.b64decode(charsmap) if isinstance(charsmap, str) else b""
    except ValueError:
        return b""  # the library says so


def longest_replacement(charsmap: bytes) -> int:
    """The most characters that SentencePiece's table of characters puts in the place of one; 1 for no table.

    It is a number of bytes (little-endian, of 4), as many of a trie, and then texts that end in a zero byte.
    """
    if len(charsmap) < 4:
        return 1
    texts = charsmap[4 + struct.unpack("<I", charsmap[:4])[0] :]
    return max(1, *(len(text.decode(errors="replace")) for text in texts.split(b"\0")))


# ---- loaded tokenizers -----------------------------------------------------------------------------------------------


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str, roles: tuple[str, ...] = ROLES) -> None:
    """Refuse a tokenizer that lacks something, or fails at ordinary text; mends a maximum length that is no number.

    Args:
        tokenizer: as it was loaded.
        name: for the message.
        roles: the special tokens that it must have.

    Raises:
        UserError: naming what is wrong.
    """
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer {name}: only fast tokenizers (with a tokenizer.json) are supported")
    with without_panic_messages(), failing_in_one_line(str(name)):
        _check_special(tokenizer, name, roles)
        longest = tokenizer.model_max_length
        if isinstance(longest, bool) or not isinstance(longest, int | float) or not longest > 0:
            tokenizer.model_max_length = int(1e30)  # what the library says for none; the network's own bound holds
        largest = max(tokenizer.get_vocab().values(), default=0)
        if largest >= MOST_ENTRIES:
            raise UserError(f"tokenizer {name}: an id of {largest:,}; ids must lie below {MOST_ENTRIES:,}")
        settings = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        for ids in tokenizer(PROBES, **settings)["input_ids"]:
            tokenizer.decode(ids)
    _note_capitals(tokenizer, name)


def _check_special(tokenizer: PreTrainedTokenizerBase, name: str, roles: tuple[str, ...]) -> None:
    ids = {role: getattr(tokenizer, f"{role}_token_id") for role in roles}
    lacking = [role for role in roles if ids[role] is None]
    if lacking:
        raise UserError(
            f"tokenizer {name}: no {', '.join(lacking)} token; masked diffusion needs a masked-LM tokenizer "
            "(BERT, RoBERTa, DistilBERT, ModernBERT, ...)"
        )
    for role, i in ids.items():
        if tokenizer.convert_ids_to_tokens(i) != getattr(tokenizer, f"{role}_token"):
            token = shown(getattr(tokenizer, f"{role}_token"))
            raise UserError(f"tokenizer {name}: its {role} token {token} is not in its vocabulary")
    if "mask" in ids and ids["mask"] in [i for role, i in ids.items() if role != "mask"]:
        raise UserError(f"tokenizer {name}: its mask token is also its pad, cls or sep token")


def _note_capitals(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """A cased vocabulary whose settings say that text is lower-cased."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is None or normalizer.normalize_str("A").strip(" ▁") != "a":
        return
    special, entries = set(tokenizer.all_special_tokens), tokenizer.get_vocab()
    capital = sum(entry != entry.lower() for entry in entries if entry not in special and not entry.startswith("["))
    if capital > len(entries) / 100:
        print(
            f"note: tokenizer {name} lower-cases text, but {capital:,} of its {len(entries):,} entries have capital "
            "letters, which no text reaches then; if its network is cased, set do_lower_case to false in its "
            "tokenizer_config.json",
            file=sys.stderr,
        )
