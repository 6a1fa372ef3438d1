"""Tokenised text: tokenised once, cached on disk by content, and collated to a Batch.

    corpus (corpus.py) -> token ids in one flat memory-mapped array -> Batch of the sentences that batching.py chooses

`collate` adds [CLS] and [SEP] outside `target_mask`: they are given, neither noised nor scored.
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
from data.corpus import Keep, Location, Source, fingerprint, read_records
from data.detokenizers import detokenize
from data.plain_text import encode_records, holds_special
from data.tokenizers import tokenizer_fingerprint, vocabulary_size
from utils.errors import UserError

CACHE_FORMAT = 3


class Text(Protocol):
    """Corpus as training and scoring use it: sentences here, pairs in data/pairs.py, rows in data/row_formats.py."""

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
        """Count each token among the targets, int64 [V]."""
        ...

    def batch(self, indices: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> Batch:
        """Build a batch of the chosen sentences."""
        ...

    def location(self, index: int) -> str:
        """Return file and line of a sentence."""
        ...

    def legacy_identity(self) -> str:
        """Return the `identity` in older runs, which depends on the files' names too."""
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
    """int32 [N], whitespace words in each sentence as cut."""
    num_truncated: int
    """Number of sentences cut to the longest length."""
    locations: np.ndarray
    """int64 [N, 2], the corpus.Location of each sentence."""
    source: Source
    identity: str
    """Hash of content and recipe, for caches and resumption."""
    recipe: str = ""
    """Settings in the identity besides the source's content."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N], tokens of each sentence."""
        return np.diff(self.offsets)

    @property
    def text_lengths(self) -> np.ndarray:
        """int64 [N], tokens of each text without special tokens."""
        return self.lengths

    @property
    def widths(self) -> np.ndarray:
        """int64 [N], slots that each sentence takes in a batch, [CLS] and [SEP] included."""
        return self.lengths + 2

    @property
    def target_lengths(self) -> np.ndarray:
        """int64 [N], scored tokens of each sentence."""
        return self.lengths

    @property
    def size(self) -> str:
        """Number of sentences, for messages."""
        return f"{len(self):,}"

    @property
    def cuts(self) -> str:
        """Description of what was cut off; empty if nothing was."""
        return f"{self.num_truncated:,} cut to the longest length" if self.num_truncated else ""

    def sentence(self, index: int) -> np.ndarray:
        """Return the token ids of one sentence."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def counts(self, vocab_size: int) -> Tensor:
        """Count each token, int64 [V]."""
        return torch.from_numpy(np.bincount(self.tokens, minlength=vocab_size))

    def batch(self, indices: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> Batch:
        """Build a batch of the chosen sentences, every token a target."""
        return collate([self.sentence(i) for i in indices], tokenizer)

    def location(self, index: int) -> str:
        """Return file and line of a sentence."""
        return self.source.location(tuple(self.locations[index].tolist()))

    def legacy_identity(self) -> str:
        """Return the identity in older runs; see `Text`."""
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
    """Tokenise a source, or read its tokens from the cache.

    Args:
        source: the text.
        tokenizer: a fast tokenizer.
        longest: largest number of tokens of a sentence, without [CLS] and [SEP]; the rest is cut off.
        cache_dir: folder of the cache; each result has a folder named by its identity.
        part: name of the sentences that `keep` selects, part of the identity.
        keep: selects sentences; default: all.
        lead: text before each sentence that is not empty.
        detokenizer: name in `data/detokenizers.py`; words are counted after it.

    Raises:
        UserError: if the text cannot be read, or no sentence is left.
    """
    recipe = f"{tokenizer_fingerprint(tokenizer)}:{longest}:{part}:{lead}"
    if detokenizer != "none":  # without one the identity is that of older runs
        recipe += f":{detokenizer}"
    folder = Path(cache_dir) / _identity(fingerprint(source), recipe)
    text = _read_tokens(folder, source)
    if text is not None and holds_special(text.tokens, tokenizer):  # an older version did not exclude them
        text = None
    if text is None:
        with cache.filled(folder) as temporary:
            records = read_records(source, keep=keep, description=f"tokenizing {part}".strip())
            led = ((lead + detokenize(text, detokenizer) if text else "", location) for text, location in records)
            _write_tokens(led, source, tokenizer, longest, temporary)
        text = _read_tokens(folder, source)
    if text is None or len(text) == 0:
        remedy = "give a larger --valid_fraction, or --valid_data" if part.startswith("held-out") else "give other text"
        raise UserError(f"{source}: no sentence of the {part or 'text'} part has tokens; {remedy}")
    return replace(text, recipe=recipe)


def _identity(content: str, recipe: str) -> str:
    return hashlib.blake2b(f"{CACHE_FORMAT}:{content}:{recipe}".encode(), digest_size=12).hexdigest()


def _read_tokens(folder: Path, source: Source) -> TokenizedText | None:
    """Read the files of `_write_tokens`; None if they are missing or damaged."""
    if not cache.is_whole(folder):
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text())
        empty = np.zeros(0, np.int32)
        tokens = np.memmap(folder / "tokens.bin", dtype=meta["dtype"], mode="r") if meta["num_tokens"] else empty
        offsets = np.load(folder / "offsets.npy", mmap_mode="r", allow_pickle=False)
        num_words = np.load(folder / "num_words.npy", mmap_mode="r", allow_pickle=False)
        locations = np.load(folder / "places.npy", mmap_mode="r", allow_pickle=False)
        whole = len(tokens) == meta["num_tokens"] == offsets[-1]
        whole &= len(num_words) == len(locations) == len(offsets) - 1
        return (
            TokenizedText(tokens, offsets, num_words, meta["num_truncated"], locations, source, folder.name)
            if whole
            else None
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError):
        return None


def _write_tokens(
    records: Iterable[tuple[str, Location]],
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    folder: Path,
) -> None:
    dtype = np.uint16 if vocabulary_size(tokenizer) <= 2**16 else np.int32
    aligned = source.column != "text"  # both sides of a pair have equal indices, so empty ones count
    offsets, num_words, locations, num_truncated = array.array("q", [0]), array.array("i"), array.array("q"), 0
    with open(folder / "tokens.bin", "wb") as file:
        for ids, sentence, location, was_cut in encode_records(records, tokenizer, longest, source.location):
            if ids or aligned:
                file.write(np.asarray(ids, dtype=dtype).tobytes())  # tofile gives no reason for an error
                offsets.append(offsets[-1] + len(ids))
                num_words.append(len(sentence.split()))
                locations.extend(location)
                num_truncated += was_cut
    np.save(folder / "offsets.npy", np.asarray(offsets, dtype=np.int64))
    np.save(folder / "num_words.npy", np.asarray(num_words, dtype=np.int32))
    np.save(folder / "places.npy", np.asarray(locations, dtype=np.int64).reshape(-1, 2))
    meta = {
        "dtype": np.dtype(dtype).name,
        "num_tokens": offsets[-1],
        "num_truncated": num_truncated,
        "source": str(source),
    }
    (folder / "meta.json").write_text(json.dumps(meta))


def tokenize_in_memory(
    records: Iterable[tuple[str, Location]],
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    identity: str = "",
    describe: Callable[[Location], str] | None = None,
) -> TokenizedText:
    """Tokenise a few thousand records of a source in memory; records without tokens are left out."""
    found = [entry for entry in encode_records(records, tokenizer, longest, describe or source.location) if entry[0]]
    tokens = np.asarray([i for ids, *_ in found for i in ids], dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids, *_ in found], dtype=np.int64)])
    num_words = np.asarray([len(sentence.split()) for _, sentence, *_ in found], dtype=np.int32)
    locations = np.asarray([location for _, _, location, _ in found], dtype=np.int64).reshape(-1, 2)
    return TokenizedText(tokens, offsets, num_words, sum(entry[3] for entry in found), locations, source, identity)
