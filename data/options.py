"""Settings of the data: text, tokenizer, batches, prompts of pairs, and the format of text."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from data.column_names import ColumnNames
from data.detokenizers import DETOKENIZERS
from utils.errors import UserError, check_choices, check_ranges, shown

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

PLAIN = "plain"
"""Prompt of a pair without words: source, [SEP], target."""
ROW_FORMATS = ("unpadded", "padded", "wrapped", "running")


@dataclass(frozen=True)
class DataArgs(ColumnNames):
    """Training data, tokenizer and batches."""

    group: ClassVar[str] = "data"

    train_data: str = field(
        metadata={
            "aliases": ["--train_data_dir", "--task_name", "-d"],
            "help": "text: .txt, .jsonl, .csv, .tsv, .json (.gz, .xz, .zst), .parquet, folder with splits, hub "
            "data set (lm1b, NAME:CONFIG)",
        },
    )
    valid_data: str = field(
        default="",
        metadata={"help": "validation text; default: the corpus's, else part of train"},
    )
    valid_fraction: float = field(
        default=0.02,
        metadata={"aliases": ["--dev_size"], "help": "share held out if there is no validation text"},
    )
    tokenizer: str = field(
        default="",
        metadata={
            "aliases": ["-spm"],
            "help": "hub name, folder, vocab.txt or .model; wordpiece, sentencepiece: trained; default: the network's",
        },
    )
    trim_vocabulary: bool = field(default=False, metadata={"help": "removal of pieces that the text lacks"})
    strip_accents: bool = field(default=False, metadata={"help": "removal of accents by a trained wordpiece"})
    vocab_size: int = field(
        default=0,
        metadata={"help": "vocabulary size, trained (0: 8192) or required"},
    )
    max_length: int = field(
        default=128, metadata={"aliases": ["--block_size"], "help": "tokens per sentence, [CLS] and [SEP] included"}
    )
    batch_size: int = field(default=64, metadata={"help": "sentences per process and micro-step"})
    max_tokens: int = field(
        default=0,
        metadata={"help": "slots per batch with padding; 0: by batch_size"},
    )
    packing: bool = field(
        default=False,
        metadata={"help": "rows filled up with whole sentences"},
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "streaming of large corpora; needs max_steps"},
    )
    shuffle_buffer: int = field(default=20_000, metadata={"help": "sentences of a stream shuffled together"})
    num_workers: int = field(default=2, metadata={"help": "processes per rank that read a stream"})
    word_freq_file: str = field(default="", metadata={"help": "JSON from word_freq.py; default: counts of train"})
    cache_dir: str = field(default="out/cache", metadata={"help": "folder of tokenised texts, vocabularies"})

    @property
    def slots(self) -> int:
        """Largest number of slots in a batch."""
        return self.max_tokens or self.batch_size * self.max_length

    @property
    def by_slots(self) -> bool:
        """Whether the size of a batch is a number of slots instead of sentences."""
        return self.max_tokens > 0 or self.packing

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.valid_fraction < 1:
            raise UserError(f"valid_fraction={self.valid_fraction} must lie strictly between 0 and 1")
        check_ranges(self, batch_size=(1, 10**7), max_length=(3, 10**6), max_tokens=(0, 10**9), vocab_size=(0, 10**7))
        check_ranges(self, shuffle_buffer=(1, 10**8), num_workers=(0, 1024))
        if self.strip_accents and self.tokenizer != "wordpiece":
            raise UserError("strip_accents=true needs --tokenizer wordpiece; leave it out")
        if self.max_tokens and self.max_tokens < self.max_length:
            raise UserError(
                f"max_tokens={self.max_tokens} is less than max_length={self.max_length}; "
                "raise the one or lower the other"
            )


@dataclass(frozen=True)
class PairArgs:
    """Format of pairs; without effect for text."""

    group: ClassVar[str] = "pairs (seq2seq)"

    prompt: str = field(
        default="",
        metadata={"help": "template with {src} and {trg}, or plain; default: the card's"},
    )
    target_window: int = field(
        default=0,
        metadata={"help": "tokens of a target and its [SEP]; 0: the 99th percentile of the training targets"},
    )

    def __post_init__(self) -> None:
        if self.prompt:
            check_prompt(self.prompt, "prompt")
        if not 0 <= self.target_window <= 100_000:
            raise UserError(f"target_window={self.target_window} must lie in 0..100000 (0: from the data)")


def check_prompt(prompt: str, origin: str) -> None:
    """Check that a prompt has one source, then text, then the target.

    Raises:
        UserError: with the prompt and its origin.
    """
    between = prompt.removesuffix("{trg}").partition("{src}")[2]
    wrong = prompt.count("{src}") != 1 or prompt.count("{trg}") != 1 or not prompt.endswith("{trg}")
    if prompt != PLAIN and (wrong or not between.strip()):
        rule = "must have {src} once, then a mark or a word, and {trg} at its end"
        raise UserError(f"{origin}={shown(prompt)} {rule}, or be {PLAIN}")


@dataclass(frozen=True)
class TextFormat:
    """Row format and detokenizer, saved with the checkpoint for scoring and sampling."""

    group: ClassVar[str] = "text format"

    row_format: str = field(
        default="unpadded",
        metadata={
            "aliases": ["--protocol"],
            "choices": list(ROW_FORMATS),
            "help": "one text per row (unpadded, padded) or blocks (wrapped, running)",
        },
    )
    detokenizer: str = field(
        default="none",
        metadata={
            "choices": list(DETOKENIZERS),
            "help": "word-tokenised spacing undone",
        },
    )

    def __post_init__(self) -> None:
        check_choices(self)

    @property
    def single(self) -> bool:
        """Whether each row holds one text."""
        return self.row_format in ("unpadded", "padded")

    @property
    def whole_rows(self) -> bool:
        """Whether a sample's row is generated whole, special tokens included."""
        return self.row_format in ("padded", "wrapped")

    def content(self, tokenizer: "PreTrainedTokenizerBase") -> set[int]:
        """Return the special tokens that the model may predict."""
        ends = {tokenizer.cls_token_id, tokenizer.sep_token_id}
        return {"padded": ends | {tokenizer.pad_token_id}, "wrapped": ends}.get(self.row_format, set())

    def check_process(self, *, token_dependent: bool) -> None:
        """Refuse token-dependent noise for rows whose [PAD]s are noised.

        Raises:
            UserError: with the remedy.
        """
        if self.row_format == "padded" and token_dependent:
            raise UserError(
                "row_format=padded noises [PAD]s, for which this model's spindle has no frequency; choose another row "
                "format (in training: or --spindle none)"
            )

    def overridden(self, row_format: str, detokenizer: str) -> "TextFormat":
        """Return the format with the given values; "" keeps the present one."""
        return TextFormat(row_format or self.row_format, detokenizer or self.detokenizer)

    def as_saved(self) -> dict[str, str]:
        """Return the entries of process.json, which calls the row format a protocol."""
        return {"protocol": self.row_format, "detokenizer": self.detokenizer}

    @classmethod
    def from_saved(cls, entries: dict) -> "TextFormat":
        """Read the entries of process.json; a missing entry has its default."""
        names = {"row_format" if name == "protocol" else name: value for name, value in entries.items()}
        return cls(**names)

    def check(self, *, packing: bool, streaming: bool) -> None:
        """Refuse training settings that do not fit the row format or the detokenizer.

        Raises:
            UserError: with the remedy.
        """
        if self.row_format != "unpadded" and packing:
            raise UserError(f"packing=true needs row_format=unpadded; rows of row_format={self.row_format} are full")
        if self != TextFormat() and streaming:
            raise UserError("streaming=true needs row_format=unpadded without a detokenizer; leave one of them out")
