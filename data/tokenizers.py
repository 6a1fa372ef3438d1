"""Tokenizers: named, bare vocabularies, or learnt from the corpus; ids to text (text to ids: data/plain_text.py)."""

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
from data.plain_text import encode, failing_in_one_line, panics_as_errors, without_panic_messages
from data.sentencepiece import load_sentencepiece, train_sentencepiece
from data.tokenizer_checks import check_tokenizer, check_tokenizer_files
from data.wordpiece import load_vocab_txt, train_wordpiece
from utils.errors import UserError
from utils.files import local_path, read_text
from utils.hub import OF_A_TOKENIZER, fetch, first_line, why_not_given
from utils.network_config import MOST_JSON, check_config, code_refused

LEARNT = ("wordpiece", "sentencepiece")
"""Tokenizers that are learnt from the training text."""
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
"""MDLM's ids: a is 8, a space 34."""
RECIPE = 2  # of a learnt vocabulary; part of its name in the cache


@without_panic_messages()
def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """A fast tokenizer with [MASK], from a folder, a WordPiece vocab.txt, a SentencePiece .model, or the hub.

    `text8` is one of characters.

    Raises:
        UserError: if it cannot be read, or lacks a token that the process needs.
    """
    path = local_path(name_or_path)
    if name_or_path == TEXT8 and not path.is_dir():  # the text itself has that name, too
        return text8_tokenizer()
    try:
        with panics_as_errors():
            tokenizer = _open(path, name_or_path)
    except UserError:
        raise
    except Exception as error:  # a damaged or missing tokenizer raises anything, down to bare Exception
        if path.exists():
            raise UserError(f"cannot read the tokenizer in {path}: {first_line(error)}") from error
        raise UserError(
            f"cannot load the tokenizer {name_or_path!r}: no local folder, and the hub gave none "
            f"({why_not_given(error)}). "
            "Offline: --tokenizer FOLDER, a vocab.txt or a SentencePiece .model; main.py can learn one from the text: "
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
    return read_tokenizer(str(path) if path.exists() else fetch(name, OF_A_TOKENIZER))


def text8_tokenizer() -> PreTrainedTokenizerBase:
    """Characters a to z and the space, as text8 is written; capitals become small, anything else [UNK]."""
    model = Tokenizer(models.WordLevel({token: i for i, token in enumerate(TEXT8_TOKENS)}, unk_token="[UNK]"))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    model.decoder = decoders.Fuse()
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "bos", "eos", "mask", "pad", "unk")}
    return PreTrainedTokenizerFast(tokenizer_object=model, additional_special_tokens=["[RESERVED]"], **names)


def learn_tokenizer(
    kind: str, source: Source, vocab_size: int, cache_dir: str, *, strip_accents: bool = False
) -> PreTrainedTokenizerBase:
    """One of `LEARNT`, learnt from a source (from both sides of pairs), from the cache if it was learnt before."""
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
    """Rows that a network needs: the largest id and one. A vocabulary may have holes, which len() does not count."""
    return max(tokenizer.get_vocab().values()) + 1


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of everything that decides how text is cut."""
    return hashlib.blake2b(tokenizer.backend_tokenizer.to_str().encode(), digest_size=16).hexdigest()


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int] | Tensor) -> str:
    """The text of token ids, as DiffuSeq's evaluation writes it: marks and apostrophes joined to their words."""
    with failing_in_one_line(tokenizer):
        return tokenizer.decode(ids, clean_up_tokenization_spaces=True).strip()


def respell(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> list[str]:
    """Texts as the tokenizer writes them, which is how samples are written: lower case, its spaces, its [UNK]."""
    texts = list(texts)
    return [text_of(tokenizer, ids) for ids in encode(tokenizer, texts)["input_ids"]] if texts else []


def read_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises:
        UserError: if one of its files is out of bounds.
        Exception: of many types, if it is missing or damaged.
    """
    check_tokenizer_files(Path(folder))
    if (Path(folder) / "config.json").exists():
        settings = json.loads(read_text(Path(folder) / "config.json", MOST_JSON))
        check_config(settings, f"cannot read the tokenizer in {folder}")
    with panics_as_errors(), code_refused(folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
