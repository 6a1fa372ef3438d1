"""Read-out of the paper: the options stand in the row, and the answer is a span of it.

A row is `[CLS] placeholders question [SEP] text [SEP] option , option , .. [SEP]`, and for extraction it ends after the
text. One linear map of the last hidden states (span_head.py), trained with the modules, gives each position a start and
an end logit. The score of an option is the sum of those of its first and its last token. The released program lists
options in the same way, but multiplies the logits, trains on all positions, and attends to padding; see released.py.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.plain_text import encode
from models.denoiser import NetworkDenoiser
from modular_prompts.readouts import Part, Readout, answers
from modular_prompts.span_head import SpanHead, answer_f1, option_scores
from modular_prompts.tasks import Card, Row, find_answer
from modular_prompts.tuning import Examples
from utils.errors import UserError

SEPARATOR = {"zh": "，"}
"""Mark after an option, by language; in others a comma."""
LONGEST_ANSWER = 30
"""Tokens of an extracted answer."""
IGNORED = -100
"""Position of an answer that was cut off; the loss leaves it out."""
ROWS_AT_ONCE = 64


class Spans(Readout):
    """Start and end logits of a row with its options, or of a text with its question."""

    def __init__(
        self, denoiser: NetworkDenoiser, tokenizer: PreTrainedTokenizerBase, prompt_length: int, max_length: int = 128
    ) -> None:
        """Freeze a network and make a head, whose weights are trained with the modules."""
        super().__init__(denoiser, tokenizer, prompt_length, max_length)
        self.head = SpanHead(denoiser.network.config.hidden_size)

    def examples(self, *parts: Part) -> Examples:
        """See `Readout`."""
        rows = [row for _, own in parts for row in own]
        written = [row for card, own in parts for row in self.rows(card, own)]

        def scores(chosen: Tensor, prompts: Tensor) -> Tensor:
            start, end = self.logits([written[i] for i in chosen.tolist()], prompts)
            return option_scores(start, end, [written[i].options for i in chosen.tolist()])

        right, sizes = answers(parts)
        return SpanExamples(scores, right, sizes, readout=self, rows=rows, written=written)

    def logits(self, rows: Sequence["SpanRow"], prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Return start and end logits, each [n, L]."""
        hidden, _ = self.hidden([row.ids for row in rows], prompts)
        return self.head(hidden.float().cpu())

    def rows(self, card: Card, rows: Sequence[Row]) -> list["SpanRow"]:
        """Return rows as ids, with the spans of their options, or of the answer in the text.

        Raises:
            UserError: if question and options leave no room for a text, or an option has no token.
        """
        if card.kind == "generation":
            raise UserError(f"{card.name}: readout=spans cannot generate a text; use a checkpoint of pairs")
        if card.kind == "extraction":
            return self._extractions(card, rows)
        found, (mark,) = [], self.tokens([SEPARATOR.get(card.language[:2], ",")])
        tokens = self.option_tokens([(card, rows)], in_text=True)
        tails = [self._listed([tokens[option] for option in row.options], mark) for row in rows]
        for pieces, (tail, spans) in zip(
            self.pieces([(card, rows)], max(len(t) for t, _ in tails)), tails, strict=True
        ):
            ids = self.written(pieces, tail)
            first = len(ids) - len(tail)
            found.append(SpanRow(ids, [(first + a, first + b) for a, b in spans]))
        return found

    def _listed(self, options: Sequence[list[int]], mark: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
        """Return options with a mark after each but the last, and [SEP]; and the first and last place of each."""
        tail, spans = [], []
        for ids in options:
            tail += mark if tail else []
            spans.append((len(tail), len(tail) + len(ids) - 1))
            tail += ids
        return [*tail, self.tokenizer.sep_token_id], spans

    def _extractions(self, card: Card, rows: Sequence[Row]) -> list["SpanRow"]:
        """Return rows of extraction; the question, which differs by row, is part of the head."""
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        found, texts = [], encode(self.tokenizer, [row.texts[-1] for row in rows])
        (asked,) = self.tokens([card.question])
        for i, (row, question) in enumerate(zip(rows, self.tokens([row.texts[0] for row in rows]), strict=True)):
            head = [cls, *self.placeholders, *asked, *question, sep]
            room = self.max_length - len(head) - 1
            if room < 1:
                raise UserError(
                    f"{card.name}: a prompt of {self.prompt_length} tokens and a question of {len(question)} leave no "
                    f"room for the text in max_length={self.max_length}; raise it, or shorten the prompt"
                )
            ids = texts["input_ids"][i][:room]
            ends, text = [texts.end(i, k) for k in range(len(ids))], row.texts[-1]
            span = (IGNORED, IGNORED)
            if (at := find_answer(row.answer, text)) >= 0 and row.answer and ends and at + len(row.answer) <= ends[-1]:
                span = tuple(len(head) + k for k in (bisect_right(ends, at), bisect_left(ends, at + len(row.answer))))
            found.append(SpanRow(torch.tensor([*head, *ids, sep]), [span], len(head), ends))
        return found

    @torch.no_grad()
    def answers(self, rows: Sequence[Row], written: Sequence["SpanRow"], prompt: Tensor) -> list[str]:
        """Return the likeliest span of the text of each row of extraction, of at most `LONGEST_ANSWER` tokens."""
        found = []
        for begin in range(0, len(rows), ROWS_AT_ONCE):
            part = written[begin : begin + ROWS_AT_ONCE]
            start, end = self.logits(part, prompt)
            found += [row.answer(start[i], end[i], rows[begin + i].texts[-1]) for i, row in enumerate(part)]
        return found


@dataclass(frozen=True)
class SpanRow:
    """A row as ids, and the places in it."""

    ids: Tensor
    """int64 [L]."""
    options: list[tuple[int, int]]
    """First and last position of each option; for extraction of the right answer."""
    text_begins: int = 0
    """First position of the text, for extraction."""
    ends: Sequence[int] = ()
    """For extraction the number of characters of the text up to each of its tokens."""

    def answer(self, start: Tensor, end: Tensor, text: str) -> str:
        """Return the span of the text with the largest sum of its logits [L]."""
        number = len(self.ends)
        if not number:
            return ""
        a, b = (logits[self.text_begins : self.text_begins + number] for logits in (start, end))
        sums = a[:, None] + b
        allowed = torch.ones(number, number, dtype=torch.bool).triu().tril(LONGEST_ANSWER - 1)
        first, last = divmod(int(sums.masked_fill(~allowed, -torch.inf).argmax()), number)
        return text[self.ends[first - 1] if first else 0 : self.ends[last]].strip()


@dataclass(frozen=True, kw_only=True)
class SpanExamples(Examples):
    """Rows with options, whose loss is the cross-entropy of these, and rows of extraction, of all positions."""

    readout: Spans
    rows: list[Row]
    written: list[SpanRow]

    metric = "F1"

    def loss(self, prompts: Tensor, rows: Tensor, generator: Generator | None = None) -> Tensor:
        """See `Examples`; for extraction the mean of the cross-entropies of start and end."""
        own = [self.written[i] for i in rows.tolist()]
        start, end = self.readout.logits(own, prompts)
        has_options = self.labels[rows] >= 0
        terms = []
        if has_options.any():
            chosen = has_options.nonzero()[:, 0]
            scores = option_scores(start[chosen], end[chosen], [own[i].options for i in chosen.tolist()])
            terms.append(nn.functional.cross_entropy(scores, self.labels[rows][chosen], reduction="none"))
        for i in (~has_options).nonzero()[:, 0].tolist():
            first, last = own[i].options[0]
            if first != IGNORED:
                length = len(own[i].ids)
                logits, places = torch.stack([start[i, :length], end[i, :length]]), torch.tensor([first, last])
                terms.append(nn.functional.cross_entropy(logits, places)[None])
        return torch.cat(terms).mean() if terms else start.sum() * 0

    def score(self, prompts: Tensor) -> float:
        """Return the accuracy, or for extraction the mean F1 of the answers."""
        if (self.labels >= 0).all():
            return self.accuracy(prompts)
        found = self.readout.answers(self.rows, self.written, prompts)
        return sum(answer_f1(text, row.answer) for text, row in zip(found, self.rows, strict=True)) / len(self.rows)
