"""Which text is trained on and which is held out: files of the corpus's own, or a share of its sentences."""

from dataclasses import dataclass, field, replace

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
class DataArgs:
    """What to train on."""

    train_data: str = field(
        metadata={
            "aliases": ["--train_data_dir", "--task_name", "-d"],
            "help": ".txt, .jsonl (.gz, .xz), a folder with train / valid files, or a data set on the hub (lm1b)",
        },
    )
    valid_data: str = field(
        default="", metadata={"help": "the same kinds; default: the folder's own, else a part of train"}
    )
    valid_fraction: float = field(
        default=0.02,
        metadata={"aliases": ["--dev_size"], "help": "share of train set aside when there is no valid set"},
    )
    tokenizer: str = field(
        default="",
        metadata={
            "aliases": ["-spm"],
            "help": "hub name, folder, vocab.txt, SentencePiece .model; `wordpiece` or `sentencepiece` to learn one; "
            "default: the network's own",
        },
    )
    strip_accents: bool = field(
        default=False, metadata={"help": "removal of accents from letters (é to e) by a learnt wordpiece"}
    )
    vocab_size: int = field(default=0, metadata={"help": "entries of a learnt vocabulary; otherwise only checked"})
    max_length: int = field(
        default=128, metadata={"aliases": ["--block_size"], "help": "tokens a sentence, [CLS] and [SEP] included"}
    )
    batch_size: int = field(default=64, metadata={"help": "sentences per process and micro-step"})
    max_tokens: int = field(
        default=0,
        metadata={"help": "instead: as many sentences as fit into so many slots, padding included; 0: batch_size"},
    )
    packing: bool = field(
        default=False,
        metadata={"help": "rows of max_length slots, filled with whole sentences; batch_size then counts rows"},
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "read the training text as it is used: corpora larger than memory; needs max_steps"},
    )
    shuffle_buffer: int = field(
        default=20_000, metadata={"help": "sentences of a stream in memory, to be shuffled, of all processes together"}
    )
    num_workers: int = field(default=2, metadata={"help": "processes that read and tokenise a stream, for each rank"})
    word_freq_file: str = field(
        default="", metadata={"help": "{token: count} JSON from word_freq.py; default: count train"}
    )
    cache_dir: str = field(default="out/cache", metadata={"help": "where tokenised text is kept"})

    @property
    def slots(self) -> int:
        """Slots in a batch, at most."""
        return self.max_tokens or self.batch_size * self.max_length

    @property
    def by_slots(self) -> bool:
        """Whether slots, not sentences, fill a batch."""
        return self.max_tokens > 0 or self.packing

    def __post_init__(self) -> None:
        if not 0 < self.valid_fraction < 1:
            raise UserError(f"valid_fraction={self.valid_fraction} must lie strictly between 0 and 1")
        check_ranges(self, batch_size=(1, 10**7), max_length=(3, 10**6), max_tokens=(0, 10**9), vocab_size=(0, 10**7))
        check_ranges(self, shuffle_buffer=(1, 10**8), num_workers=(0, 1024))
        if self.strip_accents and self.tokenizer != "wordpiece":
            raise UserError("strip_accents=true is for a vocabulary learnt with --tokenizer wordpiece; leave it out")
        if self.max_tokens and self.max_tokens < self.max_length:
            raise UserError(
                f"max_tokens={self.max_tokens} holds no sentence of max_length={self.max_length}; "
                "raise the one or lower the other"
            )


def split_sources(args: DataArgs) -> tuple[tuple[Source, str, Keep | None], tuple[Source, str, Keep | None]]:
    """Where training and validation text come from: each its source, a name for the part, and what to take of it.

    Raises:
        UserError: if there is neither validation text nor anything to hold out.
    """
    train = training_source(args.train_data)
    valid = find_source(args.valid_data or args.train_data, "valid")
    if args.valid_data and valid is None:
        valid = training_source(args.valid_data)
    if valid is not None:
        return (train, "train", None), (valid, "valid", None)
    aside, share = _aside(train, args)
    return (train, f"train without {share}", lambda text: not aside(text)), (train, f"held-out {share}", aside)


def _aside(train: Source, args: DataArgs) -> tuple[Keep, str]:
    """What is held out of a training text, and a name for it: a share by hash, of a few sentences one at least."""
    aside, share = held_out(args.valid_fraction), f"{args.valid_fraction:g}"
    if args.streaming:  # looks for itself, and not through all of it
        return aside, share
    given = replace(train, column="src") if holds_pairs(train) else train
    found = set()
    for text, _ in read_records(given, description="looking"):  # a hundred or so tell, of all but the smallest
        found.add(aside(text))
        if len(found) == 2:
            return aside, share
    few = smallest_part((text for text, _ in read_records(given, description="looking")), args.valid_fraction)
    if few is None:
        raise UserError(f"{train}: one text, or all the same, so none can be held out; give more, or --valid_data")
    return few, f"{share} of few"


def say_what_was_read(args: DataArgs, train: Source, valid: Source) -> None:
    """Say on stderr which files are trained and validated on, and whether they are the same; of files alone.

    Args:
        args: the settings.
        train: where the training text was read.
        valid: where the validation text was.
    """
    if not train.files and not valid.files:
        return
    aside = not args.valid_data and (train.files, train.hub_name) == (valid.files, valid.hub_name)
    announce({"train": train, "valid": f"{args.valid_fraction:g} of it, held out" if aside else valid})
    if not aside and (same := overlap(train, valid)):
        say_once(f"note: {same} is training text and validation text: the bound says nothing of other text")


def require_a_batch(train: Text, args: DataArgs) -> None:
    """Refuses a corpus smaller than a batch.

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
