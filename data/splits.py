"""Training and validation text: the corpus's own split, or a held-out share of its sentences."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from data.column_names import ColumnNames
from data.corpus import (
    Keep,
    Source,
    announce,
    find_source,
    held_out,
    holds_pairs,
    overlap,
    read_records,
    say_once,
    smallest_part,
    training_source,
)
from data.tokenized_text import Text
from utils.errors import UserError, check_ranges


@dataclass(frozen=True)
class DataArgs(ColumnNames):
    """Training data, tokenizer and batches."""

    group: ClassVar[str] = "data"

    train_data: str = field(
        metadata={
            "aliases": ["--train_data_dir", "--task_name", "-d"],
            "help": "text: .txt, .jsonl, .csv, .tsv, .json (.gz, .xz, .zst), .parquet, folder with splits, hub "
            "data set (lm1b)",
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
    trim_vocabulary: bool = field(default=False, metadata={"help": "only those pieces that the training text has"})
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


def split_sources(args: DataArgs) -> tuple[tuple[Source, str, Keep | None], tuple[Source, str, Keep | None]]:
    """Return (source, name of the part, selection of sentences) of the training text and of the validation text.

    Raises:
        UserError: if there is no validation text, and none can be held out.
    """
    names = args.column_names
    train = training_source(args.train_data, names)
    valid = find_source(args.valid_data or args.train_data, "valid", names)
    if args.valid_data and valid is None:
        valid = training_source(args.valid_data, names)
    if valid is not None:
        return (train, "train", None), (valid, "valid", None)
    is_held_out, share = _held_out_part(train, args)
    train_part = (train, f"train without {share}", lambda text: not is_held_out(text))
    return train_part, (train, f"held-out {share}", is_held_out)


def _held_out_part(train: Source, args: DataArgs) -> tuple[Keep, str]:
    """Return a held-out test and its name: a share by hash, and at least one sentence of a small text."""
    is_held_out, share = held_out(args.valid_fraction), f"{args.valid_fraction:g}"
    if args.streaming:  # a stream is not read in advance
        return is_held_out, share
    given = replace(train, column="src") if holds_pairs(train) else train
    found = set()
    for text, _ in read_records(given, description="looking"):  # about a hundred sentences, except in a small text
        found.add(is_held_out(text))
        if len(found) == 2:
            return is_held_out, share
    of_few = smallest_part((text for text, _ in read_records(given, description="looking")), args.valid_fraction)
    if of_few is None:
        raise UserError(f"{train}: all texts are equal, so none can be held out; give more text, or --valid_data")
    return of_few, f"{share} of few"


def say_what_was_read(args: DataArgs, train: Source, valid: Source) -> None:
    """Print on stderr the files of training and validation, and a note if they overlap; nothing for hub data sets.

    Args:
        args: the settings.
        train: source of the training text.
        valid: source of the validation text.
    """
    if not train.files and not valid.files:
        return
    from_train = not args.valid_data and (train.files, train.hub_name) == (valid.files, valid.hub_name)
    announce({"train": train, "valid": f"{args.valid_fraction:g} of train, held out" if from_train else valid})
    if not from_train and (same := overlap(train, valid)):
        say_once(f"note: {same} is training text and validation text, so the bound does not hold for new text")


def require_a_batch(train: Text, args: DataArgs) -> None:
    """Refuse a corpus that is smaller than one batch.

    Raises:
        UserError: with both numbers.
    """
    if args.by_slots and (tokens := int(train.widths.sum())) < args.slots:
        raise UserError(
            f"{args.train_data}: {tokens} training tokens do not fill one batch of {args.slots} slots; "
            "give more text or a smaller batch"
        )
    if not args.by_slots and len(train) < args.batch_size:
        raise UserError(
            f"{args.train_data}: {len(train)} training sentences are fewer than batch_size={args.batch_size}; "
            "give more text or a smaller batch"
        )
