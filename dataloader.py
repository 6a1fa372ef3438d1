"""Text to batches: tokenised once, kept on disk by content, dealt in batches of sentences of like length.

    corpus (corpus.py) -> token ids in one flat memory-mapped array -> index lists by length bucket -> Batch

[CLS] and [SEP] are added here, once, and stay out of `target_mask`: they are given, never noised, never scored.
"""

import array
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tokenizers import BertWordPieceTokenizer
from torch import Tensor
from transformers import AutoTokenizer, BertTokenizerFast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from corpus import Keep, Source, find_source, fingerprint, held_out, read_sentences, training_source
from hub import first_line, look_for_hub, why_not_given
from process import Batch, UserError
from runtime import folder_written_whole

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CACHE_FORMAT = 1
POOL = 200  # batches whose sentences are sorted by length together
TOKENIZE_AT_ONCE = 2000


@dataclass(frozen=True)
class DataArgs:
    """What to train on."""

    train_data: str = field(
        metadata={
            "aliases": ["--train_data_dir", "--task_name"],
            "help": ".txt, .jsonl (.gz, .xz), a folder with train / valid files, or a data set on the hub (lm1b)",
        },
    )
    valid_data: str = field(
        default="", metadata={"help": "the same kinds; default: the folder's own, else a part of train"}
    )
    valid_fraction: float = field(
        default=0.02,
        metadata={"aliases": ["--dev_size"], "help": "share of train set aside when there is no valid set"},
    )
    tokenizer: str = field(
        default="",
        metadata={"help": "hub name, folder, vocab.txt, or `wordpiece` to train one; default: the network's own"},
    )
    vocab_size: int = field(default=0, metadata={"help": "entries of a trained wordpiece; otherwise only checked"})
    max_length: int = field(
        default=128, metadata={"aliases": ["--block_size"], "help": "tokens a sentence, [CLS] and [SEP] included"}
    )
    batch_size: int = field(default=64, metadata={"help": "sentences per process and micro-step"})
    word_freq_file: str = field(
        default="", metadata={"help": "{token: count} JSON from word_freq.py; default: count train"}
    )
    cache_dir: str = field(default="out/cache", metadata={"help": "where tokenised text is kept"})

    def __post_init__(self) -> None:
        if not 0 < self.valid_fraction < 1:
            raise UserError(f"valid_fraction={self.valid_fraction} must lie strictly between 0 and 1")
        if self.max_length < 3:
            raise UserError(f"max_length={self.max_length} leaves no room for text between [CLS] and [SEP]; at least 3")
        if self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size} must be at least 1")


# ---- tokenizers ------------------------------------------------------------------------------------------------------


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """A fast tokenizer with [MASK], from a folder, a WordPiece vocab.txt, or the hub.

    Raises:
        UserError: if it cannot be read, or lacks a token that the process needs.
    """
    path = Path(name_or_path).expanduser()
    try:
        if path.is_file() and path.suffix == ".txt":
            tokenizer = _wordpiece_from_vocab(path)
        elif path.is_dir() and (path / "vocab.txt").exists() and not (path / "tokenizer_config.json").exists():
            tokenizer = _wordpiece_from_vocab(path / "vocab.txt")
        else:
            if not path.exists():
                look_for_hub()
            tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    except UserError:
        raise
    except Exception as error:  # a damaged or missing tokenizer raises anything, down to bare Exception
        if path.exists():
            raise UserError(f"cannot read the tokenizer in {path}: {first_line(error)}") from error
        raise UserError(
            f"cannot load the tokenizer {name_or_path!r}: no local folder, and the hub gave none "
            f"({why_not_given(error)}). "
            "Offline: --tokenizer FOLDER, a vocab.txt, or `--tokenizer wordpiece` to train one on the corpus"
        ) from error
    lacking = [name for name in ("mask", "pad", "cls", "sep") if getattr(tokenizer, f"{name}_token_id") is None]
    if lacking:
        raise UserError(
            f"tokenizer {name_or_path}: no {', '.join(lacking)} token; masked diffusion needs a masked-LM tokenizer "
            "(BERT, RoBERTa, DistilBERT, ModernBERT, ...)"
        )
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer {name_or_path}: only fast tokenizers (with a tokenizer.json) are supported")
    return tokenizer


def _wordpiece_from_vocab(file: Path) -> PreTrainedTokenizerBase:
    entries = set(file.read_text(encoding="utf-8").splitlines())
    lacking = [token for token in SPECIAL_TOKENS if token not in entries]
    if lacking:
        raise UserError(
            f"{file}: a WordPiece vocabulary must hold {', '.join(SPECIAL_TOKENS)}; missing: {', '.join(lacking)}"
        )
    return BertTokenizerFast(vocab=str(file))


def wordpiece_of(source: Source, vocab_size: int, cache_dir: str) -> PreTrainedTokenizerBase:
    """A WordPiece tokenizer learnt from a source, from the cache if it was learnt before."""
    recipe = f"{CACHE_FORMAT}:wordpiece:{fingerprint(source)}:{vocab_size}"
    folder = Path(cache_dir) / hashlib.blake2b(recipe.encode(), digest_size=12).hexdigest()
    if not (folder / "tokenizer_config.json").exists():
        tokenizer = train_wordpiece(read_sentences(source, description="learning a vocabulary"), vocab_size)
        with folder_written_whole(folder) as temporary:
            tokenizer.save_pretrained(temporary)
    return load_tokenizer(str(folder))


def train_wordpiece(sentences: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A lower-casing WordPiece tokenizer of at most `vocab_size` entries, learnt from `sentences`."""
    if vocab_size < 100:
        raise UserError(f"vocab_size={vocab_size} is too small to train a wordpiece vocabulary; try 8192")
    trainer = BertWordPieceTokenizer(lowercase=True)
    trainer.train_from_iterator(
        sentences, vocab_size=vocab_size, min_frequency=2, special_tokens=SPECIAL_TOKENS, show_progress=False
    )
    return BertTokenizerFast(vocab=trainer.get_vocab())


# ---- tokenised text --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenizedText:
    """Sentences as one flat array of token ids, without special tokens."""

    tokens: np.ndarray
    """[total tokens], memory-mapped."""
    offsets: np.ndarray
    """int64 [N + 1]: sentence i is tokens[offsets[i] : offsets[i + 1]]."""
    num_words: np.ndarray
    """int32 [N], whitespace words in the part that was kept."""
    num_truncated: int
    """Sentences cut to the longest length."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N], tokens in each sentence."""
        return np.diff(self.offsets)

    def counts(self, vocab_size: int) -> Tensor:
        """int64 [V], how often each token occurs."""
        return torch.from_numpy(np.bincount(self.tokens, minlength=vocab_size))


def tokenize(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cache_dir: str,
    *,
    part: str = "",
    keep: Keep | None = None,
) -> TokenizedText:
    """Token ids of a source, from the cache if the same text was tokenised the same way before.

    Text is text: "[MASK]" or "[SEP]" written in a corpus becomes ordinary word pieces, never a special token.

    Args:
        source: the text.
        tokenizer: a fast tokenizer.
        max_length: longest sentence with [CLS] and [SEP]; the rest is cut off and counted.
        cache_dir: where results are kept, in a folder named by content.
        part: names what `keep` keeps, for the cache.
        keep: which sentences to take; default all.

    Raises:
        UserError: if the text cannot be read or no sentence is left.
    """
    recipe = f"{CACHE_FORMAT}:{fingerprint(source)}:{tokenizer_fingerprint(tokenizer)}:{max_length}:{part}"
    folder = Path(cache_dir) / hashlib.blake2b(recipe.encode(), digest_size=12).hexdigest()
    if not (folder / "meta.json").exists():
        with folder_written_whole(folder) as temporary:
            _write_tokens(source, tokenizer, max_length - 2, temporary, keep, part)
    meta = json.loads((folder / "meta.json").read_text())
    text = TokenizedText(
        np.memmap(folder / "tokens.bin", dtype=meta["dtype"], mode="r")
        if meta["num_tokens"]
        else np.zeros(0, np.int32),
        np.load(folder / "offsets.npy", mmap_mode="r", allow_pickle=False),
        np.load(folder / "num_words.npy", mmap_mode="r", allow_pickle=False),
        meta["num_truncated"],
    )
    if len(text) == 0:
        raise UserError(f"{source}: no sentence in the {part or 'text'} part")
    return text


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of everything that decides how text is cut."""
    return hashlib.blake2b(tokenizer.backend_tokenizer.to_str().encode(), digest_size=16).hexdigest()


def _write_tokens(
    source: Source, tokenizer: PreTrainedTokenizerBase, longest: int, folder: Path, keep: Keep | None, part: str
) -> None:
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.int32
    offsets, num_words, num_truncated = array.array("q", [0]), array.array("i"), 0
    with open(folder / "tokens.bin", "wb") as file:
        for sentences in chunks(read_sentences(source, keep=keep, description=f"tokenizing {part}".strip())):
            encoded = encode(tokenizer, sentences)
            for i, (sentence, ids) in enumerate(zip(sentences, encoded.input_ids, strict=True)):
                if len(ids) > longest:
                    sentence = sentence[: encoded.token_to_chars(i, longest - 1).end]
                    ids, num_truncated = ids[:longest], num_truncated + 1
                if ids:
                    np.asarray(ids, dtype=dtype).tofile(file)
                    offsets.append(offsets[-1] + len(ids))
                    num_words.append(len(sentence.split()))
    np.save(folder / "offsets.npy", np.asarray(offsets, dtype=np.int64))
    np.save(folder / "num_words.npy", np.asarray(num_words, dtype=np.int32))
    meta = {
        "dtype": np.dtype(dtype).name,
        "num_tokens": offsets[-1],
        "num_truncated": num_truncated,
        "source": str(source),
    }
    (folder / "meta.json").write_text(json.dumps(meta))


def encode(tokenizer: PreTrainedTokenizerBase, sentences: list[str]) -> dict:
    """Token ids of plain text: no special tokens are added, and none is recognised in the text."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    return tokenizer(
        sentences,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )


def chunks(sentences: Iterable[str]) -> Iterator[list[str]]:
    """Lists of a few thousand sentences: what a fast tokenizer likes at once."""
    chunk: list[str] = []
    for sentence in sentences:
        chunk.append(sentence)
        if len(chunk) == TOKENIZE_AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def load_splits(args: DataArgs, tokenizer: PreTrainedTokenizerBase) -> tuple[TokenizedText, TokenizedText]:
    """The training and the validation sentences of a corpus.

    Raises:
        UserError: if there are fewer training sentences than one batch holds.
    """
    train = training_source(args.train_data)
    valid = find_source(args.valid_data or args.train_data, "valid")
    if args.valid_data and valid is None:
        valid = training_source(args.valid_data)
    settings = tokenizer, args.max_length, args.cache_dir
    if valid is not None:
        texts = tokenize(train, *settings, part="train"), tokenize(valid, *settings, part="valid")
    else:
        aside, share = held_out(args.valid_fraction), f"{args.valid_fraction:g}"
        texts = (
            tokenize(train, *settings, part=f"train without {share}", keep=lambda sentence: not aside(sentence)),
            tokenize(train, *settings, part=f"held-out {share}", keep=aside),
        )
    if len(texts[0]) < args.batch_size:
        raise UserError(
            f"{args.train_data}: {len(texts[0])} training sentences are fewer than batch_size={args.batch_size}; "
            "give more text or a smaller batch"
        )
    return texts


# ---- batches ---------------------------------------------------------------------------------------------------------


def length_buckets(lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Index lists of at most `batch_size`, every sentence in exactly one, sentences of like length together.

    A shuffled pool of 200 batches is sorted by length and cut; then the batches are shuffled. So batches are nearly
    rectangular, and still differ from epoch to epoch.
    """
    order = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), POOL * batch_size):
        pool = order[start : start + POOL * batch_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def endless_batches(
    text: TokenizedText,
    batch_size: int,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[int, Batch]]:
    """(epoch, batch) for ever: one epoch after another, each in an order of its own; rank r takes every W-th batch."""
    dealt, epoch = 0, 0
    while True:
        for indices in length_buckets(text.lengths, batch_size, np.random.default_rng([seed, epoch])):
            if dealt % world_size == rank:
                yield epoch, collate([text.tokens[text.offsets[i] : text.offsets[i + 1]] for i in indices], tokenizer)
            dealt += 1
        epoch += 1


def sorted_batches(
    text: TokenizedText, indices: np.ndarray, batch_size: int, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[np.ndarray, Batch]]:
    """(indices, batch) over the given sentences once, longest first: for scoring."""
    order = indices[np.argsort(-text.lengths[indices], kind="stable")]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        yield chosen, collate([text.tokens[text.offsets[i] : text.offsets[i + 1]] for i in chosen], tokenizer)


def collate(sentences: list[np.ndarray], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """[CLS] text [SEP] [PAD]..., as long as the longest; the text alone is a target, all but [PAD] is attended to."""
    lengths = torch.tensor([len(sentence) for sentence in sentences])
    input_ids = torch.full((len(sentences), int(lengths.max()) + 2), tokenizer.pad_token_id)
    input_ids[:, 0] = tokenizer.cls_token_id
    for row, sentence in enumerate(sentences):
        input_ids[row, 1 : len(sentence) + 1] = torch.from_numpy(np.asarray(sentence, dtype=np.int64))
        input_ids[row, len(sentence) + 1] = tokenizer.sep_token_id
    position = torch.arange(input_ids.shape[1])
    target_mask = (position >= 1) & (position <= lengths[:, None])
    return Batch(input_ids, position <= lengths[:, None] + 1, target_mask)
