"""Which sentences go into a batch together: those of like length, or those that fill rows side by side.

Every epoch is dealt anew, pool by pool: 200 batches of shuffled sentences at a time, so that the first batch comes at
once from a corpus of any size.
"""

from collections.abc import Iterator

import numpy as np
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from dataloader import DataArgs, Text
from process import Batch

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
        assert width <= capacity, "dataloader.py cuts every sentence at max_length"
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


def endless_batches(
    text: Text, args: DataArgs, tokenizer: PreTrainedTokenizerBase, *, seed: int, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[int, Batch]]:
    """(epoch, batch) for ever: one epoch after another, each in an order of its own; rank r takes every W-th batch."""
    dealt, epoch = 0, 0
    while True:
        for indices in deal(text.widths, args, np.random.default_rng([seed, epoch])):
            if dealt % world_size == rank:
                yield epoch, text.batch(indices, tokenizer)
            dealt += 1
        epoch += 1


def sorted_batches(
    text: Text, indices: np.ndarray, batch_size: int, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[np.ndarray, Batch]]:
    """(indices, batch) over the given sentences once, longest first: for scoring."""
    order = indices[np.argsort(-text.lengths[indices], kind="stable")]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        yield chosen, text.batch(chosen, tokenizer)
