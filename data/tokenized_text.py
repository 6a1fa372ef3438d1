"""Text to token ids: tokenised once, kept on disk by content, put together to a Batch.

    corpus (corpus.py) -> token ids in one flat memory-mapped array -> Batch of the sentences that batching.py deals

[CLS] and [SEP] are added here, once, and stay out of `target_mask`: they are given, never noised, never scored.
"""

import array
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data import cache
from data.batch import Batch, collate
from data.corpus import Keep, Place, Source, fingerprint, read_records
from data.detokenizers import detokenize
from data.plain_text import encoded, holds_special
from data.tokenizers import tokenizer_fingerprint, vocabulary_size
from utils.errors import UserError

CACHE_FORMAT = 3


class Text(Protocol):
    """What training and scoring need of a corpus: sentences here, pairs in data/pairs.py."""

    num_words: np.ndarray
    lengths: np.ndarray
    widths: np.ndarray
    target_lengths: np.ndarray
    cuts: str
    identity: str
    size: str
    source: Source

    def __len__(self) -> int: ...

    def counts(self, vocab_size: int) -> Tensor:
        """int64 [V], how often each token is a target."""
        ...

    def batch(self, indices: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> Batch:
        """The chosen sentences."""
        ...

    def place(self, index: int) -> str:
        """Where a sentence stands in its corpus: file and line."""
        ...

    def identity_before(self) -> str:
        """The `identity` that runs begun before content alone decided it have: of the files' names, too."""
        ...


# ---- tokenised text --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenizedText:
    """Sentences as one flat array of token ids, without special tokens."""

    tokens: np.ndarray
    """[total tokens], memory-mapped."""
    offsets: np.ndarray
    """int64 [N + 1]: sentence i is tokens[offsets[i] : offsets[i + 1]]."""
    num_words: np.ndarray
    """int32 [N], whitespace words in the part that was kept."""
    num_truncated: int
    """Sentences cut to the longest length."""
    places: np.ndarray
    """int64 [N, 2], the corpus.Place of each."""
    source: Source
    identity: str
    """A name for just these tokens."""
    recipe: str = ""
    """What of it is not the source's content."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N], tokens in each sentence."""
        return np.diff(self.offsets)

    @property
    def widths(self) -> np.ndarray:
        """int64 [N], the slots that each sentence takes in a batch, [CLS] and [SEP] included."""
        return self.lengths + 2

    @property
    def target_lengths(self) -> np.ndarray:
        """int64 [N], tokens to be written in each sentence: all of them."""
        return self.lengths

    @property
    def size(self) -> str:
        """In words."""
        return f"{len(self):,}"

    @property
    def cuts(self) -> str:
        """What was cut off, in words; empty if nothing was."""
        return f"{self.num_truncated:,} cut to the longest length" if self.num_truncated else ""

    def sentence(self, index: int) -> np.ndarray:
        """Token ids of one sentence."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def counts(self, vocab_size: int) -> Tensor:
        """int64 [V], how often each token occurs."""
        return torch.from_numpy(np.bincount(self.tokens, minlength=vocab_size))

    def batch(self, indices: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> Batch:
        """The chosen sentences, every token a target."""
        return collate([self.sentence(i) for i in indices], tokenizer)

    def place(self, index: int) -> str:
        """File and line."""
        return self.source.place(tuple(self.places[index].tolist()))

    def identity_before(self) -> str:
        """See `Text`."""
        return _identity(fingerprint(self.source, named=True), self.recipe) if self.recipe else self.identity


def tokenize(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    cache_dir: str,
    *,
    part: str = "",
    keep: Keep | None = None,
    lead: str = "",
    detokenizer: str = "none",
) -> TokenizedText:
    """Token ids of a source, from the cache if the same text was tokenised the same way before.

    Args:
        source: the text.
        tokenizer: a fast tokenizer.
        longest: tokens a sentence may have, without [CLS] and [SEP]; the rest is cut off and counted.
        cache_dir: where results are kept, in a folder named by content.
        part: names what `keep` keeps, for the cache.
        keep: which sentences to take; default all.
        lead: is put before each of them that is not empty.
        detokenizer: of `data/detokenizers.py`, applied to each; words are counted after it.

    Raises:
        UserError: if the text cannot be read or no sentence is left.
    """
    recipe = f"{tokenizer_fingerprint(tokenizer)}:{longest}:{part}:{lead}"
    if detokenizer != "none":  # runs from before there were any keep their identity
        recipe += f":{detokenizer}"
    folder = Path(cache_dir) / _identity(fingerprint(source), recipe)
    text = _read_tokens(folder, source)
    if text is not None and holds_special(text.tokens, tokenizer):  # of a version that let them through
        text = None
    if text is None:
        with cache.filled(folder) as temporary:
            records = read_records(source, keep=keep, description=f"tokenizing {part}".strip())
            led = ((lead + detokenize(text, detokenizer) if text else "", place) for text, place in records)
            _write_tokens(led, source, tokenizer, longest, temporary)
        text = _read_tokens(folder, source)
    if text is None or len(text) == 0:
        remedy = "give a larger --valid_fraction, or --valid_data" if part.startswith("held-out") else "give other text"
        raise UserError(
            f"{source}: no sentence in the {part or 'text'} part that is not empty to the tokenizer; {remedy}"
        )
    return replace(text, recipe=recipe)


def _identity(content: str, recipe: str) -> str:
    return hashlib.blake2b(f"{CACHE_FORMAT}:{content}:{recipe}".encode(), digest_size=12).hexdigest()


def _read_tokens(folder: Path, source: Source) -> TokenizedText | None:
    """What `_write_tokens` wrote; None if it is not there, or not whole: then it is made again."""
    if not cache.is_whole(folder):
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text())
        empty = np.zeros(0, np.int32)
        tokens = np.memmap(folder / "tokens.bin", dtype=meta["dtype"], mode="r") if meta["num_tokens"] else empty
        offsets = np.load(folder / "offsets.npy", mmap_mode="r", allow_pickle=False)
        num_words = np.load(folder / "num_words.npy", mmap_mode="r", allow_pickle=False)
        places = np.load(folder / "places.npy", mmap_mode="r", allow_pickle=False)
        whole = len(tokens) == meta["num_tokens"] == offsets[-1]
        whole &= len(num_words) == len(places) == len(offsets) - 1
        return (
            TokenizedText(tokens, offsets, num_words, meta["num_truncated"], places, source, folder.name)
            if whole
            else None
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError):
        return None


def _write_tokens(
    records: Iterable[tuple[str, Place]],
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    folder: Path,
) -> None:
    dtype = np.uint16 if vocabulary_size(tokenizer) <= 2**16 else np.int32
    aligned = source.column != "text"  # the sides of a pair keep their places, even when empty
    offsets, num_words, places, num_truncated = array.array("q", [0]), array.array("i"), array.array("q"), 0
    with open(folder / "tokens.bin", "wb") as file:
        for ids, sentence, place, was_cut in encoded(records, tokenizer, longest, source.place):
            if ids or aligned:
                file.write(np.asarray(ids, dtype=dtype).tobytes())  # tofile does not say why it failed
                offsets.append(offsets[-1] + len(ids))
                num_words.append(len(sentence.split()))
                places.extend(place)
                num_truncated += was_cut
    np.save(folder / "offsets.npy", np.asarray(offsets, dtype=np.int64))
    np.save(folder / "num_words.npy", np.asarray(num_words, dtype=np.int32))
    np.save(folder / "places.npy", np.asarray(places, dtype=np.int64).reshape(-1, 2))
    meta = {
        "dtype": np.dtype(dtype).name,
        "num_tokens": offsets[-1],
        "num_truncated": num_truncated,
        "source": str(source),
    }
    (folder / "meta.json").write_text(json.dumps(meta))


def tokenize_in_memory(
    records: Iterable[tuple[str, Place]],
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    identity: str = "",
    where: Callable[[Place], str] | None = None,
) -> TokenizedText:
    """A few thousand records of a source; those that are empty to the tokenizer are left out."""
    found = [entry for entry in encoded(records, tokenizer, longest, where or source.place) if entry[0]]
    tokens = np.asarray([i for ids, *_ in found for i in ids], dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids, *_ in found], dtype=np.int64)])
    num_words = np.asarray([len(sentence.split()) for _, sentence, *_ in found], dtype=np.int32)
    places = np.asarray([place for _, _, place, _ in found], dtype=np.int64).reshape(-1, 2)
    return TokenizedText(tokens, offsets, num_words, sum(entry[3] for entry in found), places, source, identity)
