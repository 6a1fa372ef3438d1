"""How text becomes rows of the network, and which of their tokens are noised and scored: a protocol, by its name.

unpadded  [CLS] text [SEP], one text a row, cut to its length: the text alone is noised and scored. What surrounds it is
          given and [PAD]s are not attended to, so nothing depends on the neighbours. The likelihood is that of a text
          given its length.
padded    MDLM's for LM1B: the same row filled up with [PAD]s to `max_length`. Everything is noised and attended to;
          [CLS], text and [SEP] are scored, [PAD]s are not. So it is that of the row given its length, too, of which a
          [PAD] tells as soon as it is visible; but [CLS] and [SEP], which are easy, count as tokens. (A causal
          network is given the [CLS] of this and the next protocol, and no length.)
wrapped   texts one after the other, a [SEP] after each, cut into blocks; [CLS] before and [SEP] after a block.
          Everything is noised and scored. MDLM's for all else.
running   texts one after the other with a space between, cut into blocks; [CLS] and [SEP] around a block are given.
          For text8, where D3PM and its successors count characters.

A sum of nats under one of them is no number of another.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.batch import Batch, collate
from data.corpus import Keep, Source
from data.detokenizers import DETOKENIZERS
from data.splits import DataArgs, require_a_batch, split_sources
from data.tokenized_text import Text, TokenizedText, tokenize
from data.tokenizers import text_of
from data.word_counts import with_ends
from utils.errors import UserError, check_choices

ROW_FORMATS = ("unpadded", "padded", "wrapped", "running")
NO_LIMIT = 2**31


@dataclass(frozen=True)
class RowFormat:
    """How texts are read; saved with the checkpoint, so that scoring and sampling agree with training."""

    protocol: str = field(
        default="unpadded",
        metadata={
            "choices": list(ROW_FORMATS),
            "help": "a text a row, or MDLM's padded rows, or blocks of texts, or of one running text",
        },
    )
    detokenizer: str = field(
        default="none",
        metadata={
            "choices": list(DETOKENIZERS),
            "help": "undo the spacing of a corpus that was cut into words, as MDLM does for it",
        },
    )

    def __post_init__(self) -> None:
        check_choices(self)

    @property
    def whole_rows(self) -> bool:
        """Whether every slot of a row is the model's to write."""
        return self.protocol in ("padded", "wrapped")

    def content(self, tokenizer: PreTrainedTokenizerBase) -> set[int]:
        """Special tokens that a text may hold."""
        ends = {tokenizer.cls_token_id, tokenizer.sep_token_id}
        return {"padded": ends | {tokenizer.pad_token_id}, "wrapped": ends}.get(self.protocol, set())

    def check_process(self, *, flat: bool) -> None:
        """Refuses a process that does not go with the protocol: one whose tokens are not all alike.

        Raises:
            UserError: with the remedy.
        """
        if self.protocol == "padded" and not flat:
            raise UserError(
                "protocol=padded noises [PAD]s, of which this model's spindle knows nothing; choose another protocol "
                "(a model to be trained: or --spindle none)"
            )

    def check(self, *, packing: bool, streaming: bool, word_freq_file: str) -> None:
        """Refuses settings of the training that do not go with these.

        Raises:
            UserError: with the remedy.
        """
        if self.protocol != "unpadded" and packing:
            raise UserError(f"packing=true is for protocol=unpadded; rows of protocol={self.protocol} are full")
        if self != RowFormat() and streaming:
            raise UserError("streaming=true is for protocol=unpadded without a detokenizer; leave one of them out")
        if self.detokenizer != "none" and word_freq_file:
            raise UserError(
                f"word_freq_file counts text as it stands; leave it out with detokenizer={self.detokenizer}"
            )


# ---- rows ------------------------------------------------------------------------------------------------------------


class _Arranged:
    """What both kinds of rows take from the text they are made of."""

    def __init__(self, text: TokenizedText, tokenizer: PreTrainedTokenizerBase, width: int) -> None:
        self.text, self.width, self.tokenizer = text, width, tokenizer
        self.source, self.cuts, self.identity = text.source, text.cuts, text.identity
        self.identity_before = text.identity_before

    @property
    def widths(self) -> np.ndarray:
        """int64 [N], the slots of each row."""
        return np.full(len(self), self.width)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N], by which rows are put together: all alike."""
        return self.widths

    def with_ends(self, counts: Tensor) -> Tensor:
        """Word counts of another text, int64 [V], with as many [CLS] and [SEP] to a word as these rows have."""
        return with_ends(counts, self.counts(len(counts)), [self.tokenizer.cls_token_id, self.tokenizer.sep_token_id])

    def with_specials(self, counts: Tensor, **numbers: int) -> Tensor:
        """Counts with so many of the special tokens."""
        for name, number in numbers.items():
            counts[getattr(self.tokenizer, f"{name}_token_id")] += number
        return counts


class PaddedRows(_Arranged):
    """protocol=padded; see `dataloader.Text`."""

    def __len__(self) -> int:
        return len(self.text)

    @property
    def num_words(self) -> np.ndarray:
        """int32 [N]."""
        return self.text.num_words

    @property
    def target_lengths(self) -> np.ndarray:
        """int64 [N], scored tokens."""
        return self.text.lengths + 2

    @property
    def size(self) -> str:
        """In words."""
        return self.text.size

    def counts(self, vocab_size: int) -> Tensor:
        """int64 [V], how often each token is scored."""
        return self.with_specials(self.text.counts(vocab_size), cls=len(self), sep=len(self))

    def batch(self, indices: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> Batch:
        """The chosen texts."""
        rows = collate([self.text.sentence(i) for i in indices], tokenizer, self.width)
        everything = torch.ones_like(rows.target_mask)
        return Batch(rows.input_ids, everything, rows.attention_mask, everything)

    def place(self, index: int) -> str:
        """File and line."""
        return self.text.place(index)


class Blocks(_Arranged):
    """protocol=wrapped and running; see `dataloader.Text`. What does not fill the last block is left out."""

    def __init__(
        self, text: TokenizedText, tokenizer: PreTrainedTokenizerBase, width: int, *, separated: bool, scored_ends: bool
    ) -> None:
        """Cut a text into blocks.

        Args:
            text: whole texts, none cut off.
            tokenizer: gives the special ids.
            width: slots of a block, its ends included.
            separated: a [SEP] after every text.
            scored_ends: whether the [CLS] before and the [SEP] after a block are noised and scored.
        """
        super().__init__(text, tokenizer, width)
        self.separated, self.scored_ends, self.inner = separated, scored_ends, width - 2
        self.starts = text.offsets + separated * np.arange(len(text.offsets))
        """int64 [number of texts + 1], where each begins in the stream of all."""
        if not len(self):
            less = f"{self.starts[-1]} tokens do not fill one block of {self.inner}"
            raise UserError(f"{text.source}: {less}; give more text, or choose protocol=unpadded or padded")
        if rest := int(self.starts[-1]) % self.inner:
            words, kept = int(text.num_words.sum()), round(float(self.num_words.sum()))
            lost = f"{rest:,} tokens at the end ({words - kept:,} of {words:,} words) fill no block and are left out"
            self.cuts = f"{text.cuts}, {lost}" if text.cuts else lost

    def __len__(self) -> int:
        return int(self.starts[-1]) // self.inner

    @cached_property
    def num_words(self) -> np.ndarray:
        """float64 [N]: a text that is cut counts in each block by how much of it is there."""
        edges = np.arange(len(self) + 1) * self.inner
        return np.diff(np.interp(edges, self.starts, np.concatenate([[0], np.cumsum(self.text.num_words)])))

    @property
    def target_lengths(self) -> np.ndarray:
        """int64 [N], scored tokens."""
        return self.widths - (0 if self.scored_ends else 2)

    @property
    def size(self) -> str:
        """In words."""
        return f"{len(self):,} blocks of {self.width} tokens from {len(self.text):,}"

    def counts(self, vocab_size: int) -> Tensor:
        """int64 [V], how often each token is scored."""
        end = len(self) * self.inner  # what comes after it is in no block
        last = int(np.searchsorted(self.starts, end, side="right")) - 1
        begins = self.text.offsets[last]
        used = begins + min(end - self.starts[last], self.text.offsets[min(last + 1, len(self.text))] - begins)
        counts = torch.from_numpy(np.bincount(self.text.tokens[:used], minlength=vocab_size))
        ends = len(self) * self.scored_ends
        return self.with_specials(counts, cls=ends, sep=ends + end - int(used))

    def stream(self, begin: int, end: int) -> np.ndarray:
        """Tokens begin..end-1 of all texts one after the other."""
        position = np.arange(begin, end)
        which = np.searchsorted(self.starts, position, side="right") - 1
        within, begins = position - self.starts[which], self.text.offsets[which]
        length = self.text.offsets[which + 1] - begins
        tokens = self.text.tokens[begins + np.minimum(within, length - 1)]
        return np.where(within < length, tokens, self.tokenizer.sep_token_id)

    def batch(self, indices: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> Batch:
        """The chosen blocks."""
        rows = collate([self.stream(i * self.inner, (i + 1) * self.inner) for i in indices], tokenizer)
        return replace(rows, target_mask=rows.attention_mask) if self.scored_ends else rows

    def place(self, index: int) -> str:
        """File and line where a block begins."""
        return self.text.place(int(np.searchsorted(self.starts, index * self.inner, side="right")) - 1)


class GivenFirst:
    """Rows for a causal network, to which the [CLS] that stands first is given: there is nothing to its left."""

    def __init__(self, rows: PaddedRows | Blocks) -> None:
        """Of a protocol in which it is scored."""
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getattr__(self, name: str) -> object:
        return getattr(self.rows, name)

    @property
    def target_lengths(self) -> np.ndarray:
        """int64 [N], scored tokens."""
        return self.rows.target_lengths - 1

    def counts(self, vocab_size: int) -> Tensor:
        """int64 [V], how often each token is scored."""
        return self.rows.with_specials(self.rows.counts(vocab_size), cls=-len(self))

    def with_ends(self, counts: Tensor) -> Tensor:
        """See the rows."""
        tokenizer = self.rows.tokenizer
        return with_ends(counts, self.counts(len(counts)), [tokenizer.cls_token_id, tokenizer.sep_token_id])

    def batch(self, indices: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> Batch:
        """The chosen rows."""
        batch = self.rows.batch(indices, tokenizer)
        return replace(batch, target_mask=batch.target_mask.index_fill(1, torch.tensor([0]), False))


# ---- reading and writing ---------------------------------------------------------------------------------------------


def arrange(
    text: TokenizedText, form: RowFormat, tokenizer: PreTrainedTokenizerBase, width: int, *, causal: bool = False
) -> Text:
    """Rows of `width` slots at most."""
    if form.protocol == "unpadded":
        return text
    if form.protocol == "padded":
        rows = PaddedRows(text, tokenizer, width)
    else:
        wrapped = form.protocol == "wrapped"
        rows = Blocks(text, tokenizer, width, separated=wrapped, scored_ends=wrapped)
    return GivenFirst(rows) if causal and form.whole_rows else rows


def read_rows(
    source: Source,
    form: RowFormat,
    tokenizer: PreTrainedTokenizerBase,
    width: int,
    cache_dir: str,
    *,
    part: str = "",
    keep: Keep | None = None,
    causal: bool = False,
) -> Text:
    """Rows of a source; see `dataloader.tokenize`."""
    in_blocks = form.protocol in ("wrapped", "running")
    longest, lead = NO_LIMIT if in_blocks else width - 2, " " if form.protocol == "running" else ""
    more = {"part": part, "keep": keep, "lead": lead, "detokenizer": form.detokenizer}
    return arrange(tokenize(source, tokenizer, longest, cache_dir, **more), form, tokenizer, width, causal=causal)


def load_texts(
    args: DataArgs, tokenizer: PreTrainedTokenizerBase, form: RowFormat | None = None, *, causal: bool = False
) -> tuple[Text, Text]:
    """The training and the validation rows of a corpus.

    Raises:
        UserError: if there are fewer training rows than one batch holds.
    """
    where = {"width": args.max_length, "cache_dir": args.cache_dir, "causal": causal}
    train, valid = (
        read_rows(source, form or RowFormat(), tokenizer, part=part, keep=keep, **where)
        for source, part, keep in split_sources(args)
    )
    require_a_batch(train, args)
    return train, valid


def blank_row(
    form: RowFormat, tokenizer: PreTrainedTokenizerBase, width: int, text: list[int], *, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Token ids and target mask, each [L], of a row to be written.

    Args:
        form: the protocol.
        tokenizer: gives the special ids.
        width: slots of a row.
        text: what is to stand in it, [MASK] where it is to be written; empty: a row of which nothing is known.
        causal: what stands first is given.
    """
    mask, ends = tokenizer.mask_token_id, (tokenizer.cls_token_id, tokenizer.sep_token_id)
    if text:
        pads = [tokenizer.pad_token_id] * (width - 2 - len(text)) if form.protocol == "padded" else []
        row = [ends[0], *text, ends[1], *pads]
    elif form.whole_rows or (causal and form.protocol == "unpadded"):  # a causal model says where a text ends
        row = [ends[0] if causal else mask, *[mask] * (width - 1)]
    else:
        row = [ends[0], *[mask] * (width - 2), ends[1]]
    ids = torch.tensor(row)
    return ids, ids == mask


def written(form: RowFormat, tokenizer: PreTrainedTokenizerBase, row: Tensor) -> str:
    """The text of a row. Of blocks, their texts with a space between; anything else special is shown, not hidden."""
    if form.protocol == "running":
        return text_of(tokenizer, row[1:-1])
    ends = {tokenizer.sep_token_id} | form.content(tokenizer)
    texts: list[list[int]] = [[]]
    for token in row.tolist()[row[0].item() == tokenizer.cls_token_id :]:
        if token not in ends:
            texts[-1].append(token)
        elif form.protocol != "wrapped":  # the first end is that of the text
            break
        else:
            texts.append([])
    return " ".join(text_of(tokenizer, ids) for ids in texts if ids)
