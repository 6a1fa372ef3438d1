"""Count the tokens of a corpus, for the spindle schedule.

python word_freq.py --train_data lm1b --tokenizer bert-base-uncased --output word_freq.json
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

import checkpoint
import dataloader
import hub
from config import parse
from corpus import holds_pairs, read_sentences, training_source
from process import UserError
from runtime import require_writable, run_script
from vocabulary import encode, load_tokenizer, vocabulary_size


@dataclass(frozen=True)
class WordFreqFileArgs:
    """What to count, and where to write it."""

    train_data: str = field(metadata={"aliases": ["--train_data_dir"], "help": "file, folder or data set on the hub"})
    tokenizer: str = field(metadata={"help": "hub name, folder or vocab.txt"})
    output: str = field(metadata={"help": "a .json file: {token: count}"})

    def __post_init__(self) -> None:
        if not self.output.endswith(".json"):
            raise UserError(f"output={self.output}: must end in .json; it holds {{token: count}}")


def main() -> None:
    """Stream the corpus once; nothing but the counts is kept."""
    (args,) = parse([WordFreqFileArgs], __doc__)
    hub.quiet_libraries()
    require_writable("output", Path(args.output))
    tokenizer = load_tokenizer(args.tokenizer)
    source = training_source(args.train_data)
    if holds_pairs(source):  # a source is never noised; main.py adds the [SEP] and [PAD] of its target windows
        source = replace(source, column="trg")
    vocab_size = vocabulary_size(tokenizer)
    counts, num_sentences = np.zeros(vocab_size, dtype=np.int64), 0
    for sentences in dataloader.chunks(read_sentences(source, description="counting")):
        ids = encode(tokenizer, sentences)["input_ids"]
        counts += np.bincount(np.concatenate(ids).astype(np.int64), minlength=vocab_size)
        num_sentences += len(sentences)
    if not counts.any():
        raise UserError(f"{source}: the tokenizer finds no token in it")
    checkpoint.write_word_freq(Path(args.output), torch.from_numpy(counts), tokenizer)
    print(
        f"{num_sentences:,} sentences, {counts.sum():,} tokens, {np.count_nonzero(counts):,} of {vocab_size:,} "
        f"token types seen; written to {args.output}\n"
        f"next: python main.py --train_data {args.train_data} --word_freq_file {args.output} --output_dir DIR"
    )


if __name__ == "__main__":
    run_script(main)
