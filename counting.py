"""How often each token occurs in a corpus of any size: piece by piece, on all cores, in memory for the counts alone."""

import contextlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
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
from dataloader import chunks
from process import UserError
from runtime import die_with_parent
from vocabulary import encode, one_core


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
    counts, sentences = np.zeros(vocab_size, dtype=np.int64), 0
    with tqdm(total=sum(p.weight for p in pieces), desc="counting", unit="B", unit_scale=True, disable=None) as bar:
        if workers == 1:
            found = ((piece, count_piece(source, piece, tokenizer, vocab_size)) for piece in pieces)
            for piece, (seen, number) in found:
                counts, sentences = counts + seen, sentences + number
                bar.update(piece.weight)
            return counts, sentences
        method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context(method), initializer=_begin)
        try:
            jobs = {pool.submit(count_piece, source, piece, tokenizer, vocab_size): piece for piece in pieces}
            for job in as_completed(jobs):
                seen, number = job.result()
                counts, sentences = counts + seen, sentences + number
                bar.update(jobs[job].weight)
        except BrokenProcessPool as error:
            raise UserError(
                f"{source}: a process that counted was killed (for its memory?); let fewer count: word_freq.py "
                "--workers 1, whose file main.py takes as --word_freq_file"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    return counts, sentences


def _begin() -> None:
    one_core()
    die_with_parent()


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_piece(
    source: Source, piece: shards.Piece, tokenizer: PreTrainedTokenizerBase, vocab_size: int
) -> tuple[np.ndarray, int]:
    """The same of one piece."""
    counts, sentences = np.zeros(vocab_size, dtype=np.int64), 0
    for texts in chunks(record.text for record in shards.read(source, piece)):
        ids = encode(tokenizer, texts)["input_ids"]
        counts += np.bincount(np.concatenate(ids).astype(np.int64), minlength=vocab_size)
        sentences += len(texts)
    return counts, sentences


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
