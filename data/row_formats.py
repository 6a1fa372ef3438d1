"""Row formats: layout of text in rows of the network, and the noised and scored tokens of a row.

unpadded  One text per row, [CLS] text [SEP]. The text is noised and scored; [CLS] and [SEP] are given. [PAD]s are not
          attended to, so a row does not depend on its batch. The likelihood is that of a text given its length.
padded    As unpadded, filled with [PAD]s to `max_length`: MDLM's format for LM1B. All tokens are noised and attended
          to; [CLS], text and [SEP] are scored. The likelihood too is given the length, since a visible [PAD] reveals
          it, but [CLS] and [SEP], which are easy to predict, count as tokens. (A causal network is given the [CLS] in
          this format and in wrapped, and no length.)
wrapped   Texts joined, each followed by [SEP], and cut into blocks, with [CLS] before and [SEP] after each block. All
          tokens are noised and scored. MDLM's format for all other corpora.
running   Texts joined by spaces and cut into blocks; [CLS] and [SEP] around a block are given. For text8, whose
          likelihood D3PM and its successors report per character.

Likelihoods under different formats are not comparable.
"""

from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.batch import Batch, collate
from data.corpus import Keep, Source
from data.detokenizers import detokenize
from data.options import DataArgs, TextFormat
from data.splits import require_a_batch, split_sources
from data.tokenized_text import Text, TokenizedText, tokenize, tokenize_in_memory
from data.word_counts import with_special_counts
from utils.errors import UserError, shown

NO_LIMIT = 2**31


# ---- rows ------------------------------------------------------------------------------------------------------------


class _Rows:
    """Common part of padded rows and blocks; a `tokenized_text.Text`."""

    def __init__(
        self, text: TokenizedText, tokenizer: PreTrainedTokenizerBase, width: int, *, given_first: bool = False
    ) -> None:
        """Arrange a text in rows.

        Args:
            text: the texts.
            tokenizer: tokenizer of the text.
            width: slots of a row, [CLS] and [SEP] included.
            given_first: whether the first [CLS] is given, as for a causal network, which has no context for it.
        """
        self.text, self.width, self.tokenizer, self.given_first = text, width, tokenizer, given_first
        self.source, self.cuts, self.identity = text.source, text.cuts, text.identity
        self.legacy_identity = text.legacy_identity

    @property
    def widths(self) -> np.ndarray:
        """int64 [N], slots of each row."""
        return np.full(len(self), self.width)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N], lengths for batching, all equal."""
        return self.widths

    def with_special_counts(self, counts: Tensor) -> Tensor:
        """Add [CLS] and [SEP] to the counts of another text, int64 [V], in proportion to these rows."""
        return with_special_counts(
            counts, self.counts(len(counts)), [self.tokenizer.cls_token_id, self.tokenizer.sep_token_id]
        )

    def _add_ends(self, counts: Tensor, *, cls: int, sep: int) -> Tensor:
        """Add scored [CLS] and [SEP] to counts, int64 [V], without each row's first [CLS] if it is given."""
        counts[self.tokenizer.cls_token_id] += cls - len(self) * self.given_first
        counts[self.tokenizer.sep_token_id] += sep
        return counts

    def _give_first(self, batch: Batch) -> Batch:
        """Remove the first column from the targets, if it is given."""
        if not self.given_first:
            return batch
        return replace(batch, target_mask=batch.target_mask.index_fill(1, torch.tensor([0]), False))


class PaddedRows(_Rows):
    """Rows of row_format=padded."""

    def __len__(self) -> int:
        return len(self.text)

    @property
    def num_words(self) -> np.ndarray:
        """int32 [N], whitespace words of each text."""
        return self.text.num_words

    @property
    def text_lengths(self) -> np.ndarray:
        """int64 [N], tokens of each text without special tokens."""
        return self.text.lengths

    @property
    def target_lengths(self) -> np.ndarray:
        """int64 [N], scored tokens of each row."""
        return self.text.lengths + 2 - self.given_first

    @property
    def size(self) -> str:
        """Number of texts, for messages."""
        return self.text.size

    def counts(self, vocab_size: int) -> Tensor:
        """Count each scored token, int64 [V]."""
        return self._add_ends(self.text.counts(vocab_size), cls=len(self), sep=len(self))

    def batch(self, indices: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> Batch:
        """Build a batch of the chosen texts."""
        rows = collate([self.text.sentence(i) for i in indices], tokenizer, self.width)
        everything = torch.ones_like(rows.target_mask)
        return self._give_first(Batch(rows.input_ids, everything, rows.attention_mask, everything))

    def location(self, index: int) -> str:
        """Return file and line of a text."""
        return self.text.location(index)


class Blocks(_Rows):
    """Blocks of row_format=wrapped and running; an incomplete last block is dropped."""

    def __init__(
        self,
        text: TokenizedText,
        tokenizer: PreTrainedTokenizerBase,
        width: int,
        *,
        wrapped: bool,
        given_first: bool = False,
    ) -> None:
        """Cut a text into blocks.

        Args:
            text: the texts, uncut.
            tokenizer: tokenizer of the text.
            width: slots of a row, [CLS] and [SEP] included.
            wrapped: row_format=wrapped instead of running.
            given_first: whether the first [CLS] is given, as for a causal network.
        """
        super().__init__(text, tokenizer, width, given_first=given_first)
        self.wrapped, self.inner = wrapped, width - 2
        self.starts = text.offsets + wrapped * np.arange(len(text.offsets))
        """int64 [number of texts + 1], start of each text in the joined texts."""
        if not len(self):
            found = f"{self.starts[-1]} tokens do not fill one block of {self.inner}"
            raise UserError(f"{text.source}: {found}; give more text, or choose row_format=unpadded or padded")
        if rest := int(self.starts[-1]) % self.inner:
            words, kept = int(text.num_words.sum()), round(float(self.num_words.sum()))
            lost = f"{rest:,} tokens at the end ({words - kept:,} of {words:,} words) fill no block and are left out"
            self.cuts = f"{text.cuts}, {lost}" if text.cuts else lost

    def __len__(self) -> int:
        return int(self.starts[-1]) // self.inner

    @cached_property
    def num_words(self) -> np.ndarray:
        """float64 [N], words of each block; a text's words are divided over its blocks in proportion to its tokens."""
        edges = np.arange(len(self) + 1) * self.inner
        return np.diff(np.interp(edges, self.starts, np.concatenate([[0], np.cumsum(self.text.num_words)])))

    @property
    def target_lengths(self) -> np.ndarray:
        """int64 [N], scored tokens of each block."""
        return self.widths - (self.given_first if self.wrapped else 2)

    @property
    def size(self) -> str:
        """Number of blocks and texts, for messages."""
        return f"{len(self):,} blocks of {self.width} tokens from {len(self.text):,}"

    def counts(self, vocab_size: int) -> Tensor:
        """Count each scored token, int64 [V]."""
        end = len(self) * self.inner  # end of the last block
        last = int(np.searchsorted(self.starts, end, side="right")) - 1
        begins = self.text.offsets[last]
        used = begins + min(end - self.starts[last], self.text.offsets[min(last + 1, len(self.text))] - begins)
        counts = torch.from_numpy(np.bincount(self.text.tokens[:used], minlength=vocab_size))
        ends = len(self) * self.wrapped
        return self._add_ends(counts, cls=ends, sep=ends + end - int(used))

    def stream(self, begin: int, end: int) -> np.ndarray:
        """Return tokens begin..end-1 of the joined texts."""
        position = np.arange(begin, end)
        which = np.searchsorted(self.starts, position, side="right") - 1
        within, begins = position - self.starts[which], self.text.offsets[which]
        length = self.text.offsets[which + 1] - begins
        tokens = self.text.tokens[begins + np.minimum(within, length - 1)]
        return np.where(within < length, tokens, self.tokenizer.sep_token_id)

    def batch(self, indices: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> Batch:
        """Build a batch of the chosen blocks."""
        rows = collate([self.stream(i * self.inner, (i + 1) * self.inner) for i in indices], tokenizer)
        return self._give_first(replace(rows, target_mask=rows.attention_mask)) if self.wrapped else rows

    def location(self, index: int) -> str:
        """Return file and line of a block's first text."""
        return self.text.location(int(np.searchsorted(self.starts, index * self.inner, side="right")) - 1)


# ---- reading and writing ---------------------------------------------------------------------------------------------


def arrange(
    text: TokenizedText,
    text_format: TextFormat,
    tokenizer: PreTrainedTokenizerBase,
    width: int,
    *,
    causal: bool = False,
) -> Text:
    """Arrange a text in rows of at most `width` slots; `causal`: for a causal network."""
    if text_format.row_format == "unpadded":
        return text
    given_first = causal and text_format.whole_rows
    if text_format.row_format == "padded":
        return PaddedRows(text, tokenizer, width, given_first=given_first)
    return Blocks(text, tokenizer, width, wrapped=text_format.row_format == "wrapped", given_first=given_first)


def read_rows(
    source: Source,
    text_format: TextFormat,
    tokenizer: PreTrainedTokenizerBase,
    width: int,
    cache_dir: str,
    *,
    part: str = "",
    keep: Keep | None = None,
    causal: bool = False,
) -> Text:
    """Tokenise a source and arrange it in rows; for the arguments see `tokenized_text.tokenize`."""
    text = tokenize(
        source,
        tokenizer,
        width - 2 if text_format.single else NO_LIMIT,
        cache_dir,
        part=part,
        keep=keep,
        lead=" " if text_format.row_format == "running" else "",
        detokenizer=text_format.detokenizer,
    )
    return arrange(text, text_format, tokenizer, width, causal=causal)


def rows_of_texts(
    texts: list[str], text_format: TextFormat, tokenizer: PreTrainedTokenizerBase, width: int, *, causal: bool = False
) -> Text:
    """Arrange texts in memory in rows, as `read_rows` does those of a file; row i is text i.

    Raises:
        UserError: if the rows of the format hold several texts, or a text has no token.
    """
    if not text_format.single:
        raise UserError(f"rows of row_format={text_format.row_format} hold several texts; score a file instead")
    stripped = [text.strip() for text in texts]
    records = [(detokenize(text, text_format.detokenizer) if text else "", (0, i)) for i, text in enumerate(stripped)]
    found = tokenize_in_memory(records, Source(), tokenizer, width - 2, describe="text {0[1]}".format)
    if len(found) < len(texts):
        lacking = sorted({*range(len(texts))} - {*found.locations[:, 1].tolist()})
        raise UserError(f"text {lacking[0]} is {shown(texts[lacking[0]])}, without a token; leave it out")
    return arrange(found, text_format, tokenizer, width, causal=causal)


def load_texts(
    args: DataArgs, tokenizer: PreTrainedTokenizerBase, text_format: TextFormat | None = None, *, causal: bool = False
) -> tuple[Text, Text]:
    """Return the training and the validation rows of a corpus.

    Raises:
        UserError: if there are fewer training rows than in one batch.
    """
    train, valid = (
        read_rows(
            source,
            text_format or TextFormat(),
            tokenizer,
            args.max_length,
            args.cache_dir,
            part=part,
            keep=keep,
            causal=causal,
        )
        for source, part, keep in split_sources(args)
    )
    require_a_batch(train, args)
    return train, valid
