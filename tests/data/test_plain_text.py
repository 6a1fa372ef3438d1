"""plain_text.py: text never becomes a special token, for any tokenizer; cuts fall at correct ends of tokens."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data import plain_text
from data.corpus import training_source
from data.options import DataArgs
from data.plain_text import encode, special_ids
from data.streaming import open_stream
from data.tokenized_text import tokenize, tokenize_in_memory
from data.tokenizers import load_tokenizer, respell, text8_tokenizer, vocabulary_size
from data.word_counts import count_corpus
from data.wordpiece import SPECIAL_TOKENS, train_wordpiece
from tests.conftest import SENTENCES

ROBERTA = {"cls": "<s>", "sep": "</s>", "pad": "<pad>", "mask": "<mask>", "unk": "<unk>"}
BERT = {name[1:-1].lower(): name for name in SPECIAL_TOKENS}
LETTERS = sorted(set("".join(SENTENCES)) | set("[]<>/SEPCLMAKDUNseplcmaknudx"))


def named(backend: Tokenizer, names: dict[str, str], **options: object) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **{f"{role}_token": token for role, token in names.items()}, **options
    )


def xlm_r() -> PreTrainedTokenizerBase:
    """Unigram model with special pieces, which text must not get, even if they are the likeliest segmentation."""
    pieces = [(name, 0.0) for name in ROBERTA.values()] + [("▁", -2.0), ("▁the", -3.0), ("extra", -5.0)]
    backend = Tokenizer(models.Unigram([*pieces, *((c, -6.0) for c in LETTERS if c != " ")], 4))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return named(backend, ROBERTA | {"mask": AddedToken("<mask>", lstrip=True)}, additional_special_tokens=["extra"])


def deberta() -> PreTrainedTokenizerBase:
    pieces = [(name, 0.0) for name in BERT.values()] + [("▁", -2.0)] + [(c, -6.0) for c in LETTERS if c != " "]
    backend = Tokenizer(models.Unigram(pieces, 1))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(split=False), decoders.Metaspace()
    return named(backend, BERT)


def byte_level_bpe() -> PreTrainedTokenizerBase:
    """Byte-level BPE whose merges make </s> and <mask>."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=letters, show_progress=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.train_from_iterator(["</s> <mask> <s> <pad> the cat"] * 9, trainer)
    assert {"</s>", "<mask>", "<s>"} <= backend.get_vocab().keys()
    return named(backend, ROBERTA)


def word_level(names: dict[str, str], *, lower: bool = False) -> PreTrainedTokenizerBase:
    """Word-level vocabulary in which "[MASK]", lower-cased, is the entry "[mask]"."""
    names = {role: token.lower() if lower else token for role, token in names.items()}
    vocabulary = sorted({word for sentence in SENTENCES for word in sentence.split()})
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*names.values(), *vocabulary])}, names["unk"]))
    backend.normalizer = normalizers.Lowercase() if lower else normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return named(backend, names)


def pieces() -> PreTrainedTokenizerBase:
    """WordPiece that does not split at brackets."""
    backend = Tokenizer(
        models.WordPiece(
            {w: i for i, w in enumerate([*SPECIAL_TOKENS, *LETTERS, *(f"##{c}" for c in LETTERS)])}, unk_token="[UNK]"
        )
    )
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece()
    return named(backend, BERT)


def ordinary_added_tokens() -> PreTrainedTokenizerBase:
    """Special tokens added as ordinary ones, which are matched before any other step."""
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate([*LETTERS, "<unk>"])}, [], unk_token="<unk>"))
    backend.add_tokens([AddedToken(token, special=False, normalized=True) for token in ROBERTA.values()])
    return named(backend, {role: AddedToken(token, special=False) for role, token in ROBERTA.items()})


KINDS = {
    "xlm-r": xlm_r,
    "deberta": deberta,
    "bytes": byte_level_bpe,
    "words": lambda: word_level(ROBERTA),
    "lower-cased words": lambda: word_level(BERT, lower=True),
    "pieces": pieces,
    "not special": ordinary_added_tokens,
    "learnt": lambda: train_wordpiece([*SENTENCES, "[mask] [sep] [cls] [pad]"] * 2, 200),
    "text8": text8_tokenizer,
}


@pytest.fixture(scope="module", params=KINDS)
def any_tokenizer(request) -> PreTrainedTokenizerBase:
    return KINDS[request.param]()


def texts_with(token: str) -> list[str]:
    """Texts with a name at the start, at the end, alone, joined, doubled, in capitals, full-width, after spaces."""
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in token)
    forms = [token, token.upper(), token.lower(), wide, token * 2, f"{token} {token}"]
    around = ["{}", "{} the cat", "the cat {}", "the{}cat sees", "the cat  {}  sees\u00a0{}"]
    return [pattern.format(*[form] * 2) for pattern, form in itertools.product(around, forms)]


def test_no_text_yields_a_special_id(any_tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [text for token in any_tokenizer.all_special_tokens for text in texts_with(token)]
    ids = encode(any_tokenizer, texts)["input_ids"]
    assert not special_ids(any_tokenizer) & set(itertools.chain.from_iterable(ids))
    assert all(ids) and special_ids(any_tokenizer) == set(any_tokenizer.all_special_ids) - {any_tokenizer.unk_token_id}
    for text, in_batch in zip(texts, ids, strict=True):
        assert encode(any_tokenizer, [text], note=False)["input_ids"] == [in_batch]  # equal alone and in a batch


def test_a_special_name_is_encoded_as_characters_within_unchanged_text() -> None:
    tokenizer = KINDS["xlm-r"]()
    (ids,) = encode(tokenizer, ["the <s> the"])["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁the", "▁", "<", "s", ">", "▁the"]
    assert respell(tokenizer, ["the <s> the"]) == ["the <s> the"]


@pytest.mark.parametrize("longest", [1, 2, 3, 4, 6, 50])
def test_the_kept_part_of_a_cut_text_encodes_to_the_same_ids(
    any_tokenizer: PreTrainedTokenizerBase, longest: int
) -> None:
    texts = [text for token in any_tokenizer.all_special_tokens for text in texts_with(token)]
    records = list(plain_text.encode_records(((t, (0, i)) for i, t in enumerate(texts)), any_tokenizer, longest, str))
    for text, (ids, kept, _, was_cut) in zip(texts, records, strict=True):
        assert text.startswith(kept) and len(ids) <= longest and (was_cut or kept == text)
        if text.startswith(kept) and was_cut:  # the last token may end within a character or a word
            assert ids[:-1] == encode(any_tokenizer, [kept])["input_ids"][0][: len(ids) - 1]


def test_words_are_counted_up_to_the_cut(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the <s> cat")
    source, tokenizer = training_source(str(tmp_path / "a.txt")), KINDS["xlm-r"]()
    for longest, number in ((1, 1), (2, 1), (3, 2), (5, 2), (6, 2), (7, 3), (50, 3)):
        text = tokenize_in_memory([("the <s> cat", (0, 1))], source, tokenizer, longest)
        assert text.num_words.tolist() == [number]


def test_special_names_are_noted_once_with_their_count_and_first_location(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(plain_text, "NOTED", set())
    file, tokenizer = tmp_path / "a.txt", KINDS["xlm-r"]()
    file.write_text("the cat\nI <s>hate</s> it .\nthe\n<mask>\n")
    source = training_source(str(file))
    note = "note: 2 texts contain the name of a special token, encoded like any other word ("
    tokens = tokenize(source, tokenizer, 50, str(tmp_path / "cache")).tokens
    assert not special_ids(tokenizer) & set(np.asarray(tokens).tolist())
    assert f"{note}{file}:2)" in capsys.readouterr().err
    monkeypatch.setattr(plain_text, "NOTED", set())
    counts, _ = count_corpus(source, tokenizer, vocabulary_size(tokenizer), 1)
    assert not counts[sorted(special_ids(tokenizer))].any() and f"{note}{file}:2)" in capsys.readouterr().err
    monkeypatch.setattr(plain_text, "NOTED", set())
    stream = open_stream(source, tokenizer, DataArgs(str(file), cache_dir=str(tmp_path)))
    assert not special_ids(tokenizer) & set(stream.sample.tokens.tolist())
    stderr = capsys.readouterr().err
    assert f"{note}{file}:2)" in stderr and stderr.count("note:") == 1
    encode(tokenizer, ["<s>"]), encode(tokenizer, ["<s>"])
    assert capsys.readouterr().err.count("note: a text contains the name of a special token") == 1


def test_a_cache_that_holds_special_ids_is_rebuilt(tmp_path: Path) -> None:
    tokenizer, file, cache = KINDS["words"](), tmp_path / "a.txt", str(tmp_path / "cache")
    file.write_text("a <s> b\n")
    tokenize(training_source(str(file)), tokenizer, 50, cache)
    (tokens,) = (tmp_path / "cache").glob("*/tokens.bin")
    good = tokens.read_bytes()
    tokens.write_bytes(np.full(len(good) // 2, tokenizer.cls_token_id, np.uint16).tobytes())
    assert tokenize(training_source(str(file)), tokenizer, 50, cache).tokens.tobytes() == good


def test_a_saved_and_loaded_tokenizer_yields_no_special_id(tmp_path: Path) -> None:
    KINDS["xlm-r"]().save_pretrained(tmp_path / "saved")
    loaded = load_tokenizer(str(tmp_path / "saved"))
    assert not special_ids(loaded) & set(encode(loaded, ["<s> <mask></s>"])["input_ids"][0])
