"""How well a tokenizer's vocabulary fits a text: pieces per word, and the share of unknown tokens.

python -m data.vocabulary_fit --tokenizer minilm --data my_text.txt

The exit code is 0 if the fit is good, else 3; 1 and 2 are those of errors. The vocabulary of minilm cuts English news
into 1.1 pieces per word, German into 1.9; `run.sh` begins from pretrained English weights only where their vocabulary
fits.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

from data.column_names import UNNAMED, ColumnNames
from data.corpus import PAIR, holds_pairs, read_sentences, training_source
from utils import hub
from utils.command_line import parse, run_script
from utils.errors import UserError

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

SAMPLE = 2000
"""Sentences read, from the start of the text."""
MOST_PIECES, MOST_UNKNOWN = 1.3, 0.01
"""Largest number of pieces per word, and largest share of unknown tokens, of a good fit."""
WORD = re.compile(r"[^\W_]+|[^\w\s]|_")
"""A word, or a mark; BERT cuts at underscores."""
POOR = 3
"""Exit code for a poor fit; Python itself exits with 1 after an exception."""


@dataclass(frozen=True)
class FitArgs(ColumnNames):
    """Tokenizer and text to compare."""

    group: ClassVar[str] = "fit"

    tokenizer: str = field(metadata={"help": "hub name, folder, vocab.txt, or minilm"})
    data: str = field(metadata={"help": "text or pairs, as for main.py"})


@dataclass(frozen=True)
class Fit:
    """Fit of a vocabulary to a text."""

    pieces_per_word: float
    unknown_share: float

    @property
    def good(self) -> bool:
        """Whether the vocabulary was made for such a text."""
        return self.pieces_per_word <= MOST_PIECES and self.unknown_share <= MOST_UNKNOWN


def fit_of(tokenizer: PreTrainedTokenizerBase, sentences: list[str]) -> Fit:
    """Return the fit of a tokenizer to some sentences; marks count as words of their own.

    Raises:
        UserError: if there is no sentence.
    """
    from data.plain_text import encode

    words = sum(len(WORD.findall(sentence)) for sentence in sentences)
    if not words:
        raise UserError("the text has no word; give another")
    rows = encode(tokenizer, sentences, note=False)["input_ids"]
    unknown = sum(row.count(tokenizer.unk_token_id) for row in rows)
    pieces = sum(map(len, rows))
    return Fit(pieces / words, unknown / max(1, pieces))


def beginning(data: str, names: ColumnNames = UNNAMED) -> list[str]:
    """Return the first sentences of a text, or the first sources and targets of pairs."""
    source = training_source(data, names)
    columns = PAIR if holds_pairs(source) else (source.column,)
    return [text for c in columns for text in islice(read_sentences(replace(source, column=c)), SAMPLE)]


def main() -> None:
    """Print the fit; exit with POOR if it is not good."""
    (args,) = parse([FitArgs], __doc__)
    hub.quiet_libraries()
    from data.tokenizers import load_tokenizer  # here, since --help needs no torch

    tokenizer = load_tokenizer(args.tokenizer)
    fit = fit_of(tokenizer, beginning(args.data, args.column_names))
    print(f"{fit.pieces_per_word:.2f} pieces per word, {100 * fit.unknown_share:.1f} % unknown")
    sys.exit(0 if fit.good else POOR)


if __name__ == "__main__":
    run_script(main)
