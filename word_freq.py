"""Count the tokens of a corpus, for the spindle schedule.

python word_freq.py --train_data lm1b --tokenizer bert-base-uncased --output word_freq.json
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from data.column_names import ColumnNames
from data.detokenizers import DETOKENIZERS, detokenize
from diffusion.process_options import WordFreqArgs
from utils import hub, job
from utils.command_line import parse, run_script
from utils.errors import UserError, check_choices
from utils.files import require_writable

if TYPE_CHECKING:
    import numpy as np
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from data.corpus import Source

LONGEST = 126
"""Tokens of a sentence in the spindle's report: main.py's default --max_length without [CLS] and [SEP]."""


@dataclass(frozen=True)
class WordFreqFileArgs(ColumnNames):
    """Corpus to count and file to write."""

    group: ClassVar[str] = "counting"

    train_data: str = field(metadata={"aliases": ["--train_data_dir"], "help": "file, folder or data set on the hub"})
    tokenizer: str = field(metadata={"help": "hub name, folder or vocab.txt"})
    output: str = field(metadata={"help": "output file, .json: {token: count}"})
    detokenizer: str = field(
        default="none",
        metadata={"choices": list(DETOKENIZERS), "help": "word-tokenised spacing undone, as by main.py"},
    )
    workers: int = field(default=0, metadata={"help": "number of counting processes; 0: one per core"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)
        if not self.output.endswith(".json"):
            raise UserError(f"output={self.output}: must end in .json")
        if not 0 <= self.workers <= 1024:
            raise UserError(f"workers={self.workers} must lie in 0..1024; 0: one per core")


def main() -> None:
    """Count the corpus in one pass on all cores, and write the counts."""
    (args,) = parse([WordFreqFileArgs], __doc__)
    job.require_single("word_freq.py")
    hub.quiet_libraries()
    # imported here, since --help and refused settings need no torch
    import numpy as np
    import torch

    from data.corpus import announce, holds_pairs, training_source
    from data.tokenizers import load_tokenizer, vocabulary_size
    from data.word_counts import count_corpus, write_word_freq

    require_writable("output", Path(args.output))
    tokenizer = load_tokenizer(args.tokenizer)
    source = training_source(args.train_data, args.column_names)
    # pairs: count targets only, since sources are never masked; main.py adds the [SEP] and [PAD] of target windows
    if holds_pairs(source, streaming=True):
        source = replace(source, column="trg")
        if args.detokenizer != "none":
            raise UserError(f"{args.train_data} holds pairs; detokenizer is for text, leave it out")
    vocab_size = vocabulary_size(tokenizer)
    counts, num_sentences = count_corpus(source, tokenizer, vocab_size, args.workers, args.detokenizer)
    if not counts.any():
        raise UserError(f"{source}: the tokenizer finds no token in it")
    announce({"train": source})
    write_word_freq(Path(args.output), torch.from_numpy(counts), tokenizer, args.detokenizer)
    spindle = describe_spindle(source, tokenizer, counts, args.detokenizer)
    print(
        f"{num_sentences:,} sentences, {counts.sum():,} tokens, {np.count_nonzero(counts):,} of {vocab_size:,} "
        f"token types seen; written to {args.output}\n"
        f"at --word_freq_lambda {WordFreqArgs.word_freq_lambda:g}, {spindle}\n"
        f"next: python main.py --train_data {shlex.quote(args.train_data)} --tokenizer {shlex.quote(args.tokenizer)} "
        f"--word_freq_file {shlex.quote(args.output)}{of_text(args)} --output_dir DIR"
    )


def of_text(args: WordFreqFileArgs) -> str:
    """Return the flags of main.py that make it read the same text."""
    names = ("text_column", "source_column", "target_column", "detokenizer")
    given = {name: getattr(args, name) for name in names if getattr(args, name) not in ("", "none")}
    return "".join(f" --{name} {shlex.quote(value)}" for name, value in given.items())


def describe_spindle(
    source: Source, tokenizer: PreTrainedTokenizerBase, counts: np.ndarray, detokenizer: str = "none"
) -> str:
    """Return the default spindle's report on the first sentences of the corpus."""
    import torch

    from data.corpus import read_records
    from data.tokenized_text import tokenize_in_memory
    from diffusion_word_freq import SpindleSchedule
    from evaluation.spindle_report import SAMPLE, spindle_report

    schedule = SpindleSchedule(WordFreqArgs(), torch.from_numpy(counts))
    first = ((detokenize(text, detokenizer), at) for text, at in islice(read_records(source), SAMPLE))
    text = tokenize_in_memory(first, source, tokenizer, LONGEST)
    return spindle_report(schedule, text, tokenizer)


if __name__ == "__main__":
    run_script(main)
