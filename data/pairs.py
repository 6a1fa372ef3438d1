"""Pairs (seq2seq): a given source and a noised target in one row of tokens.

    [CLS] prompt before | source | prompt between | target [SEP] [PAD] ... [PAD]
    '----------------- given, never noised -------'  '---- target window ----'

The target window has one width in all rows, in training and in sampling. Its [SEP] and [PAD] are noised and scored, so
that the model learns where a target ends. A source that is too long loses its first tokens.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import yaml
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.batch import Batch
from data.corpus import Keep, Source
from data.options import PLAIN, DataArgs, PairArgs, check_prompt
from data.splits import require_a_batch, split_sources
from data.tokenized_text import TokenizedText, tokenize
from data.tokenizers import encode, text_of
from data.word_counts import with_special_counts
from utils.errors import UserError, shown
from utils.files import local_path, read_text
from utils.hub import first_line

WINDOW_PERCENTILE = 99
NO_LIMIT = 2**31
MOST_CARD = 2**20
"""Bytes of a data card."""
MOST_HEADER = 2**17
"""Characters of a data card's header; parsing them takes about two seconds."""


def prompt_of(data: str) -> str:
    """Return the prompt in the data card (README.md) beside the data, else plain.

    Raises:
        UserError: if the card cannot be read.
    """
    path = local_path(data)
    card = (path if path.is_dir() else path.parent) / "README.md"
    if not path.exists() or not card.exists():
        return PLAIN
    try:
        declared = _header_of(read_text(card, MOST_CARD)).get("prompt", PLAIN)
    except UserError:
        raise
    except Exception as error:  # YAML fails in many ways
        raise UserError(f"{card}: the header is not YAML ({first_line(error)}); give --prompt") from error
    if not isinstance(declared, str):
        raise UserError(f"{card}: prompt={shown(declared)} must be a string with {{src}} and {{trg}}, or {PLAIN}")
    check_prompt(declared, f"{card}: prompt")
    return declared


class _WithoutAliases(yaml.SafeLoader):
    """YAML loader that refuses aliases: a few nested ones expand to gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        """Compose a node, or refuse an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed in a data card")
        return super().compose_node(parent, index)


def _header_of(card: str) -> dict:
    """Parse the header between the two lines of dashes at a card's beginning; empty without them."""
    lines = card.removeprefix("\ufeff").strip().splitlines()
    ends = [i for i, line in enumerate(lines) if line.rstrip() == "---"][:2]
    if len(ends) < 2 or ends[0] != 0:
        return {}
    header = "\n".join(lines[1 : ends[1]])
    if len(header) > MOST_HEADER:
        raise ValueError(f"{len(header):,} characters, more than {MOST_HEADER:,}")
    found = yaml.load(header, Loader=_WithoutAliases)
    if not isinstance(found, dict | None):
        raise TypeError("no keys and values")
    return found or {}


# ---- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairFormat:
    """Format of pairs, saved with the checkpoint, so that sampling agrees with training."""

    prompt: str
    target_window: int

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise UserError(f"prompt={shown(self.prompt)} must be a string")
        check_prompt(self.prompt, "prompt")
        if type(self.target_window) is not int or not 1 <= self.target_window <= 100_000:
            raise UserError(f"target_window={self.target_window!r} must lie in 1..100000")


class Layout:
    """Layout of a pair's row: a `PairFormat` in the ids of a tokenizer."""

    def __init__(self, form: PairFormat, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        """Encode the prompt, and compute the longest source.

        Args:
            form: prompt and window.
            tokenizer: tokenizer of the text.
            max_length: tokens of the longest row, special tokens included.

        Raises:
            UserError: if no token is left for a source.
        """
        before, between, self.source_lead, self.target_lead = prompt_parts(form.prompt)
        head, tail = encode(tokenizer, [before, between])["input_ids"]
        self.head = [tokenizer.cls_token_id, *head]
        self.tail = [tokenizer.sep_token_id] if form.prompt == PLAIN else tail
        self.sep_id, self.pad_id, self.window = tokenizer.sep_token_id, tokenizer.pad_token_id, form.target_window
        around = len(self.head) + len(self.tail)
        self.longest_source = max_length - around - self.window
        if self.longest_source < 1:
            raise UserError(
                f"max_length={max_length} leaves no room for a source: the prompt takes {around} tokens and the target "
                f"window {self.window}; raise --max_length or lower --target_window"
            )

    def given(self, source: np.ndarray) -> list[int]:
        """Return the tokens before the target, at most max_length - window."""
        return [*self.head, *source[max(0, len(source) - self.longest_source) :].tolist(), *self.tail]

    def batch(self, sources: list[np.ndarray], targets: list[np.ndarray]) -> Batch:
        """Build rows, padded to the longest; a row's window is noised and scored, the whole row is attended to.

        Args:
            sources: token ids without special tokens; one that is too long loses its first tokens.
            targets: token ids without special tokens, cut to the window; a full window has no [SEP].
        """
        rows = [self.given(source) for source in sources]
        starts = torch.tensor([len(row) for row in rows])[:, None]
        position = torch.arange(int(starts.max()) + self.window)
        input_ids = torch.full((len(rows), len(position)), self.pad_id)
        for i, (row, target) in enumerate(zip(rows, targets, strict=True)):
            whole = row + [*target.tolist(), self.sep_id][: self.window]
            input_ids[i, : len(whole)] = torch.tensor(whole)
        attended = position < starts + self.window
        return Batch(input_ids, attended, attended & (position >= starts))

    def blanks(self, sources: list[np.ndarray]) -> Batch:
        """Build rows with empty targets, for sampling."""
        return self.batch(sources, [np.zeros(0, np.int64)] * len(sources))


def prompt_parts(prompt: str) -> tuple[str, str, str, str]:
    """Return the text before the source, the text before the target, and the prefix ("" or a space) of each.

    A space before {src} or {trg} belongs to the text after it, as byte-level tokenizers encode it.
    """
    if prompt == PLAIN:
        return "", "", "", ""
    before, between = prompt.removesuffix("{trg}").split("{src}")
    return (
        before.rstrip(),
        between.rstrip(),
        " " if before != before.rstrip() else "",
        " " if between != between.rstrip() else "",
    )


def source_ids(layout: Layout, tokenizer: PreTrainedTokenizerBase, sources: list[str]) -> list[np.ndarray]:
    """Encode sources as in training."""
    led = [layout.source_lead + text if text else "" for text in sources]
    return [np.asarray(ids, dtype=np.int64) for ids in (encode(tokenizer, led)["input_ids"] if led else ())]


def target_text(tokenizer: PreTrainedTokenizerBase, window: Tensor) -> str:
    """Decode a target window, int64 [window], up to its first [SEP] and without [PAD]."""
    ids = window.tolist()
    if tokenizer.sep_token_id in ids:
        ids = ids[: ids.index(tokenizer.sep_token_id)]
    return text_of(tokenizer, [i for i in ids if i != tokenizer.pad_token_id])


# ---- tokenised pairs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenizedPairs:
    """Sources and targets as token ids without special tokens; a `tokenized_text.Text`."""

    sources: TokenizedText
    targets: TokenizedText
    """Targets, cut to the window."""
    layout: Layout

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def source(self) -> Source:
        """Source of the pairs."""
        return self.targets.source

    @property
    def size(self) -> str:
        """Number of pairs, for messages."""
        return f"{len(self):,}"

    @property
    def identity(self) -> str:
        """Hash of the content, for caches and resumption."""
        return f"{self.sources.identity} {self.targets.identity}"

    def legacy_identity(self) -> str:
        """Return the identity in older runs; see `tokenized_text.Text`."""
        return f"{self.sources.legacy_identity()} {self.targets.legacy_identity()}"

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N], tokens of each row, padding outside the window excluded."""
        around = len(self.layout.head) + len(self.layout.tail) + self.layout.window
        return np.minimum(self.sources.lengths, self.layout.longest_source) + around

    @property
    def widths(self) -> np.ndarray:
        """int64 [N], slots of each row, equal to `lengths`."""
        return self.lengths

    @property
    def target_lengths(self) -> np.ndarray:
        """int64 [N], tokens of each target without its [SEP]."""
        return self.targets.lengths

    @property
    def num_words(self) -> np.ndarray:
        """int32 [N], whitespace words in each target as cut."""
        return self.targets.num_words

    @property
    def cuts(self) -> str:
        """Description of what was cut off; empty if nothing was."""
        sources = int((self.sources.lengths > self.layout.longest_source).sum())
        parts = [f"{sources:,} sources cut to their last {self.layout.longest_source} tokens"] if sources else []
        if self.targets.num_truncated:
            parts.append(f"{self.targets.num_truncated:,} targets cut to {self.layout.window}")
        return ", ".join(parts)

    def counts(self, vocab_size: int) -> Tensor:
        """Count each token in the windows, int64 [V]; sources do not count."""
        counts = self.targets.counts(vocab_size)
        free = self.layout.window - self.targets.lengths
        counts[self.layout.sep_id] += int((free > 0).sum())
        counts[self.layout.pad_id] += int(np.maximum(free - 1, 0).sum())
        return counts

    def with_special_counts(self, counts: Tensor) -> Tensor:
        """Add [SEP] and [PAD] to the counts of another text, int64 [V], in proportion to these windows."""
        return with_special_counts(counts, self.counts(len(counts)), [self.layout.sep_id, self.layout.pad_id])

    def location(self, index: int) -> str:
        """Return file and line of a pair."""
        return self.targets.location(index)

    def batch(self, indices: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> Batch:
        """Build a batch of the chosen pairs."""
        return self.layout.batch(
            [self.sources.sentence(i) for i in indices], [self.targets.sentence(i) for i in indices]
        )


def load_pairs(
    data: DataArgs, args: PairArgs, tokenizer: PreTrainedTokenizerBase
) -> tuple[TokenizedPairs, TokenizedPairs, PairFormat]:
    """Return the training pairs, the validation pairs, and their format.

    Raises:
        UserError: if there are fewer training pairs than in one batch, or no token is left for a source.
    """
    parts = split_sources(data)
    prompt = args.prompt or prompt_of(data.train_data)
    window = args.target_window or window_of(parts[0], prompt, tokenizer, data.cache_dir)
    form = PairFormat(prompt, window)
    layout = Layout(form, tokenizer, data.max_length)
    train, valid = (tokenize_pairs(*part, layout, tokenizer, data.cache_dir) for part in parts)
    require_a_batch(train, data)
    return train, valid, form


def window_of(
    part: tuple[Source, str, Keep | None], prompt: str, tokenizer: PreTrainedTokenizerBase, cache_dir: str
) -> int:
    """Return the 99th percentile of the targets' lengths with their [SEP]."""
    source, name, keep = part
    lead = prompt_parts(prompt)[3]
    targets = tokenize(
        replace(source, column="trg"), tokenizer, NO_LIMIT, cache_dir, part=f"{name} targets", keep=keep, lead=lead
    )
    return int(np.percentile(targets.lengths + 1, WINDOW_PERCENTILE, method="inverted_cdf"))


def tokenize_pairs(
    source: Source,
    part: str,
    keep: Keep | None,
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    cache_dir: str,
) -> TokenizedPairs:
    """Tokenise both sides of a source's pairs, or read them from the cache; targets are cut to the window."""
    sides = {"src": (NO_LIMIT, layout.source_lead), "trg": (layout.window, layout.target_lead)}
    sources, targets = (
        tokenize(
            replace(source, column=side), tokenizer, longest, cache_dir, part=f"{part} {side}", keep=keep, lead=lead
        )
        for side, (longest, lead) in sides.items()
    )
    empty = np.flatnonzero(targets.lengths == 0)
    if len(empty):
        raise UserError(f"{targets.location(empty[0])}: the target has no tokens; leave that pair out")
    return TokenizedPairs(sources, targets, layout)
