"""Which sentences go into a batch together: those of like length, or those that fill rows side by side.

Every epoch is dealt anew, pool by pool: 200 batches of shuffled sentences at a time, so that the first batch comes at
once from a corpus of any size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol

import numpy as np
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.batch import Batch
from data.splits import DataArgs
from data.tokenized_text import Text

POOL = 200  # batches whose sentences are sorted by length, or packed, together
ENOUGH = 100_000  # sentences, to tell how many a batch holds


def deal(widths: np.ndarray, args: DataArgs, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Index lists, one a batch, every sentence in exactly one of them.

    Args:
        widths: int64 [N], slots that each sentence takes.
        args: `batch_size` sentences a batch, or `max_tokens` slots; with `packing` so many rows of max_length.
        rng: deals.
    """
    order, waiting, rows = rng.permutation(len(widths)), [], args.slots // args.max_length
    size = POOL * max(1, int(args.slots / widths.mean()) if args.by_slots else args.batch_size)
    for start in range(0, len(order), size):
        pool = order[start : start + size]
        if args.packing:
            filled = packed_rows(widths[pool], args.max_length)
            waiting += [pool[filled[i]] for i in rng.permutation(len(filled))]
            while len(waiting) >= rows:
                yield np.concatenate(waiting[:rows])
                del waiting[:rows]
        else:
            batches = length_buckets(widths[pool], args.batch_size, args.max_tokens)
            yield from (pool[batches[i]] for i in rng.permutation(len(batches)))
    if waiting:
        yield np.concatenate(waiting)


def length_buckets(widths: np.ndarray, batch_size: int, max_tokens: int = 0) -> list[np.ndarray]:
    """Sentences of like length together, so that a batch is nearly a rectangle: index lists of at most `batch_size`.

    Args:
        widths: int64 [N].
        batch_size: sentences in a batch.
        max_tokens: if not 0, slots in a batch instead: as many sentences as fit, times the width of the widest.
    """
    order = np.argsort(widths, kind="stable")
    cuts = cut_by_slots(widths[order], max_tokens) if max_tokens else range(batch_size, len(order), batch_size)
    return np.split(order, cuts)


def cut_by_slots(widths: np.ndarray, max_tokens: int) -> list[int]:
    """Where to cut widths that rise, so that no part takes more slots than that: its length times its last width."""
    cuts, begin = [], 0
    for i, width in enumerate(widths.tolist()):
        if (i + 1 - begin) * width > max_tokens and i > begin:
            cuts.append(i)
            begin = i
    return cuts


def packed_rows(widths: np.ndarray, capacity: int) -> list[list[int]]:
    """Rows of at most `capacity` slots, as index lists: the widest sentence first, each where it leaves least room.

    (Best fit decreasing; the network lays a batch's sentences out in the order they come, `models/packing.py`.)
    """
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    for i in np.argsort(-widths, kind="stable").tolist():
        width = int(widths[i])
        assert width <= capacity, "data/tokenized_text.py cuts every sentence at max_length"
        room = next((room for room in range(width, capacity) if by_room[room]), capacity)
        if by_room[room]:
            row = by_room[room].pop()
        else:
            row = len(rows)
            rows.append([])
        rows[row].append(i)
        by_room[room - width].append(row)
    return rows


def mean_batch(widths: np.ndarray, args: DataArgs) -> float:
    """Sentences in a batch, on average."""
    rng = np.random.default_rng(0)
    some = widths if len(widths) <= ENOUGH else rng.choice(widths, ENOUGH, replace=False)
    if not args.by_slots:
        return args.batch_size
    return len(some) / sum(1 for _ in deal(some, args, rng))


@dataclass(frozen=True)
class Part:
    """A batch of a training step."""

    number: int
    """Which of the step's batches it is, from 0, over all processes."""
    epoch: int
    batch: Batch
    places: Callable[[], list[str]]
    """File and line of its sentences."""


class BatchStream(Protocol):
    """What training takes its steps from; texts kept on disk here, corpora of any size in data/streaming.py."""

    def take(self) -> list[Part]:
        """This process's batches of the next step."""
        ...

    def position(self) -> object:
        """What the next step begins with, for a later run of the same data: JSON. All processes ask together."""
        ...

    def close(self) -> None:
        """The end of it."""
        ...


class DealtBatches:
    """One epoch after another, each in an order of its own. Of a step's batches, rank r takes every W-th."""

    def __init__(
        self,
        text: Text,
        args: DataArgs,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        parts: int = 1,
        rank: int = 0,
        world_size: int = 1,
        position: tuple[int, int] = (0, 0),
    ) -> None:
        """Start where an earlier stream stood.

        Args:
            text: what to deal.
            args: how.
            tokenizer: of the text.
            seed: of the order.
            parts: batches in a step, of all processes together.
            rank: which of them this one takes: rank, rank + world_size, ...
            world_size: number of processes; divides `parts`.
            position: epoch, and how many of its batches are used up.
        """
        self.text, self.tokenizer, self.parts, self.rank, self.world_size = text, tokenizer, parts, rank, world_size
        self.epoch, self.dealt = position
        self._dealer = self._deal(args, seed)

    def _deal(self, args: DataArgs, seed: int) -> Iterator[np.ndarray]:
        while True:
            order = deal(self.text.widths, args, np.random.default_rng([seed, self.epoch]))
            for indices in islice(order, self.dealt, None):
                self.dealt += 1
                yield indices
            self.epoch, self.dealt = self.epoch + 1, 0

    def take(self) -> list[Part]:
        """This process's batches of the next step."""
        taken = []
        for number in range(self.parts):
            indices = next(self._dealer)
            if number % self.world_size == self.rank:
                places = partial(lambda chosen: [self.text.place(i) for i in chosen], indices)
                taken.append(Part(number, self.epoch, self.text.batch(indices, self.tokenizer), places))
        return taken

    def position(self) -> tuple[int, int]:
        """Epoch, and how many of its batches are used up: the same for every process."""
        return self.epoch, self.dealt

    def close(self) -> None:
        """Nothing is held open."""


def sorted_batches(
    text: Text, indices: np.ndarray, batch_size: int, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[np.ndarray, Batch]]:
    """(indices, batch) over the given sentences once, longest first: for scoring."""
    order = indices[np.argsort(-text.lengths[indices], kind="stable")]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        yield chosen, text.batch(chosen, tokenizer)
