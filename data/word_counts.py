"""Token counts of a corpus of any size, piece by piece, on all cores; and files of word frequencies."""

import contextlib
import json
import math
import multiprocessing
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

from data import cache, shards
from data.corpus import Source
from data.detokenizers import detokenize
from data.plain_text import chunks, encode, note_names
from utils.errors import UserError, shown
from utils.files import read_text, written_whole
from utils.workers import cores, die_with_parent, disable_tokenizer_threads

REMEDY = "make them with word_freq.py"
DETOKENIZER = "[detokenizer]"
"""Key of the entry that names the detokenizer of the counted text."""
NOWHERE = (2**63, 0)  # a location after all others


@dataclass
class Counted:
    """Counts of a part of a corpus."""

    counts: np.ndarray
    """int64 [V], occurrences of every token."""
    sentences: int = 0
    names: int = 0
    """Number of texts that contain the name of a special token."""
    first: tuple[int, int] = NOWHERE
    """File and position of the first of them."""

    def __iadd__(self, other: "Counted") -> "Counted":
        self.counts += other.counts
        self.sentences += other.sentences
        self.names += other.names
        self.first = min(self.first, other.first)
        return self


def count_corpus(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    workers: int = 0,
    detokenizer: str = "none",
) -> tuple[np.ndarray, int]:
    """Return the count of every token, int64 [V], and the number of sentences.

    Args:
        source: the text, or one side of pairs.
        tokenizer: a fast tokenizer.
        vocab_size: V.
        workers: number of processes; 0: one per core that this process may use.
        detokenizer: name in `data/detokenizers.py`, applied before counting.

    Raises:
        UserError: with file and line, if a record cannot be read.
    """
    workers = workers or cores()
    pieces = [piece for share in shards.partition(source, workers) for piece in share]
    found = Counted(np.zeros(vocab_size, dtype=np.int64))
    with tqdm(total=sum(p.weight for p in pieces), desc="counting", unit="B", unit_scale=True, disable=None) as bar:
        for piece, counted in _count_pieces(source, pieces, tokenizer, vocab_size, workers, detokenizer):
            found += counted
            bar.update(piece.weight)
    if found.names:
        note_names(found.names, shards.location(source, *found.first))
    return found.counts, found.sentences


def _count_pieces(
    source: Source,
    pieces: list[shards.Piece],
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    workers: int,
    detokenizer: str,
) -> Iterator[tuple[shards.Piece, Counted]]:
    """Yield pieces and their counts, in the order of completion."""
    if workers == 1:
        yield from ((piece, count_piece(source, piece, tokenizer, vocab_size, detokenizer)) for piece in pieces)
        return
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context(method), initializer=_start_worker)
    try:
        jobs = {pool.submit(count_piece, source, piece, tokenizer, vocab_size, detokenizer): piece for piece in pieces}
        for job in as_completed(jobs):
            yield jobs[job], job.result()
    except BrokenProcessPool as error:
        raise UserError(
            f"{source}: a counting process was killed (out of memory?); use fewer: word_freq.py "
            "--workers 1, then main.py --word_freq_file"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    disable_tokenizer_threads()
    die_with_parent()


def count_piece(
    source: Source,
    piece: shards.Piece,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    detokenizer: str = "none",
) -> Counted:
    """Count the tokens of one piece."""
    found = Counted(np.zeros(vocab_size, dtype=np.int64))
    found_records = ((detokenize(record.text, detokenizer), record.at) for record in shards.read(source, piece))
    for records in chunks(found_records):
        encoding = encode(tokenizer, [text for text, _ in records], note=False)
        ids = np.concatenate(encoding["input_ids"]).astype(np.int64)
        first = (piece.file, records[min(encoding.again)][1]) if encoding.again else NOWHERE
        found += Counted(np.bincount(ids, minlength=vocab_size), len(records), len(encoding.again), first)
    return found


def count_tokens(
    source: Source, tokenizer: PreTrainedTokenizerBase, vocab_size: int, *, cache_dir: str, identity: str
) -> Tensor:
    """Return the count of every token, int64 [V]; `identity` is the result's name in the cache."""
    folder = Path(cache_dir) / f"counts-{identity}"
    if cache.is_whole(folder):
        with contextlib.suppress(OSError, SafetensorError, KeyError):
            return load_file(folder / "counts.safetensors")["counts"]
    counts = torch.from_numpy(count_corpus(source, tokenizer, vocab_size)[0])
    with cache.filled(folder) as temporary:
        save_file({"counts": counts}, temporary / "counts.safetensors")
    return counts


def with_special_counts(counts: Tensor, own: Tensor, ends: list[int]) -> Tensor:
    """Set the counts of special tokens in another text's counts, in proportion to those of `own`.

    Args:
        counts: int64 [V], of the other text.
        own: int64 [V], of the training text.
        ends: ids of the special tokens.
    """
    ends = sorted(set(ends))
    words, others = (c.sum() - c[ends].sum() for c in (own, counts))
    return counts.index_put((torch.tensor(ends),), (own[ends] * (others / words.clamp(min=1))).round().long())


MOST_COUNT = 10**15  # largest count of a token, so that sums over a vocabulary are exact


# ---- word frequencies ------------------------------------------------------------------------------------------------


def write_word_freq(
    path: Path, token_counts: Tensor, tokenizer: PreTrainedTokenizerBase, detokenizer: str = "none"
) -> None:
    """Write {token: count} as JSON, most frequent first, without tokens of count 0, after the name of a detokenizer."""
    order = torch.argsort(token_counts, descending=True, stable=True).tolist()
    seen = {tokenizer.convert_ids_to_tokens(i): int(token_counts[i]) for i in order if token_counts[i] > 0}
    seen = {**({} if detokenizer == "none" else {DETOKENIZER: detokenizer}), **seen}
    with written_whole(path) as file:
        json.dump(seen, file, ensure_ascii=False, indent=0)


def read_word_freq(
    path: Path, tokenizer: PreTrainedTokenizerBase, vocab_size: int, detokenizer: str | None = "none"
) -> Tensor:
    """Read counts from JSON of {token: number}, int64 [V]; relative frequencies are scaled to 1 for the rarest token.

    Args:
        path: the file.
        tokenizer: tokenizer of the text.
        vocab_size: V.
        detokenizer: the one applied to the text, which must be that of the counts; None: not compared.

    Raises:
        UserError: if the file is not such JSON, has tokens that this tokenizer lacks, or counts another text.
    """
    entries = _read_entries(path)
    counted = entries.pop(DETOKENIZER, "none")
    if detokenizer is not None and counted != detokenizer:
        raise UserError(
            f"word frequencies {path}: of text with detokenizer={shown(counted)[1:-1]}, but this text has "
            f"detokenizer={detokenizer}; count again with word_freq.py --detokenizer {detokenizer}"
        )
    vocabulary = tokenizer.get_vocab()
    unknown = [token for token in entries if token not in vocabulary]
    if unknown:
        raise UserError(
            f"word frequencies {path}: of another vocabulary: {len(unknown)} of {len(entries)} tokens, "
            f"e.g. {unknown[0]!r}, are not in this tokenizer; count again with word_freq.py --tokenizer"
        )
    numbers = torch.zeros(vocab_size, dtype=torch.float64)
    for token, number in entries.items():
        numbers[vocabulary[token]] = number
    if not numbers.any():
        raise UserError(f"word frequencies {path}: no token has a count above 0; {REMEDY}")
    if (numbers != numbers.round()).any():
        numbers = numbers / numbers[numbers > 0].min()
    if numbers.max() > MOST_COUNT:
        raise UserError(
            f"word frequencies {path}: the largest is more than {MOST_COUNT:.0e} times the smallest; {REMEDY}"
        )
    return numbers.round().long()


def _read_entries(path: Path) -> dict:
    """Return the entries of a file of word frequencies.

    Raises:
        UserError: if it is not JSON of {token: number}.
    """
    try:
        entries = json.loads(read_text(path).removeprefix("\ufeff"))
    except OSError as error:
        raise UserError(f"word frequencies {path}: cannot be read ({error.strerror}); {REMEDY}") from error
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"word frequencies {path}: not JSON ({error}); {REMEDY}") from error
    if not isinstance(entries, dict) or not all(_is_count(n) or name == DETOKENIZER for name, n in entries.items()):
        raise UserError(f"word frequencies {path}: must map tokens to numbers from 0 to {MOST_COUNT:.0e}; {REMEDY}")
    return entries


def _is_count(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number <= MOST_COUNT


def information(token_counts: Tensor) -> Tensor:
    """Return H(w) = -log p(w) in nats, float64 [V]; p is the relative frequency with one added to every count."""
    counts = token_counts.double()
    return math.log(counts.sum().item() + len(counts)) - torch.log(counts + 1)
