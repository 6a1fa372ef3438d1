"""Trim a WordPiece vocabulary to the pieces of a text, so that the vocabulary head of a pretrained network is smaller.

Logits over 30,522 pieces take much of a small network's time, and a small text has few of them. WordPiece takes the
longest piece that it knows at each position, and none that occurs in the text is dropped, so the known words of the
text are tokenised as before. All single characters are kept. Where the vocabulary has each of them both at the
beginning and inside of words, as BERT's has, [UNK] stays [UNK], and a word of another text that needs a dropped piece
is cut into smaller ones instead of becoming [UNK]. In another vocabulary, smaller pieces may replace an [UNK].
"""

import hashlib
import json
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data import cache
from data.corpus import PAIR, Keep, Source, fingerprint, holds_pairs, read_sentences
from data.detokenizers import detokenize
from data.plain_text import encode
from data.tokenizers import load_tokenizer, tokenizer_fingerprint
from utils.errors import UserError

RECIPE = "trimmed:1"
AT_ONCE = 5000
"""Sentences encoded together."""
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def trim_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    source: Source,
    cache_dir: str,
    *,
    part: str = "",
    keep: Keep | None = None,
    detokenizer: str = "none",
) -> PreTrainedTokenizerBase:
    """Return a tokenizer with only the entries that occur in a source, of pairs on either side.

    It is read from the cache if it is there.

    Args:
        tokenizer: the whole tokenizer.
        source: the training text.
        cache_dir: folder of the cache.
        part, keep: name and selection of the sentences, as in `tokenized_text.tokenize`.
        detokenizer: name in `data/detokenizers.py`.

    Raises:
        UserError: if it is not a WordPiece tokenizer.
    """
    if _spec(tokenizer)["model"]["type"] != "WordPiece":
        raise UserError(
            "trim_vocabulary=true needs a WordPiece tokenizer, as BERT has; leave it out, or give another --tokenizer"
        )
    recipe = f"{RECIPE}:{tokenizer_fingerprint(tokenizer)}:{fingerprint(source)}:{part}:{detokenizer}"
    folder = Path(cache_dir) / hashlib.blake2b(recipe.encode(), digest_size=12).hexdigest()
    if not cache.is_whole(folder):
        with cache.filled(folder) as temporary:
            used = used_ids(tokenizer, source, keep, detokenizer)
            restricted(tokenizer, used).save_pretrained(temporary)
    return load_tokenizer(str(folder))


def kept_ids(trimmed: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the id that each entry of the trimmed tokenizer has in the whole one, in order.

    Raises:
        UserError: if an entry is not in the whole tokenizer.
    """
    whole = tokenizer.get_vocab()
    if other := trimmed.get_vocab().keys() - whole.keys():
        raise UserError(
            f"trim_vocabulary=true: the tokenizer has changed since the run began, it lacks {min(other)!r}; give the "
            "run's --tokenizer, or --overwrite true"
        )
    return [whole[entry] for entry, _ in sorted(trimmed.get_vocab().items(), key=lambda item: item[1])]


def used_ids(
    tokenizer: PreTrainedTokenizerBase, source: Source, keep: Keep | None = None, detokenizer: str = "none"
) -> set[int]:
    """Return the ids that occur in a source, or in the records of it that `keep` selects."""
    columns = PAIR if holds_pairs(source) else (source.column,)
    description = "trimming the vocabulary"
    sides = (read_sentences(replace(source, column=c), keep=keep, description=description) for c in columns)
    sentences, used = chain.from_iterable(sides), set()
    while some := list(islice(sentences, AT_ONCE)):
        texts = [detokenize(text, detokenizer) for text in some]
        used.update(chain.from_iterable(encode(tokenizer, texts, note=False)["input_ids"]))
    return used


def restricted(tokenizer: PreTrainedTokenizerBase, used: set[int]) -> PreTrainedTokenizerBase:
    """Return the tokenizer with the used ids, the special tokens and all single characters; their order is kept."""
    spec, whole = _spec(tokenizer), tokenizer.get_vocab()
    added = {token["content"] for token in spec["added_tokens"]}
    prefix = spec["model"]["continuing_subword_prefix"]
    kept = sorted(
        (number, entry)
        for entry, number in whole.items()
        if number in used or entry in added or len(entry.removeprefix(prefix)) == 1
    )
    numbers = {entry: i for i, (_, entry) in enumerate(kept)}
    spec["model"]["vocab"] = {entry: numbers[entry] for _, entry in kept if entry in spec["model"]["vocab"]}
    for token in spec["added_tokens"]:
        token["id"] = numbers[token["content"]]
    spec |= {"post_processor": _ends(tokenizer, numbers), "truncation": None, "padding": None}
    names = {name: getattr(tokenizer, name) for name in SPECIAL_NAMES if getattr(tokenizer, name)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)), **names)


def _ends(tokenizer: PreTrainedTokenizerBase, numbers: dict[str, int]) -> dict | None:
    """Return a post-processor that adds [CLS] and [SEP], for use of the saved tokenizer elsewhere."""
    if not tokenizer.cls_token or not tokenizer.sep_token:
        return None
    ends = {"sep": tokenizer.sep_token, "cls": tokenizer.cls_token}
    return {"type": "BertProcessing", **{end: [token, numbers[token]] for end, token in ends.items()}}


def _spec(tokenizer: PreTrainedTokenizerBase) -> dict:
    return json.loads(tokenizer.backend_tokenizer.to_str())
