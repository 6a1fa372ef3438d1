"""Encoding of plain text: "[MASK]" or "</s>" in a corpus never becomes a special token.

With `split_special_tokens` most tokenizers cut such a string into ordinary pieces. If it is an entry of the model
itself (XLM-R, CamemBERT, DeBERTa-v2, word-level vocabularies), it still becomes one token. p_theta gives special tokens
probability 0, so the bound would be infinite. Such texts are encoded again by a copy of the tokenizer whose special
entries have names that no text contains.
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

from data.corpus import Location
from utils.errors import UserError, shown

TOKENIZE_AT_ONCE = 2000
"""Largest number of texts that a tokenizer encodes together."""
CHARACTERS_AT_ONCE = 2**20
"""Characters of these texts, approximately; each takes about 190 bytes of memory while it is encoded."""
Item = TypeVar("Item")
NO_TEXT = "\U0010fffe\U0010ffff"
"""Prefix of the special entries' names in the copy: two noncharacters, which no text contains."""
COPIES: WeakKeyDictionary[PreTrainedTokenizerBase, Tokenizer] = WeakKeyDictionary()
NOTED: set[str] = set()
"""Notes already printed; a corpus may be read several times, as for sources and targets."""


class TextEncoding(dict):
    """Token ids of texts under "input_ids": list of lists."""

    def __init__(self, found: BatchEncoding) -> None:
        super().__init__(input_ids=found["input_ids"])
        self._found = found
        self.again: dict[int, list[int]] = {}
        """End of each token in characters, for the texts that were encoded again, by index."""

    @property
    def input_ids(self) -> list[list[int]]:
        """The ids of each text."""
        return self["input_ids"]

    def end(self, text: int, token: int) -> int:
        """Return the end of a token in its text, as a character index from 0."""
        return self.again[text][token] if text in self.again else self._found.token_to_chars(text, token).end


def encode(tokenizer: PreTrainedTokenizerBase, sentences: list[str], *, note: bool = True) -> TextEncoding:
    """Encode plain text: special tokens are neither added nor, except [UNK], produced.

    Args:
        tokenizer: a fast tokenizer.
        sentences: the texts.
        note: print a note if texts contain names of special tokens; otherwise the caller reports `again`.

    Raises:
        UserError: if the tokenizer fails.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    with errors_in_one_line(tokenizer):
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
            encoding["input_ids"][i], encoding.again[i] = _encode_again(tokenizer, sentences[i], special)
    if names and note:
        note_names(len(names), shown(sentences[names[0]]))
    return encoding


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids that text never gets: all special tokens but [UNK], unless it is also mask, cls, sep or pad."""
    roles = {tokenizer.mask_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
    return set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - roles)


def note_names(number: int, first: str) -> None:
    """Print once on stderr that texts contain names of special tokens.

    Args:
        number: number of such texts.
        first: location of one of them, or the text itself.
    """
    if first not in NOTED:
        NOTED.add(first)
        texts = "a text contains" if number == 1 else f"{number:,} texts contain"
        print(f"note: {texts} the name of a special token, encoded like any other word ({first})", file=sys.stderr)


@contextlib.contextmanager
def errors_in_one_line(tokenizer: PreTrainedTokenizerBase | str) -> Iterator[None]:
    """Turn errors and panics of the tokenizers library into a UserError."""
    try:
        with panics_as_errors():
            yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        name = tokenizer if isinstance(tokenizer, str) else tokenizer.name_or_path
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"tokenizer {name}: damaged, it fails ({shown(reason)}); give another") from error


class TokenizerPanicError(Exception):
    """Panic of the tokenizers library, which does not derive from Exception."""


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """Turn a panic in a block into a TokenizerPanicError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerPanicError(str(error)) from error


def encode_records(
    records: Iterable[tuple[str, Location]],
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    describe: Callable[[Location], str],
) -> Iterator[tuple[list[int], str, Location, bool]]:
    """Encode records; yield ids, the text that they represent, its location, and whether the text was cut.

    At the end a note on stderr says whether texts contain names of special tokens.

    Args:
        records: texts and locations.
        tokenizer: a fast tokenizer.
        longest: largest number of tokens of a text.
        describe: formats a location for the note.
    """
    first, number = None, 0
    for chunk in chunks(records):
        found = encode(tokenizer, [sentence for sentence, _ in chunk], note=False)
        first = chunk[min(found.again)][1] if found.again and first is None else first
        number += len(found.again)
        for i, ((sentence, location), ids) in enumerate(zip(chunk, found.input_ids, strict=True)):
            was_cut = len(ids) > longest
            if was_cut:
                sentence = sentence[: found.end(i, longest - 1)]
            yield ids[:longest], sentence, location, was_cut
    if first is not None:
        note_names(number, describe(first))


def chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Yield lists of texts, or of tuples that begin with a text, of the size that a tokenizer encodes together."""
    chunk: list[Item] = []
    characters = 0
    for item in items:
        chunk.append(item)
        characters += len(item if isinstance(item, str) else item[0])
        if len(chunk) == TOKENIZE_AT_ONCE or characters > CHARACTERS_AT_ONCE:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def holds_special(tokens: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether token ids, int [N], contain special ids; they are read in parts, as they may be memory-mapped."""
    ids, at_once = sorted(special_ids(tokenizer)), 2**24
    return any(np.isin(tokens[i : i + at_once], ids).any() for i in range(0, len(tokens), at_once))


@contextlib.contextmanager
def without_panic_messages() -> Iterator[None]:
    """Buffer stderr during a block; drop it after a panic, which the library reports there, else pass it on."""
    try:
        held, kept = tempfile.TemporaryFile(), os.dup(2)
    except OSError:  # no stderr, or no room
        yield
        return
    with held:
        sys.stderr.flush()
        os.dup2(held.fileno(), 2)
        panicked = False
        try:
            yield
        except BaseException as error:
            panicked = _is_panic(error)
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            if not panicked:
                os.write(2, held.read())


def _is_panic(error: BaseException | None) -> bool:
    return error is not None and (type(error).__name__ == "PanicException" or _is_panic(error.__cause__))


# ---- encoding again --------------------------------------------------------------------------------------------------


def _encode_again(tokenizer: PreTrainedTokenizerBase, text: str, special: set[int]) -> tuple[list[int], list[int]]:
    """Return ids and ends of a text; a special id that remains becomes [UNK], or is dropped without one."""
    if tokenizer not in COPIES:
        COPIES[tokenizer] = _copy_without(tokenizer, special)
    found = COPIES[tokenizer].encode(text, add_special_tokens=False)
    unknown = tokenizer.unk_token_id
    pairs = ((unknown if i in special else i, end) for i, (_, end) in zip(found.ids, found.offsets, strict=True))
    kept = [(i, end) for i, end in pairs if i is not None and i not in special]
    return [i for i, _ in kept], [end for _, end in kept]


def _copy_without(tokenizer: PreTrainedTokenizerBase, special: set[int]) -> Tokenizer:
    """Copy a tokenizer, ids unchanged, with names for its special entries that no text contains."""
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
        model["merges"] = [pair for pair in model["merges"] if names.isdisjoint(_entries(pair, prefix))]
    for token in whole["added_tokens"]:
        token["content"] = _hidden(token["content"], names)
    whole["truncation"] = whole["padding"] = None
    copy = Tokenizer.from_str(json.dumps(whole))
    copy.encode_special_tokens = True
    return copy


def _hidden(token: str, names: set[str]) -> str:
    return NO_TEXT + token if token in names else token


def _entries(pair: list[str] | str, prefix: str) -> Iterable[str]:
    """Return the entries that a merge needs: its two parts and their join."""
    first, second = pair.split(" ") if isinstance(pair, str) else pair
    return first, second, first + second.removeprefix(prefix)
