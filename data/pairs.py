"""Pairs (seq2seq): a source that is given, a target that is noised, and how the two become one row of tokens.

    [CLS] prompt before | source | prompt between | target [SEP] [PAD] ... [PAD]
    '----------------- given, never noised -------'  '---- target window ----'

The window has one width for every row, in training and in sampling, and its [SEP] and [PAD] are content: the model
learns where a target ends, and ends its own. A source too long for its place loses its first tokens.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
import yaml
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.batch import Batch
from data.corpus import Keep, Source
from data.splits import DataArgs, require_a_batch, split_sources
from data.tokenized_text import TokenizedText, tokenize
from data.tokenizers import encode, text_of
from data.word_counts import with_ends
from utils.errors import UserError, shown
from utils.files import local_path, read_text
from utils.hub import first_line

PLAIN = "plain"
WINDOW_PERCENTILE = 99
NO_LIMIT = 2**31
MOST_CARD = 2**20
"""Bytes of a data card,"""
MOST_HEADER = 2**17
"""and characters of its header: about two seconds of reading."""


@dataclass(frozen=True)
class PairArgs:
    """How pairs are written; without meaning for text."""

    prompt: str = field(
        default="",
        metadata={
            "help": "text with {src} in it and {trg} at its end, or plain: [CLS] src [SEP] trg [SEP]; "
            "default: the prompt of the data card, or plain"
        },
    )
    target_window: int = field(
        default=0,
        metadata={"help": "tokens kept free for a target and its [SEP]; 0: what 99 of 100 training targets need"},
    )

    def __post_init__(self) -> None:
        if self.prompt:
            check_prompt(self.prompt, "prompt")
        if not 0 <= self.target_window <= 100_000:
            raise UserError(f"target_window={self.target_window} must lie in 0..100000; 0: taken from the data")


def check_prompt(prompt: str, origin: str) -> None:
    """Refuses a prompt that does not say where source and target go.

    Raises:
        UserError: naming the prompt and where it was found.
    """
    between = prompt.removesuffix("{trg}").partition("{src}")[2]
    wrong = prompt.count("{src}") != 1 or prompt.count("{trg}") != 1 or not prompt.endswith("{trg}")
    if prompt != PLAIN and (wrong or not between.strip()):
        rule = "must hold {src} once, then a mark or a word, and end in {trg}"
        raise UserError(f"{origin}={shown(prompt)} {rule}; or be {PLAIN}")


def prompt_of(data: str) -> str:
    """The prompt that the card (README.md) beside the data declares, else plain.

    Raises:
        UserError: if there is a card but it cannot be read.
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
        raise UserError(f"{card}: its header is not YAML ({first_line(error)}); give --prompt") from error
    if not isinstance(declared, str):
        raise UserError(f"{card}: prompt={shown(declared)} must be a text with {{src}} and {{trg}}, or {PLAIN}")
    check_prompt(declared, f"{card}: prompt")
    return declared


class _WithoutAliases(yaml.SafeLoader):
    """YAML in which nothing stands for something else: a few aliases of aliases unfold to gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        """As ever, but for aliases."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name), which cards do not need")
        return super().compose_node(parent, index)


def _header_of(card: str) -> dict:
    """What stands between the lines of dashes at a card's beginning; nothing if there are none."""
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
    """How pairs are written; saved with the checkpoint, so that sampling agrees with training."""

    prompt: str
    target_window: int

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise UserError(f"prompt={shown(self.prompt)} must be a text")
        check_prompt(self.prompt, "prompt")
        if type(self.target_window) is not int or not 1 <= self.target_window <= 100_000:
            raise UserError(f"target_window={self.target_window!r} must lie in 1..100000")


class Layout:
    """A `PairFormat` in the ids of a tokenizer."""

    def __init__(self, form: PairFormat, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        """Work out what surrounds a source, and how long it may be.

        Args:
            form: prompt and window.
            tokenizer: gives all ids.
            max_length: longest row in tokens, everything included.

        Raises:
            UserError: if no room is left for a source.
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
        """Everything before the target: int [at most max_length - window]."""
        return [*self.head, *source[max(0, len(source) - self.longest_source) :].tolist(), *self.tail]

    def batch(self, sources: list[np.ndarray], targets: list[np.ndarray]) -> Batch:
        """Rows padded to the longest; only what lies within a row's window may be noised, and all of a row is attended.

        Args:
            sources: token ids without special tokens; too long ones lose their first.
            targets: the same; what exceeds the window is lost, and a full window has no [SEP].
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
        """Rows whose target is still to be drawn."""
        return self.batch(sources, [np.zeros(0, np.int64)] * len(sources))


def prompt_parts(prompt: str) -> tuple[str, str, str, str]:
    """Text before the source, text between source and target, and what source and target begin with ("" or a space).

    A space before {src} or {trg} goes to the text that follows it, where byte-level tokenizers write it.
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
    """Token ids of sources, as training has them."""
    led = [layout.source_lead + text if text else "" for text in sources]
    return [np.asarray(ids, dtype=np.int64) for ids in encode(tokenizer, led)["input_ids"]]


def target_text(tokenizer: PreTrainedTokenizerBase, window: Tensor) -> str:
    """The text in a target window, int64 [window]: what stands before the first [SEP], without [PAD]."""
    ids = window.tolist()
    if tokenizer.sep_token_id in ids:
        ids = ids[: ids.index(tokenizer.sep_token_id)]
    return text_of(tokenizer, [i for i in ids if i != tokenizer.pad_token_id])


# ---- tokenised pairs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenizedPairs:
    """Sources and targets, token ids without special tokens. Satisfies `dataloader.Text`."""

    sources: TokenizedText
    targets: TokenizedText
    """Cut to the window."""
    layout: Layout

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def source(self) -> Source:
        """Where they were read."""
        return self.targets.source

    @property
    def size(self) -> str:
        """In words."""
        return f"{len(self):,}"

    @property
    def identity(self) -> str:
        """A name for just these tokens."""
        return f"{self.sources.identity} {self.targets.identity}"

    def identity_before(self) -> str:
        """See `dataloader.Text`."""
        return f"{self.sources.identity_before()} {self.targets.identity_before()}"

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N], tokens in each row: the sources decide, since every window is as wide."""
        around = len(self.layout.head) + len(self.layout.tail) + self.layout.window
        return np.minimum(self.sources.lengths, self.layout.longest_source) + around

    @property
    def widths(self) -> np.ndarray:
        """int64 [N], the same: a row is all that a pair takes."""
        return self.lengths

    @property
    def target_lengths(self) -> np.ndarray:
        """int64 [N], tokens in each target without its [SEP]."""
        return self.targets.lengths

    @property
    def num_words(self) -> np.ndarray:
        """int32 [N], whitespace words in the part of each target that was kept."""
        return self.targets.num_words

    @property
    def cuts(self) -> str:
        """What was cut off, in words; empty if nothing was."""
        sources = int((self.sources.lengths > self.layout.longest_source).sum())
        parts = [f"{sources:,} sources cut to their last {self.layout.longest_source} tokens"] if sources else []
        if self.targets.num_truncated:
            parts.append(f"{self.targets.num_truncated:,} targets cut to {self.layout.window}")
        return ", ".join(parts)

    def counts(self, vocab_size: int) -> Tensor:
        """int64 [V], how often each token is content of a window: sources count nowhere."""
        counts = self.targets.counts(vocab_size)
        free = self.layout.window - self.targets.lengths
        counts[self.layout.sep_id] += int((free > 0).sum())
        counts[self.layout.pad_id] += int(np.maximum(free - 1, 0).sum())
        return counts

    def with_ends(self, counts: Tensor) -> Tensor:
        """Word counts of another text, int64 [V], with as many [SEP] and [PAD] to a word as these windows have."""
        return with_ends(counts, self.counts(len(counts)), [self.layout.sep_id, self.layout.pad_id])

    def place(self, index: int) -> str:
        """File and line."""
        return self.targets.place(index)

    def batch(self, indices: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> Batch:
        """The chosen pairs."""
        return self.layout.batch(
            [self.sources.sentence(i) for i in indices], [self.targets.sentence(i) for i in indices]
        )


def load_pairs(
    data: DataArgs, args: PairArgs, tokenizer: PreTrainedTokenizerBase
) -> tuple[TokenizedPairs, TokenizedPairs, PairFormat]:
    """The training and the validation pairs of a corpus, and how they are written.

    Raises:
        UserError: if there are fewer training pairs than a batch holds, or no room for a source.
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
    """The least window that holds 99 of 100 targets with their [SEP]."""
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
    """Both sides of a source's pairs, from the cache if they are there; targets are cut to the window."""
    sides = {"src": (NO_LIMIT, layout.source_lead), "trg": (layout.window, layout.target_lead)}
    sources, targets = (
        tokenize(
            replace(source, column=side), tokenizer, longest, cache_dir, part=f"{part} {side}", keep=keep, lead=lead
        )
        for side, (longest, lead) in sides.items()
    )
    empty = np.flatnonzero(targets.lengths == 0)
    if len(empty):
        raise UserError(f"{targets.place(empty[0])}: the target is empty to the tokenizer; leave that pair out")
    return TokenizedPairs(sources, targets, layout)
