"""Training text that is read as it is used: any number of shards, any size, shuffled, resumed at the exact record.

The corpus is shared out to lanes once and for all (`shards.cut`); batch m of the training is of lane m modulo their
number, so that rank r of W, which takes every W-th batch, has lanes of its own, and so has each of its workers. A lane
reads its pieces in an order drawn for the epoch, a pool of sentences at a time; a pool is dealt into batches like any
text (`batches.deal`). Where a lane stands is four numbers: epoch, piece, the pool's first record, batches taken of it.
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
from data.batching import Part, deal, mean_batch
from data.corpus import Source, held_out
from data.sources import kind
from data.splits import DataArgs, split_sources
from data.tokenized_text import TokenizedText, tokenize, tokenize_in_memory
from data.tokenizers import tokenizer_fingerprint
from data.word_counts import count_tokens
from utils.distributed import from_everyone
from utils.errors import UserError
from utils.hub import first_line
from utils.workers import die_with_parent, one_core

LANES = 8
"""At least so many, in a multiple of all reading processes: a run goes on with 1, 2, 4 or 8 of them at no cost."""
SAMPLE = 20_000
"""Sentences that stand for all when lengths are asked for."""
FULL_BATCHES = 4
"""At least so many in a pool,"""
GLANCE = 2**16
"""Bytes of either end of a file by which it is known again."""
POOL_CHARACTERS = 2**24
"""and at most so much text."""
Position = tuple[int, int, int, int]


@dataclass(frozen=True)
class StreamedText:
    """A training text of unknown length. Satisfies of `dataloader.Text` what can be asked of a sample."""

    source: Source
    sample: TokenizedText
    args: DataArgs
    identity: str
    tokenizer: PreTrainedTokenizerBase
    aside: float
    """The share that is held out; 0 if validation has data of its own."""
    cuts: str = ""

    @property
    def widths(self) -> np.ndarray:
        """int64 [n], of a sample."""
        return self.sample.widths

    @property
    def target_lengths(self) -> np.ndarray:
        """int64 [n], of a sample."""
        return self.sample.lengths

    @property
    def size(self) -> str:
        """In words."""
        if self.source.hub_name:
            return f"a stream of {self.source.hub_name} as"
        size = sum(file.stat().st_size for file in self.source.files)
        return f"a stream of {len(self.source.files)} files, {size / 1e6:,.1f} MB, as"

    def identity_before(self) -> str:
        """See `dataloader.Text`."""
        return _identity(self.source, self.tokenizer, self.args, self.aside, named=True)

    def counts(self, vocab_size: int) -> Tensor:
        """int64 [V], how often each token occurs in all of it: one pass over the stream, kept in the cache."""
        times = [file.stat().st_mtime_ns for file in self.source.files]  # a file may change and keep its size
        name = hashlib.blake2b(repr([self.identity, times, vocab_size]).encode(), digest_size=12).hexdigest()
        return count_tokens(self.source, self.tokenizer, vocab_size, cache_dir=self.args.cache_dir, identity=name)


def open_stream(
    source: Source, tokenizer: PreTrainedTokenizerBase, args: DataArgs, *, aside: float = 0.0
) -> StreamedText:
    """A look at the first records of every part of a corpus.

    Raises:
        UserError: if there are none, or one is broken.
    """
    parts = [share for share in shards.cut(source, LANES) if share]
    keep = _keep(aside)
    records = (
        (record.text, (share[0].file, record.at))
        for share in parts
        for record in islice(shards.read(source, share[0], keep=keep), SAMPLE // len(parts))
    )
    sample = tokenize_in_memory(records, source, tokenizer, args.max_length - 2, where=partial(_place, source))
    if not len(sample):
        raise UserError(f"{source}: no text in it; one sentence a line is expected")
    identity = _identity(source, tokenizer, args, aside)
    return StreamedText(source, sample, args, identity, tokenizer, aside)


def _identity(
    source: Source, tokenizer: PreTrainedTokenizerBase, args: DataArgs, aside: float, *, named: bool = False
) -> str:
    """A name for a stream, by its files' kinds, sizes and ends; `named`: by their names, as it once was."""
    recipe = [source.hub_name, args.max_length, aside, tokenizer_fingerprint(tokenizer)]
    names = [os.fsencode(file.name) if named else kind(file) for file in source.files]
    recipe += [(name, f.stat().st_size, *_ends(f)) for name, f in zip(names, source.files, strict=True)]
    return hashlib.blake2b(repr(recipe).encode(), digest_size=12).hexdigest()


def _ends(file: Path) -> tuple[bytes, bytes]:
    with open(file, "rb") as stream:
        head = stream.read(GLANCE)
        stream.seek(max(0, file.stat().st_size - GLANCE))
        return head, stream.read(GLANCE)


def load_stream(
    args: DataArgs, tokenizer: PreTrainedTokenizerBase, eval_sequences: int
) -> tuple[StreamedText, TokenizedText]:
    """The stream, and the text to validate on: the corpus's own, or the first sentences that are held out of it."""
    (source, _, keep), (valid, part, _) = split_sources(args)
    if keep is None:
        stream = open_stream(source, tokenizer, args)
        text = tokenize(valid, tokenizer, args.max_length - 2, args.cache_dir, part=part)
    else:
        stream = open_stream(source, tokenizer, args, aside=args.valid_fraction)
        text = first_held_out(source, tokenizer, args, max(eval_sequences, 1000))
    return stream, text


def first_held_out(source: Source, tokenizer: PreTrainedTokenizerBase, args: DataArgs, number: int) -> TokenizedText:
    """The first sentences that a stream leaves out, to validate on.

    Raises:
        UserError: if there are none.
    """
    aside = held_out(args.valid_fraction)
    pieces = [piece for share in shards.cut(source, 1) for piece in share]
    records = ((r.text, (piece.file, r.at)) for piece in pieces for r in shards.read(source, piece, keep=aside))
    where = partial(_place, source)
    text = tokenize_in_memory(islice(records, number), source, tokenizer, args.max_length - 2, where=where)
    if not len(text):
        raise UserError(f"{source}: nothing in it is held out by valid_fraction={args.valid_fraction}; give valid_data")
    return text


def _place(source: Source, at: tuple[int, int]) -> str:
    return shards.place(source, *at)


def _keep(aside: float) -> object:
    if not aside:
        return None
    left_out = held_out(aside)
    return lambda text: not left_out(text)


# ---- lanes -----------------------------------------------------------------------------------------------------------


@dataclass
class Taken:
    """A batch of a stream; what comes out of a worker."""

    number: int
    """Which of the training's batches."""
    lane: int
    position: Position
    """Of the lane, after it."""
    arrays: dict[str, np.ndarray | None]
    """The fields of a Batch. As tensors they would go through /dev/shm, which a container may keep small: a worker that
    finds it full dies of a bus error, or its tensors with it."""
    places: np.ndarray
    """int64 [B, 2], file and position of its sentences."""

    def batch(self) -> Batch:
        """Its tensors."""
        return Batch(**{name: None if a is None else torch.from_numpy(a) for name, a in self.arrays.items()})


@dataclass(eq=False)
class Lanes(IterableDataset):
    """This process's batches, in order; each of its workers makes every so-manieth."""

    text: StreamedText
    seed: int
    shared: list[list[shards.Piece]]
    """Of every lane."""
    pool: int
    """Sentences of a lane that are shuffled together."""
    first: int
    """The number of the training's next batch."""
    rank: int
    world_size: int
    positions: dict[int, Position] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)
    """Where the name of a special token was read first: of that every worker speaks once."""

    def __iter__(self) -> Iterator[Taken | UserError]:
        """Endless; a UserError is handed over as a value, since a worker's exceptions lose their words."""
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
        own, others = (worker.id, worker.num_workers) if worker else (0, 1)
        first, stride = self.first + self.rank + own * self.world_size, self.world_size * others
        try:
            yield from self._batches(first, stride)
        except UserError as error:
            yield error
        except OSError as error:
            yield UserError(f"{error.filename or self.text.source}: cannot be read ({error.strerror}); start again")
        except Exception as error:  # the loader would hand over a traceback
            yield UserError(f"{self.text.source}: reading it failed ({type(error).__name__}: {first_line(error)})")

    def _batches(self, first: int, stride: int) -> Iterator[Taken]:
        lanes = len(self.shared)
        own = {number % lanes for number in range(first, first + math.lcm(lanes, stride), stride)}
        readers = {lane: self._lane(lane, self.shared[lane]) for lane in own}
        for number in count(self.first):
            lane = number % lanes
            if lane in own:
                position, batch, places = next(readers[lane])
                if number >= first and (number - first) % stride == 0:
                    arrays = {name: None if t is None else t.numpy() for name, t in vars(batch).items()}
                    yield Taken(number, lane, position, arrays, places)

    def _lane(self, lane: int, pieces: list[shards.Piece]) -> Iterator[tuple[Position, Batch, np.ndarray]]:
        epoch, first, at, used = self.positions.get(lane, (0, 0, 0, 0))
        args, tokenizer = self.text.args, self.text.tokenizer
        while True:
            order = np.random.default_rng([self.seed, lane, epoch]).permutation(len(pieces))
            found = False
            for (piece, start), records in self._pools([pieces[i] for i in order], first, at):
                longest = args.max_length - 2
                text = tokenize_in_memory(records, self.text.source, tokenizer, longest, where=self._first_name)
                found = found or len(text) > 0
                rng = np.random.default_rng([self.seed, lane, epoch, piece, start])
                dealt = deal(text.widths, args, rng) if len(text) else ()
                for used, indices in enumerate(islice(dealt, used, None), start=used + 1):  # noqa: B020
                    yield (epoch, piece, start, used), text.batch(indices, tokenizer), text.places[indices]
                used = 0
            if not found and (first, at) == (0, 0):
                raise UserError(
                    f"{self.text.source}: too little text for {len(self.shared)} readers side by side; "
                    "leave --streaming out"
                )
            epoch, first, at = epoch + 1, 0, 0

    def _first_name(self, at: tuple[int, int]) -> str:
        if not self.named:
            self.named.append(_place(self.text.source, at))
        return self.named[0]

    def _pools(
        self, pieces: list[shards.Piece], piece: int, start: int
    ) -> Iterator[tuple[tuple[int, int], list[tuple[str, tuple[int, int]]]]]:
        """Where each pool begins, and its records; a pool goes on from one piece to the next."""
        keep, source = _keep(self.text.aside), self.text.source
        begin, pool, held = (piece, start), [], 0
        for i in range(piece, len(pieces)):
            for record in shards.read(source, pieces[i], start if i == piece else 0, keep):
                pool.append((record.text, (pieces[i].file, record.at)))
                held += len(record.text)
                if len(pool) == self.pool or held > POOL_CHARACTERS:
                    yield begin, pool
                    begin, pool, held = (i, record.next), [], 0
        if pool:
            yield begin, pool


class StreamedBatches:
    """A `batches.BatchStream` of lanes."""

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
        """Start where an earlier stream stood.

        Args:
            text: what to read.
            seed: of the order.
            parts: batches in a step, of all processes together.
            rank: which of them this one takes: rank, rank + world_size, ...
            world_size: number of processes; divides `parts`.
            position: what `position` gave.
        """
        self.text, self.parts, self.world_size = text, parts, world_size
        position = position or {}
        workers = text.args.num_workers
        self.lanes = position.get("lanes", math.lcm(LANES, world_size * max(1, workers)))
        self.pool = position.get("pool", max(text.args.shuffle_buffer // self.lanes, self._least()))
        self.first = position.get("batches", 0)
        self.positions = {int(lane): (-1, tuple(at)) for lane, at in position.get("positions", {}).items()}
        """Of every lane that was read: the last batch taken, and where the lane stood after it."""
        at = {lane: at for lane, (_, at) in self.positions.items()}
        shared = shards.cut(text.source, self.lanes)
        lanes = Lanes(text, seed, shared, self.pool, self.first, rank, world_size, at)
        self._closing = _locks(workers)
        ends = partial(_live_and_die_with_the_trainer, self._closing)
        settings = {"prefetch_factor": 4, "worker_init_fn": ends} if workers else {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")  # more than cores, if so told
            self._source = iter(DataLoader(lanes, batch_size=None, num_workers=workers, **settings))

    def _least(self) -> int:
        """Sentences of a pool: so many that what its last batch lacks hardly matters."""
        return FULL_BATCHES * math.ceil(mean_batch(self.text.widths, self.text.args))

    def take(self) -> list[Part]:
        """This process's batches of the next step.

        Raises:
            UserError: if a record is broken or a file gone.
        """
        parts = []
        for _ in range(self.parts // self.world_size):
            taken = next(self._source)
            if isinstance(taken, UserError):
                raise taken
            self.positions[taken.lane] = (taken.number, taken.position)
            places = partial(self._places, taken.places.tolist())
            parts.append(Part(taken.number - self.first, taken.position[0], taken.batch(), places))
        self.first += self.parts
        return parts

    def _places(self, places: Iterable[tuple[int, int]]) -> list[str]:
        return [shards.place(self.text.source, *place) for place in places]

    def position(self) -> dict:
        """What the next step begins with; all processes ask together."""
        latest: dict[int, tuple[int, Position]] = {}
        for positions in from_everyone(self.positions):
            for lane, reached in positions.items():
                latest[lane] = max(latest.get(lane, reached), reached)
        ordered = {str(lane): latest[lane][1] for lane in sorted(latest)}
        return {"batches": self.first, "lanes": self.lanes, "pool": self.pool, "positions": ordered}

    def close(self) -> None:
        """Lets the workers go."""
        self._closing.set()
        self._source = None


def _locks(workers: int) -> EventType:
    """What tells the workers that the trainer closes.

    Raises:
        UserError: if there is no room for the locks of so many workers' queues, which are files in /dev/shm.
    """
    try:
        closing = multiprocessing.Event()
        _ = [multiprocessing.Queue() for _ in range(workers + 2)]  # to see; given back before the loader makes its own
        return closing
    except OSError as error:
        raise UserError(
            f"num_workers={workers}: the readers cannot be started ({error.strerror}); make room in /dev/shm, or "
            "--num_workers 0"
        ) from error


def _live_and_die_with_the_trainer(closing: EventType, worker: int) -> None:
    one_core()
    die_with_parent()
    # a cluster, or Ctrl-C, tells every process to stop; the trainer then ends its step, for which it may need a batch
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if closing.is_set() else None)
