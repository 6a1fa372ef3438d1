"""Assignment of sentences to batches: by similar length, or packed side by side into rows.

Every epoch has a new order. Sentences are shuffled and batched in pools of 200 batches, so that the first batch of a
large corpus is ready at once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol

import numpy as np
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.batch import Batch
from data.options import DataArgs
from data.tokenized_text import Text

POOL = 200  # batches whose sentences are sorted by length or packed together
ENOUGH = 100_000  # sentences in the estimate of a batch's mean number of sentences


def batch_indices(widths: np.ndarray, args: DataArgs, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the sentence indices of each batch of an epoch; every sentence is in exactly one batch.

    Args:
        widths: int64 [N], slots that each sentence takes.
        args: size of a batch: `batch_size` sentences, `max_tokens` slots, or with `packing` rows of `max_length` slots.
        rng: draws the order.
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
    """Group sentences of similar length, so that batches need little padding; return index lists.

    Args:
        widths: int64 [N].
        batch_size: largest number of sentences in a batch.
        max_tokens: largest number of slots in a batch, sentences times greatest width; 0: `batch_size` is the limit.
    """
    order = np.argsort(widths, kind="stable")
    cuts = cut_by_slots(widths[order], max_tokens) if max_tokens else range(batch_size, len(order), batch_size)
    return np.split(order, cuts)


def cut_by_slots(widths: np.ndarray, max_tokens: int) -> list[int]:
    """Return cuts of increasing widths into parts of at most `max_tokens` slots, length times last width."""
    cuts, begin = [], 0
    for i, width in enumerate(widths.tolist()):
        if (i + 1 - begin) * width > max_tokens and i > begin:
            cuts.append(i)
            begin = i
    return cuts


def packed_rows(widths: np.ndarray, capacity: int) -> list[list[int]]:
    """Pack sentences into rows of at most `capacity` slots by best-fit decreasing; return index lists.

    `models/packing.py` lays a batch's sentences out in this order.
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
    """Return the mean number of sentences in a batch."""
    rng = np.random.default_rng(0)
    some = widths if len(widths) <= ENOUGH else rng.choice(widths, ENOUGH, replace=False)
    if not args.by_slots:
        return args.batch_size
    return len(some) / sum(1 for _ in batch_indices(some, args, rng))


@dataclass(frozen=True)
class Part:
    """One batch of a training step."""

    number: int
    """Index of the batch within the step, from 0, over all processes."""
    epoch: int
    batch: Batch
    locations: Callable[[], list[str]]
    """Return file and line of each sentence."""


class BatchStream(Protocol):
    """Source of training batches: tokenised text here, streams of any size in data/streaming.py."""

    def take(self) -> list[Part]:
        """This process's batches of the next step."""
        ...

    def position(self) -> object:
        """Return the position of the next step, as JSON values, to resume from. All processes must call this."""
        ...

    def close(self) -> None:
        """Release workers and files."""
        ...


class EpochBatches:
    """Batches of successive epochs, each in a new order. Rank r of W takes batches r, r + W, ... of a step."""

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
        """Start at a position.

        Args:
            text: the sentences.
            args: size and kind of batches.
            tokenizer: tokenizer of the text.
            seed: seed of the order.
            parts: batches in a step, over all processes.
            rank: rank of this process.
            world_size: number of processes; divides `parts`.
            position: epoch, and number of its batches already used.
        """
        self.text, self.tokenizer, self.parts, self.rank, self.world_size = text, tokenizer, parts, rank, world_size
        self.epoch, self.used = position
        self._batches = self._all_batches(args, seed)

    def _all_batches(self, args: DataArgs, seed: int) -> Iterator[np.ndarray]:
        while True:
            order = batch_indices(self.text.widths, args, np.random.default_rng([seed, self.epoch]))
            for indices in islice(order, self.used, None):
                self.used += 1
                yield indices
            self.epoch, self.used = self.epoch + 1, 0

    def take(self) -> list[Part]:
        """This process's batches of the next step."""
        taken = []
        for number in range(self.parts):
            indices = next(self._batches)
            if number % self.world_size == self.rank:
                locations = partial(lambda chosen: [self.text.location(i) for i in chosen], indices)
                taken.append(Part(number, self.epoch, self.text.batch(indices, self.tokenizer), locations))
        return taken

    def position(self) -> tuple[int, int]:
        """Return the epoch and the number of its batches already used; equal on every process."""
        return self.epoch, self.used

    def close(self) -> None:
        """Do nothing: no worker or file is open."""


def sorted_batches(
    text: Text, indices: np.ndarray, batch_size: int, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield (indices, batch) over the given sentences once, longest first, for scoring."""
    order = indices[np.argsort(-text.lengths[indices], kind="stable")]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        yield chosen, text.batch(chosen, tokenizer)
