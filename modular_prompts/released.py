"""What MP2's released program does where this project differs, for comparison with its recorded numbers.

github.com/Hzfinfdu/MPMP at commit c0b9c09. No command uses these functions. The product of logits is in span_head.py.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

Tokens = Callable[[str], list[int]]
"""Map a text to its ids, without special tokens."""
LONGEST = 512


class Marks(NamedTuple):
    """Ids that a row needs besides its texts."""

    cls: int
    sep: int
    placeholders: Sequence[int]
    separator: int
    """The mark after an option."""


class ReleasedRow(NamedTuple):
    """A row of the released program."""

    ids: list[int]
    start: int
    """Position of the first token of the answer."""
    end: int
    """Position of its last token."""
    marked: list[int]
    """1 at the first token of each option and at the mark after it."""


def row_with_options(
    tokens: Tokens, text: str, options: Sequence[str], right: int, marks: Marks, *, multiple_choice: bool
) -> ReleasedRow:
    """Return `[CLS] placeholders text option mark option mark ..`; the last mark of multiple choice is [SEP].

    The text, with its question, is cut at its end, so a long one loses the question.
    """
    tail, spans, marked = [], [], []
    for option in options:
        ids = tokens(option)
        spans.append((len(tail), len(tail) + len(ids) - 1))
        tail += [*ids, marks.separator]
        marked += [1, *[0] * (len(ids) - 1), 1]
    if multiple_choice:
        tail[-1] = marks.sep
    head = [marks.cls, *marks.placeholders]
    head += tokens(text)[: LONGEST - len(head) - len(tail)]
    first, last = (len(head) + place for place in spans[right])
    return ReleasedRow([*head, *tail], first, last, [*[0] * len(head), *marked])


def row_with_answer(
    tokens: Tokens, heading: str, context: str, question: str, answer: str, marks: Marks
) -> ReleasedRow:
    """Return `[CLS] placeholders heading context question [SEP]` and the span of the answer.

    The answer is looked for in the context; "no answer" is a span of the heading.
    """
    parts = [tokens(part) for part in (heading, context, question)]
    ids, wanted = [marks.cls, *marks.placeholders, *parts[0], *parts[1], *parts[2], marks.sep], tokens(answer)
    before = 1 + len(marks.placeholders)
    within = before + len(parts[0]) if answer in context else before
    first = next(i for i in range(within, len(ids)) if ids[i : i + len(wanted)] == wanted)
    return ReleasedRow(ids, first, first + len(wanted) - 1, [0] * len(ids))


def batch_of_draw(index: int, batches: Sequence[int], batch_size: int) -> tuple[int, list[int]]:
    """Return the task and its rows for a number drawn from 0..10^9 - 1: always the same consecutive rows in a batch.

    Args:
        index: the number.
        batches: whole batches of each task; rows after the last are never used.
        batch_size: rows of a batch.
    """
    task = index % len(batches)
    first = index // len(batches) % batches[task] * batch_size
    return task, list(range(first, first + batch_size))


def learning_rates(step: int, router: float, prompt: float, factors: tuple[float, float], switch: int) -> list[float]:
    """Return the rates of router and prompts: two stages by steps of one schedule, whose factors nearly stop either.

    Args:
        step: from 0.
        router, prompt: rates before the switch; that of the prompts is nearly 0.
        factors: of the two rates, at each multiple of `switch`.
        switch: steps of the first stage.
    """
    return [rate * factor ** (step // switch) for rate, factor in zip((router, prompt), factors, strict=True)]
