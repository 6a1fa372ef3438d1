"""Text to ids: text is text, so that "[MASK]" or "</s>" written in a corpus never becomes a special token.

Most tokenizers cut such a string to ordinary pieces when asked to. Where the string is an entry of the model itself
(XLM-R, CamemBERT, DeBERTa-v2, vocabularies of words) it would be one token all the same: its id, which p_theta rules
out, would make every bound infinite. Such texts are cut again by a copy whose special entries no text can spell.
"""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from tokenizers import Tokenizer
from transformers import BatchEncoding
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.corpus import Place
from utils.errors import UserError, shown

TOKENIZE_AT_ONCE = 2000
"""Texts that a tokenizer is given together, at most,"""
CHARACTERS_AT_ONCE = 2**20
"""and about so many characters of them: each takes about 190 bytes of memory meanwhile."""
Thing = TypeVar("Thing")
NO_TEXT = "\U0010fffe\U0010ffff"
"""Two noncharacters, which texts do not have; begin the names of special entries in the copy."""
COPIES: WeakKeyDictionary[PreTrainedTokenizerBase, Tokenizer] = WeakKeyDictionary()
NOTED: set[str] = set()
"""What was said already: a corpus is read once for its sources, once for its targets, and so on."""


class TextEncoding(dict):
    """Token ids of texts under "input_ids": list of lists."""

    def __init__(self, found: BatchEncoding) -> None:
        super().__init__(input_ids=found["input_ids"])
        self._found = found
        self.again: dict[int, list[int]] = {}
        """Texts that were cut again, by their number, and where each of their tokens ends."""

    @property
    def input_ids(self) -> list[list[int]]:
        """The ids of each text."""
        return self["input_ids"]

    def end(self, text: int, token: int) -> int:
        """The character of a text, counted from 0, at which the part that a token stands for has ended."""
        return self.again[text][token] if text in self.again else self._found.token_to_chars(text, token).end


def encode(tokenizer: PreTrainedTokenizerBase, sentences: list[str], *, note: bool = True) -> TextEncoding:
    """Token ids of plain text: no special tokens are added, and none but [UNK] comes out.

    Args:
        tokenizer: a fast one.
        sentences: the texts.
        note: whether to say on stderr that texts hold names of special tokens; else the caller does, by `again`.

    Raises:
        UserError: if the tokenizer fails.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    with failing_in_one_line(tokenizer):
        found = tokenizer(
            sentences,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        special = special_ids(tokenizer)
        names = [i for i, ids in enumerate(found["input_ids"]) if not special.isdisjoint(ids)]
        encoding = TextEncoding(found)
        for i in names:
            encoding["input_ids"][i], encoding.again[i] = _cut_again(tokenizer, sentences[i], special)
    if names and note:
        note_names(len(names), shown(sentences[names[0]]))
    return encoding


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids that no text may have: of all special tokens but the one for what is unknown, if that has its own."""
    roles = {tokenizer.mask_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
    return set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - roles)


def note_names(number: int, first: str) -> None:
    """Say once on stderr that texts hold names of special tokens.

    Args:
        number: of such texts.
        first: the place of one of them, or the text itself.
    """
    if first not in NOTED:
        NOTED.add(first)
        texts = "a text holds" if number == 1 else f"{number:,} texts hold"
        print(f"note: {texts} the name of a special token, cut like any other word ({first})", file=sys.stderr)


@contextlib.contextmanager
def failing_in_one_line(tokenizer: PreTrainedTokenizerBase | str) -> Iterator[None]:
    """What the tokenizers library raises, down to bare Exception and panics that are none, as a UserError."""
    try:
        with panics_as_errors():
            yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        name = tokenizer if isinstance(tokenizer, str) else tokenizer.name_or_path
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"tokenizer {name}: it is damaged and fails ({shown(reason)}); give another") from error


class TokenizerPanicError(Exception):
    """A panic of the tokenizers library, which is no Exception and would pass every handler."""


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """For the duration of a block, a panic is an error like others."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerPanicError(str(error)) from error


def encoded(
    records: Iterable[tuple[str, Place]],
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    where: Callable[[Place], str],
) -> Iterator[tuple[list[int], str, Place, bool]]:
    """Cut records: the ids of each, the text that they stand for, its place, and whether it was too long.

    Says on stderr at the end if texts hold names of special tokens; `where` puts the first one's place in words.
    """
    first, number = None, 0
    for chunk in chunks(records):
        found = encode(tokenizer, [sentence for sentence, _ in chunk], note=False)
        first = chunk[min(found.again)][1] if found.again and first is None else first
        number += len(found.again)
        for i, ((sentence, place), ids) in enumerate(zip(chunk, found.input_ids, strict=True)):
            was_cut = len(ids) > longest
            if was_cut:
                sentence = sentence[: found.end(i, longest - 1)]
            yield ids[:longest], sentence, place, was_cut
    if first is not None:
        note_names(number, where(first))


def chunks(things: Iterable[Thing]) -> Iterator[list[Thing]]:
    """Lists of a few thousand texts, or tuples that begin with one: what a fast tokenizer likes at once."""
    chunk: list[Thing] = []
    characters = 0
    for thing in things:
        chunk.append(thing)
        characters += len(thing if isinstance(thing, str) else thing[0])
        if len(chunk) == TOKENIZE_AT_ONCE or characters > CHARACTERS_AT_ONCE:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def holds_special(tokens: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether there are special ids among the token ids of a text, int [N]; read a part at a time."""
    ids, at_once = sorted(special_ids(tokenizer)), 2**24
    return any(np.isin(tokens[i : i + at_once], ids).any() for i in range(0, len(tokens), at_once))


@contextlib.contextmanager
def without_panic_messages() -> Iterator[None]:
    """Hold back what is written to stderr while the block runs: if it panics, the library has said so in three lines.

    Anything else is passed on at the end.
    """
    try:
        held, kept = tempfile.TemporaryFile(), os.dup(2)
    except OSError:  # there is no stderr, or no room
        yield
        return
    with held:
        sys.stderr.flush()
        os.dup2(held.fileno(), 2)
        panicked = False
        try:
            yield
        except BaseException as error:
            panicked = _of_a_panic(error)
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            if not panicked:
                os.write(2, held.read())


def _of_a_panic(error: BaseException | None) -> bool:
    return error is not None and (type(error).__name__ == "PanicException" or _of_a_panic(error.__cause__))


# ---- cutting again ---------------------------------------------------------------------------------------------------


def _cut_again(tokenizer: PreTrainedTokenizerBase, text: str, special: set[int]) -> tuple[list[int], list[int]]:
    """Ids and ends of a text; whatever special id is left, for all that, is unknown or nothing."""
    if tokenizer not in COPIES:
        COPIES[tokenizer] = _copy_without(tokenizer, special)
    found = COPIES[tokenizer].encode(text, add_special_tokens=False)
    unknown = tokenizer.unk_token_id
    pairs = ((unknown if i in special else i, end) for i, (_, end) in zip(found.ids, found.offsets, strict=True))
    kept = [(i, end) for i, end in pairs if i is not None and i not in special]
    return [i for i, _ in kept], [end for _, end in kept]


def _copy_without(tokenizer: PreTrainedTokenizerBase, special: set[int]) -> Tokenizer:
    """The tokenizer with the same ids, its special entries under names that no text has."""
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    names = {token for token, i in tokenizer.get_vocab().items() if i in special}
    model = whole["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {_hidden(token, names): i for token, i in model["vocab"].items()}
    else:
        model["vocab"] = [[_hidden(token, names), score] for token, score in model["vocab"]]
    if model.get("unk_token") is not None:
        model["unk_token"] = _hidden(model["unk_token"], names)
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [pair for pair in model["merges"] if names.isdisjoint(_made_of(pair, prefix))]
    for token in whole["added_tokens"]:
        token["content"] = _hidden(token["content"], names)
    whole["truncation"] = whole["padding"] = None
    copy = Tokenizer.from_str(json.dumps(whole))
    copy.encode_special_tokens = True
    return copy


def _hidden(token: str, names: set[str]) -> str:
    return NO_TEXT + token if token in names else token


def _made_of(pair: list[str] | str, prefix: str) -> Iterable[str]:
    """What a merging needs to be entries: its parts and what they make."""
    first, second = pair.split(" ") if isinstance(pair, str) else pair
    return first, second, first + second.removeprefix(prefix)
