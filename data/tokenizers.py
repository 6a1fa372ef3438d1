"""Tokenizers: loaded by name, from a vocabulary file, or trained on the corpus; decoding (encoding: plain_text.py)."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data import cache
from data.corpus import PAIR, Source, fingerprint, holds_pairs, read_sentences
from data.plain_text import encode, errors_in_one_line, panics_as_errors, without_panic_messages
from data.sentencepiece import load_sentencepiece, train_sentencepiece
from data.tokenizer_checks import check_tokenizer, check_tokenizer_files
from data.wordpiece import load_vocab_txt, train_wordpiece
from utils.errors import UserError
from utils.files import local_path, read_text
from utils.hub import TOKENIZER_FILES, download_error, fetch, first_line
from utils.network_config import MOST_JSON, check_config, refuse_custom_code

LEARNT = ("wordpiece", "sentencepiece")
"""Kinds of tokenizers that can be trained on the training text."""
TEXT8 = "text8"
TEXT8_TOKENS = [
    "[CLS]",
    "[SEP]",
    "[BOS]",
    "[EOS]",
    "[MASK]",
    "[PAD]",
    "[RESERVED]",
    "[UNK]",
    *"abcdefghijklmnopqrstuvwxyz ",
]
"""Ids as in MDLM: a is 8, a space 34."""
RECIPE = 2  # version of the training of vocabularies, part of their names in the cache


@without_panic_messages()
def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer with [MASK] from a folder, a WordPiece vocab.txt, a SentencePiece .model, or the hub.

    The name `text8` gives a tokenizer of characters.

    Raises:
        UserError: if it cannot be read, or lacks a required special token.
    """
    path = local_path(name_or_path)
    if name_or_path == TEXT8 and not path.is_dir():  # the file of the corpus has this name too
        return text8_tokenizer()
    try:
        with panics_as_errors():
            tokenizer = _open(path, name_or_path)
    except UserError:
        raise
    except Exception as error:  # of many types, for a damaged or missing tokenizer
        if path.exists():
            raise UserError(f"cannot read the tokenizer in {path}: {first_line(error)}") from error
        raise UserError(
            f"cannot load the tokenizer {name_or_path!r}: no local folder, and not on the hub "
            f"({download_error(error)}). "
            "Offline: --tokenizer FOLDER, a vocab.txt or a SentencePiece .model; main.py can train one on the text: "
            "--tokenizer wordpiece or sentencepiece"
        ) from error
    check_tokenizer(tokenizer, name_or_path)
    return tokenizer


def _open(path: Path, name: str) -> PreTrainedTokenizerBase:
    if path.is_file() and path.suffix == ".txt":
        return load_vocab_txt(path)
    if path.is_file() and path.suffix == ".model":
        return load_sentencepiece(path)
    if path.is_dir() and (path / "vocab.txt").exists() and not (path / "tokenizer_config.json").exists():
        return load_vocab_txt(path / "vocab.txt")
    return read_tokenizer(str(path) if path.exists() else fetch(name, TOKENIZER_FILES))


def text8_tokenizer() -> PreTrainedTokenizerBase:
    """Build text8's tokenizer of the characters a to z and the space; capitals are lower-cased, others are [UNK]."""
    model = Tokenizer(models.WordLevel({token: i for i, token in enumerate(TEXT8_TOKENS)}, unk_token="[UNK]"))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    model.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        additional_special_tokens=["[RESERVED]"],
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        mask_token="[MASK]",
        pad_token="[PAD]",
        unk_token="[UNK]",
    )


def learn_tokenizer(
    kind: str, source: Source, vocab_size: int, cache_dir: str, *, strip_accents: bool = False
) -> PreTrainedTokenizerBase:
    """Train a tokenizer of a kind in `LEARNT` on a source, on both sides of pairs, or read it from the cache."""
    recipe = f"{RECIPE}:{kind}:{fingerprint(source)}:{vocab_size}:{strip_accents}"
    folder = Path(cache_dir) / hashlib.blake2b(recipe.encode(), digest_size=12).hexdigest()
    if not cache.is_whole(folder):
        columns = PAIR if holds_pairs(source) else (source.column,)
        sides = (read_sentences(replace(source, column=c), description="learning a vocabulary") for c in columns)
        with cache.filled(folder) as temporary:
            if kind == "sentencepiece":
                model = temporary / "sentencepiece.model"
                model.write_bytes(train_sentencepiece(chain.from_iterable(sides), vocab_size))
                tokenizer = load_sentencepiece(model)
            else:
                tokenizer = train_wordpiece(chain.from_iterable(sides), vocab_size, strip_accents=strip_accents)
            tokenizer.save_pretrained(temporary)
    return load_tokenizer(str(folder))


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the largest id plus one, a network's number of rows; len() is less if ids are missing."""
    return max(tokenizer.get_vocab().values()) + 1


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash all settings that determine a tokenizer's ids."""
    return hashlib.blake2b(tokenizer.backend_tokenizer.to_str().encode(), digest_size=16).hexdigest()


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int] | Tensor) -> str:
    """Decode token ids as DiffuSeq's evaluation does, with marks and apostrophes joined to their words."""
    with errors_in_one_line(tokenizer):
        return tokenizer.decode(ids, clean_up_tokenization_spaces=True).strip()


def respell(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> list[str]:
    """Encode and decode texts, which then have the case, spacing and [UNK] of samples."""
    texts = list(texts)
    return [text_of(tokenizer, ids) for ids in encode(tokenizer, texts)["input_ids"]] if texts else []


def read_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder.

    Raises:
        UserError: if a value in its files is out of bounds.
        Exception: of many types, if it is missing or damaged.
    """
    check_tokenizer_files(Path(folder))
    if (Path(folder) / "config.json").exists():
        settings = json.loads(read_text(Path(folder) / "config.json", MOST_JSON))
        check_config(settings, f"cannot read the tokenizer in {folder}")
    with panics_as_errors(), refuse_custom_code(folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
