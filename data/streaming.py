"""Streaming of training text: any number of shards, any size, shuffled, resumed at the exact record.

`datasets` with a stateful loader would not resume at the exact record. `shards.partition` divides the corpus among
lanes. Batch m of the training comes from lane m modulo the number of lanes. Rank r of W takes every W-th batch, so each
rank, and each of its workers, has its own lanes. A lane reads its pieces in an order drawn for each epoch, one pool of
sentences at a time. Four numbers give a lane's position: epoch, piece, first record of the pool, batches used.
"""

import hashlib
import math
import multiprocessing
import os
import signal
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from multiprocessing.synchronize import Event as EventType
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data import shards
from data.batch import Batch
from data.batching import Part, batch_indices, mean_batch
from data.corpus import Keep, Source, held_out
from data.options import DataArgs
from data.sources import kind
from data.splits import split_sources
from data.tokenized_text import TokenizedText, tokenize, tokenize_in_memory
from data.tokenizers import tokenizer_fingerprint
from data.word_counts import count_tokens
from utils.distributed import from_everyone
from utils.errors import UserError
from utils.hub import first_line
from utils.workers import die_with_parent, disable_tokenizer_threads

LANES = 8
"""Smallest number of lanes, raised to a multiple of the reading processes; a run may resume on 1, 2, 4 or 8."""
SAMPLE = 20_000
"""Sentences in the sample from which lengths are estimated."""
FULL_BATCHES = 4
"""Smallest number of full batches in a pool."""
POOL_CHARACTERS = 2**24
"""Largest number of characters in a pool, approximately."""
ENDS = 2**16
"""Bytes at either end of a file that identify it."""
Position = tuple[int, int, int, int]


@dataclass(frozen=True)
class StreamedText:
    """Training text of unknown length; the part of `tokenized_text.Text` that a sample can provide."""

    source: Source
    sample: TokenizedText
    args: DataArgs
    identity: str
    tokenizer: PreTrainedTokenizerBase
    held_out_fraction: float
    """Share that is held out; 0 if there is separate validation text."""
    cuts: str = ""

    @property
    def widths(self) -> np.ndarray:
        """int64 [n], slots of each sentence in a sample."""
        return self.sample.widths

    @property
    def target_lengths(self) -> np.ndarray:
        """int64 [n], tokens of each sentence in a sample."""
        return self.sample.lengths

    @property
    def size(self) -> str:
        """Description of the size, for messages."""
        if self.source.hub_name:
            return f"a stream of {self.source.hub_name} as"
        size = sum(file.stat().st_size for file in self.source.files)
        return f"a stream of {len(self.source.files)} files, {size / 1e6:,.1f} MB, as"

    def legacy_identity(self) -> str:
        """Return the identity in older runs; see `tokenized_text.Text`."""
        return _identity(self.source, self.tokenizer, self.args, self.held_out_fraction, named=True)

    def counts(self, vocab_size: int) -> Tensor:
        """Count each token in the whole text, int64 [V], in one pass whose result is cached."""
        times = [file.stat().st_mtime_ns for file in self.source.files]  # a changed file may keep its size
        name = hashlib.blake2b(repr([self.identity, times, vocab_size]).encode(), digest_size=12).hexdigest()
        return count_tokens(self.source, self.tokenizer, vocab_size, cache_dir=self.args.cache_dir, identity=name)


def open_stream(
    source: Source, tokenizer: PreTrainedTokenizerBase, args: DataArgs, *, held_out_fraction: float = 0.0
) -> StreamedText:
    """Open a stream, with a sample of the first records of each lane.

    Raises:
        UserError: if there are no records, or one is invalid.
    """
    parts = [share for share in shards.partition(source, LANES) if share]
    keep = _keep(held_out_fraction)
    records = (
        (record.text, (share[0].file, record.at))
        for share in parts
        for record in islice(shards.read(source, share[0], keep=keep), SAMPLE // len(parts))
    )
    sample = tokenize_in_memory(records, source, tokenizer, args.max_length - 2, describe=partial(_location, source))
    if not len(sample):
        raise UserError(f"{source}: contains no text; one sentence per line is expected")
    identity = _identity(source, tokenizer, args, held_out_fraction)
    return StreamedText(source, sample, args, identity, tokenizer, held_out_fraction)


def _identity(
    source: Source, tokenizer: PreTrainedTokenizerBase, args: DataArgs, held_out_fraction: float, *, named: bool = False
) -> str:
    """Hash a stream by its files' kinds, sizes and ends; `named`: by their names, as in older runs."""
    recipe = [source.hub_name, args.max_length, held_out_fraction, tokenizer_fingerprint(tokenizer)]
    recipe += source.names.given
    for file in source.files:
        recipe.append((os.fsencode(file.name) if named else kind(file), file.stat().st_size, *_ends(file)))
    return hashlib.blake2b(repr(recipe).encode(), digest_size=12).hexdigest()


def _ends(file: Path) -> tuple[bytes, bytes]:
    with open(file, "rb") as stream:
        head = stream.read(ENDS)
        stream.seek(max(0, file.stat().st_size - ENDS))
        return head, stream.read(ENDS)


def load_stream(
    args: DataArgs, tokenizer: PreTrainedTokenizerBase, eval_sequences: int
) -> tuple[StreamedText, TokenizedText]:
    """Return the stream and the validation text: the corpus's own, or the first held-out sentences of the stream."""
    (source, _, keep), (valid, part, _) = split_sources(args)
    if keep is None:
        stream = open_stream(source, tokenizer, args)
        text = tokenize(valid, tokenizer, args.max_length - 2, args.cache_dir, part=part)
    else:
        stream = open_stream(source, tokenizer, args, held_out_fraction=args.valid_fraction)
        text = first_held_out(source, tokenizer, args, max(eval_sequences, 1000))
    return stream, text


def first_held_out(source: Source, tokenizer: PreTrainedTokenizerBase, args: DataArgs, number: int) -> TokenizedText:
    """Return the first held-out sentences of a stream, for validation.

    Raises:
        UserError: if there are none.
    """
    keep = held_out(args.valid_fraction)
    pieces = [piece for share in shards.partition(source, 1) for piece in share]
    records = ((r.text, (piece.file, r.at)) for piece in pieces for r in shards.read(source, piece, keep=keep))
    describe = partial(_location, source)
    text = tokenize_in_memory(islice(records, number), source, tokenizer, args.max_length - 2, describe=describe)
    if not len(text):
        raise UserError(f"{source}: valid_fraction={args.valid_fraction} holds nothing out; give valid_data")
    return text


def _location(source: Source, at: tuple[int, int]) -> str:
    return shards.location(source, *at)


def _keep(held_out_fraction: float) -> Keep | None:
    if not held_out_fraction:
        return None
    is_held_out = held_out(held_out_fraction)
    return lambda text: not is_held_out(text)


# ---- lanes -----------------------------------------------------------------------------------------------------------


@dataclass
class LaneBatch:
    """One batch of a lane, as a worker returns it."""

    number: int
    """Index of the batch in the training."""
    lane: int
    position: Position
    """Position of the lane after this batch."""
    arrays: dict[str, np.ndarray | None]
    """Fields of a Batch. Tensors would use /dev/shm, which is often small in a container; a full one kills workers."""
    locations: np.ndarray
    """int64 [B, 2], file and position of each sentence."""

    def batch(self) -> Batch:
        """Convert the arrays to a Batch."""
        return Batch(**{name: None if a is None else torch.from_numpy(a) for name, a in self.arrays.items()})


@dataclass(eq=False)
class Lanes(IterableDataset):
    """Batches of this process, in order; worker i of n makes every n-th, from the i-th on."""

    text: StreamedText
    seed: int
    shared: list[list[shards.Piece]]
    """Pieces of every lane."""
    pool: int
    """Sentences in a pool, which are shuffled together."""
    first: int
    """Index of the next batch in the training."""
    rank: int
    world_size: int
    positions: dict[int, Position] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)
    """First location of a special token's name; every worker prints one note."""

    def __iter__(self) -> Iterator[LaneBatch | UserError]:
        """Yield batches without end; a UserError is yielded, since a worker's exception loses its message."""
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
        own, others = (worker.id, worker.num_workers) if worker else (0, 1)
        first, stride = self.first + self.rank + own * self.world_size, self.world_size * others
        try:
            yield from self._batches(first, stride)
        except UserError as error:
            yield error
        except OSError as error:
            yield UserError(
                f"{error.filename or self.text.source}: cannot be read ({error.strerror}); restart to resume"
            )
        except Exception as error:  # the loader would print a traceback
            yield UserError(f"{self.text.source}: cannot be read ({type(error).__name__}: {first_line(error)})")

    def _batches(self, first: int, stride: int) -> Iterator[LaneBatch]:
        lanes = len(self.shared)
        own = {number % lanes for number in range(first, first + math.lcm(lanes, stride), stride)}
        readers = {lane: self._lane(lane, self.shared[lane]) for lane in own}
        for number in count(self.first):
            lane = number % lanes
            if lane in own:
                position, batch, locations = next(readers[lane])
                if number >= first and (number - first) % stride == 0:
                    arrays = {name: None if t is None else t.numpy() for name, t in vars(batch).items()}
                    yield LaneBatch(number, lane, position, arrays, locations)

    def _lane(self, lane: int, pieces: list[shards.Piece]) -> Iterator[tuple[Position, Batch, np.ndarray]]:
        epoch, first, at, used = self.positions.get(lane, (0, 0, 0, 0))
        args, tokenizer = self.text.args, self.text.tokenizer
        while True:
            order = np.random.default_rng([self.seed, lane, epoch]).permutation(len(pieces))
            found = False
            for (piece, start), records in self._pools([pieces[i] for i in order], first, at):
                longest = args.max_length - 2
                text = tokenize_in_memory(records, self.text.source, tokenizer, longest, describe=self._first_name)
                found = found or len(text) > 0
                rng = np.random.default_rng([self.seed, lane, epoch, piece, start])
                dealt = batch_indices(text.widths, args, rng) if len(text) else ()
                for used, indices in enumerate(islice(dealt, used, None), start=used + 1):  # noqa: B020
                    yield (epoch, piece, start, used), text.batch(indices, tokenizer), text.locations[indices]
                used = 0
            if not found and (first, at) == (0, 0):
                raise UserError(
                    f"{self.text.source}: too little text for {len(self.shared)} lanes; leave --streaming out"
                )
            epoch, first, at = epoch + 1, 0, 0

    def _first_name(self, at: tuple[int, int]) -> str:
        if not self.named:
            self.named.append(_location(self.text.source, at))
        return self.named[0]

    def _pools(
        self, pieces: list[shards.Piece], piece: int, start: int
    ) -> Iterator[tuple[tuple[int, int], list[tuple[str, tuple[int, int]]]]]:
        """Yield the start of each pool and its records; a pool may extend over several pieces."""
        keep, source = _keep(self.text.held_out_fraction), self.text.source
        begin, pool, characters = (piece, start), [], 0
        for i in range(piece, len(pieces)):
            for record in shards.read(source, pieces[i], start if i == piece else 0, keep):
                pool.append((record.text, (pieces[i].file, record.at)))
                characters += len(record.text)
                if len(pool) == self.pool or characters > POOL_CHARACTERS:
                    yield begin, pool
                    begin, pool, characters = (i, record.next), [], 0
        if pool:
            yield begin, pool


class StreamedBatches:
    """Batches of a stream; a `batching.BatchStream`."""

    def __init__(
        self,
        text: StreamedText,
        *,
        seed: int,
        parts: int = 1,
        rank: int = 0,
        world_size: int = 1,
        position: dict | None = None,
    ) -> None:
        """Start at a position.

        Args:
            text: the stream.
            seed: seed of the order.
            parts: batches in a step, over all processes.
            rank: rank of this process, which takes batches rank, rank + world_size, ... of a step.
            world_size: number of processes; divides `parts`.
            position: result of `position`; None: the beginning.
        """
        self.text, self.parts, self.world_size = text, parts, world_size
        position = position or {}
        workers = text.args.num_workers
        self.lanes = position.get("lanes", math.lcm(LANES, world_size * max(1, workers)))
        self.pool = position.get("pool", max(text.args.shuffle_buffer // self.lanes, self._least()))
        self.first = position.get("batches", 0)
        self.positions = {int(lane): (-1, tuple(at)) for lane, at in position.get("positions", {}).items()}
        """Last batch used of every lane, and the lane's position after it."""
        at = {lane: at for lane, (_, at) in self.positions.items()}
        shared = shards.partition(text.source, self.lanes)
        lanes = Lanes(text, seed, shared, self.pool, self.first, rank, world_size, at)
        self._closing = _closing_event(workers)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores
            loader = DataLoader(
                lanes,
                batch_size=None,
                num_workers=workers,
                prefetch_factor=4 if workers else None,
                worker_init_fn=partial(_start_worker, self._closing) if workers else None,
            )
            self._source = iter(loader)

    def _least(self) -> int:
        """Return the smallest number of sentences in a pool, which limits the share of incomplete batches."""
        return FULL_BATCHES * math.ceil(mean_batch(self.text.widths, self.text.args))

    def take(self) -> list[Part]:
        """Return this process's batches of the next step.

        Raises:
            UserError: if a record is invalid or a file no longer exists.
        """
        parts = []
        for _ in range(self.parts // self.world_size):
            taken = next(self._source)
            if isinstance(taken, UserError):
                raise taken
            self.positions[taken.lane] = (taken.number, taken.position)
            locations = partial(self._locations, taken.locations.tolist())
            parts.append(Part(taken.number - self.first, taken.position[0], taken.batch(), locations))
        self.first += self.parts
        return parts

    def _locations(self, locations: Iterable[tuple[int, int]]) -> list[str]:
        return [shards.location(self.text.source, *location) for location in locations]

    def position(self) -> dict:
        """Return the position of the next step; all processes must call this together."""
        latest: dict[int, tuple[int, Position]] = {}
        for positions in from_everyone(self.positions):
            for lane, reached in positions.items():
                latest[lane] = max(latest.get(lane, reached), reached)
        ordered = {str(lane): latest[lane][1] for lane in sorted(latest)}
        return {"batches": self.first, "lanes": self.lanes, "pool": self.pool, "positions": ordered}

    def close(self) -> None:
        """Stop the workers."""
        self._closing.set()
        self._source = None


def _closing_event(workers: int) -> EventType:
    """Return the event that tells the workers of the trainer's end.

    Raises:
        UserError: if /dev/shm has no room for the locks of the workers' queues.
    """
    try:
        closing = multiprocessing.Event()
        _ = [multiprocessing.Queue() for _ in range(workers + 2)]  # a trial, released before the loader makes its own
        return closing
    except OSError as error:
        raise UserError(
            f"num_workers={workers}: the workers cannot be started ({error.strerror}); make room in /dev/shm, or "
            "--num_workers 0"
        ) from error


def _start_worker(closing: EventType, worker: int) -> None:
    disable_tokenizer_threads()
    die_with_parent()
    # a cluster or Ctrl-C signals every process; the trainer then ends its step, for which it may need another batch
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if closing.is_set() else None)
