"""Read-out of the released program: one linear map of the last hidden states to the start and the end of the answer.

The options stand in the row, and a choice is a span: the first token of an option, and its last or the one after it.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

IDEOGRAM = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
Span = tuple[int, int]
"""Positions of the tokens whose start and end logits score an option."""


class SpanHead(nn.Module):
    """Linear map [D -> 2] to start and end logits; the bias stays 0."""

    def __init__(self, hidden_size: int, generator: Generator | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, hidden_size, generator=generator) / hidden_size**0.5)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return start and end logits, each [B, L], of hidden states [B, L, D]."""
        start, end = (hidden @ self.weight.T).unbind(-1)
        return start, end


def span_loss(start: Tensor, end: Tensor, start_positions: Tensor, end_positions: Tensor) -> Tensor:
    """Return the mean over rows of the two cross-entropies over all positions, halved.

    Args:
        start, end: logits [B, L].
        start_positions, end_positions: int64 [B].
    """
    entropy = nn.functional.cross_entropy
    return (entropy(start, start_positions) + entropy(end, end_positions)) / 2


def option_scores(start: Tensor, end: Tensor, options: Sequence[Sequence[Span]], *, released: bool = False) -> Tensor:
    """Return the score of every option of every row, [B, most options], -inf where a row has fewer.

    Args:
        start, end: logits [B, L].
        options: for each row the spans of its options.
        released: multiply the two logits, as the released program does, instead of adding them. The product of two very
            negative logits is large, so it prefers options that both logits reject.
    """
    scores = start.new_full((len(options), max(map(len, options))), -torch.inf)
    for row, spans in enumerate(options):
        for i, (first, last) in enumerate(spans):
            pair = start[row, first], end[row, last]
            scores[row, i] = pair[0] * pair[1] if released else pair[0] + pair[1]
    return scores


def answer_f1(prediction: str, answer: str) -> float:
    """Return F1 over the words of two texts after SQuAD's normalisation (Rajpurkar et al. 2016, arXiv 1606.05250).

    A Chinese character or kana is a word, as in the released program.
    """
    predicted, true = (_words(text) for text in (prediction, answer))
    if not predicted or not true:
        return float(predicted == true)
    common = sum((Counter(predicted) & Counter(true)).values())
    precision, recall = common / len(predicted), common / len(true)
    return 2 * precision * recall / (precision + recall) if common else 0.0


def _words(text: str) -> list[str]:
    text = "".join(c for c in text.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    text = IDEOGRAM.sub(r" \g<0> ", text)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()
