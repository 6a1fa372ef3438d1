"""How often each token occurs in a corpus of any size: piece by piece, on all cores, in memory for the counts alone."""

import contextlib
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

import cache
import shards
from corpus import Source
from plain_text import chunks, encode, note_names
from process import UserError
from runtime import die_with_parent
from vocabulary import one_core

NOWHERE = (2**63, 0)


@dataclass
class Counted:
    """What was seen in a part of a corpus."""

    counts: np.ndarray
    """int64 [V], occurrences of every token."""
    sentences: int = 0
    names: int = 0
    """Texts that hold the name of a special token,"""
    first: tuple[int, int] = NOWHERE
    """and the first one's file and position."""

    def __iadd__(self, other: "Counted") -> "Counted":
        self.counts += other.counts
        self.sentences += other.sentences
        self.names += other.names
        self.first = min(self.first, other.first)
        return self


def count_corpus(
    source: Source, tokenizer: PreTrainedTokenizerBase, vocab_size: int, workers: int = 0
) -> tuple[np.ndarray, int]:
    """Occurrences of every token, int64 [V], and the number of sentences.

    Args:
        source: the text, or one side of pairs.
        tokenizer: cuts it.
        vocab_size: V.
        workers: processes; 0: one for each core that this process may use.

    Raises:
        UserError: naming file and line, if one cannot be read.
    """
    workers = workers or cores()
    pieces = [piece for share in shards.cut(source, workers) for piece in share]
    found = Counted(np.zeros(vocab_size, dtype=np.int64))
    with tqdm(total=sum(p.weight for p in pieces), desc="counting", unit="B", unit_scale=True, disable=None) as bar:
        for piece, counted in _each(source, pieces, tokenizer, vocab_size, workers):
            found += counted
            bar.update(piece.weight)
    if found.names:
        note_names(found.names, shards.place(source, *found.first))
    return found.counts, found.sentences


def _each(
    source: Source, pieces: list[shards.Piece], tokenizer: PreTrainedTokenizerBase, vocab_size: int, workers: int
) -> Iterator[tuple[shards.Piece, Counted]]:
    """Pieces and what was counted in them, as they are done."""
    if workers == 1:
        yield from ((piece, count_piece(source, piece, tokenizer, vocab_size)) for piece in pieces)
        return
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context(method), initializer=_begin)
    try:
        jobs = {pool.submit(count_piece, source, piece, tokenizer, vocab_size): piece for piece in pieces}
        for job in as_completed(jobs):
            yield jobs[job], job.result()
    except BrokenProcessPool as error:
        raise UserError(
            f"{source}: a process that counted was killed (for its memory?); let fewer count: word_freq.py "
            "--workers 1, whose file main.py takes as --word_freq_file"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    one_core()
    die_with_parent()


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_piece(source: Source, piece: shards.Piece, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Counted:
    """The same of one piece."""
    found = Counted(np.zeros(vocab_size, dtype=np.int64))
    for records in chunks((record.text, record.at) for record in shards.read(source, piece)):
        encoding = encode(tokenizer, [text for text, _ in records], note=False)
        ids = np.concatenate(encoding["input_ids"]).astype(np.int64)
        first = (piece.file, records[min(encoding.again)][1]) if encoding.again else NOWHERE
        found += Counted(np.bincount(ids, minlength=vocab_size), len(records), len(encoding.again), first)
    return found


def count_tokens(
    source: Source, tokenizer: PreTrainedTokenizerBase, vocab_size: int, *, cache_dir: str, identity: str
) -> Tensor:
    """Occurrences of every token, int64 [V], kept in the cache under a name for just this text and tokenizer."""
    folder = Path(cache_dir) / f"counts-{identity}"
    if cache.is_whole(folder):
        with contextlib.suppress(OSError, SafetensorError, KeyError):
            return load_file(folder / "counts.safetensors")["counts"]
    counts = torch.from_numpy(count_corpus(source, tokenizer, vocab_size)[0])
    with cache.filled(folder) as temporary:
        save_file({"counts": counts}, temporary / "counts.safetensors")
    return counts
