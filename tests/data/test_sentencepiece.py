"""sentencepiece.py: a .model file gives SentencePiece's ids; a trained one has the README's special ids."""

import io
import random
from pathlib import Path

import pytest
import sentencepiece

import main
from data.sentencepiece import DIGITS, load_sentencepiece, train_sentencepiece
from data.tokenizers import encode, load_tokenizer
from tests.conftest import SENTENCES, TINY, call
from utils.errors import UserError

TEXTS = [
    *SENTENCES,
    "",
    " ",
    "  two  spaces ",
    "tabs\tand 12345 digits 7, page 1a2b3c",
    "ünïcödé ﬁ ½ １２ no-break\u00a0space\u3000wide",
    "日本語 text 😀😀 x",
    "a" * 50,
    "aaaa bbbb aaa",
    "▁ under ▁x",
    "'quotes' \"x\" -- ... the The THE",
]
LITERALS = ["<s> the cat", "</s>", "[MASK] sees", "<unk> <pad>", "<0x41> a"]
"""Texts with names of special tokens, which SentencePiece treats as ordinary characters."""
TRAINING_TEXTS = [
    *SENTENCES,
    "in 1984 there were 12 of them, or 7, or 65.",
    "aaaa bbbb aaa abab",
    "a  b" + "    c  d" * 30,
] * 3
KINDS = {
    "bpe": {"model_type": "bpe"},
    "bpe of bytes": {"model_type": "bpe", "byte_fallback": True, "vocab_size": 380},
    "bpe as it stands": {
        "model_type": "bpe",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
    },
    "bpe of runs of spaces": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
    },
    "unigram as it stands": {
        "model_type": "unigram",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "vocab_size": 60,
    },
    "bpe over words": {"model_type": "bpe", "split_by_whitespace": False},
    "bpe with symbols": {"model_type": "bpe", "user_defined_symbols": ["the", "<x>", *DIGITS]},
    "unigram": {"model_type": "unigram", "vocab_size": 60},
    "unigram of bytes with symbols": {
        "model_type": "unigram",
        "byte_fallback": True,
        "user_defined_symbols": ["ab", "ing"],
        "vocab_size": 310,
    },
}


def trained_model(file: Path, **settings: object) -> Path:
    written = io.BytesIO()
    settings = {"vocab_size": 120, "minloglevel": 2, **settings}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TRAINING_TEXTS), model_writer=written, **settings)
    file.write_bytes(written.getvalue())
    return file


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_and_decoding_agree_with_sentencepiece(kind: str, tmp_path: Path) -> None:
    file = trained_model(tmp_path / "x.model", **KINDS[kind])
    ours, theirs = load_sentencepiece(file), sentencepiece.SentencePieceProcessor(model_file=str(file))
    may_differ = kind.startswith("unigram") or kind == "bpe with symbols"  # two unknown tokens may replace one
    texts = TEXTS if may_differ else TEXTS + LITERALS
    for text, ids in zip(texts, encode(ours, texts)["input_ids"], strict=True):
        assert ids == theirs.encode(text), text
        if theirs.unk_id() not in ids:
            assert ours.decode(ids, clean_up_tokenization_spaces=False) == theirs.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_special_tokens_in_a_text_yield_no_special_id(kind: str, tmp_path: Path) -> None:
    ours = load_sentencepiece(trained_model(tmp_path / "x.model", **KINDS[kind]))
    special = set(ours.all_special_ids) - {ours.unk_token_id}
    assert not special & {i for ids in encode(ours, LITERALS)["input_ids"] for i in ids}


def test_runs_of_spaces_are_pieces_if_the_model_learnt_them(tmp_path: Path) -> None:
    ours = load_sentencepiece(trained_model(tmp_path / "x.model", **KINDS["bpe of runs of spaces"]))
    assert "▁▁" in ours.tokenize("a  b    c")


def test_a_trained_model_has_the_documented_ids_and_splits_digits(tmp_path: Path) -> None:
    file = tmp_path / "x.model"
    file.write_bytes(train_sentencepiece(TRAINING_TEXTS, 100))
    ours = load_tokenizer(str(file))
    assert (ours.cls_token_id, ours.sep_token_id, ours.pad_token_id, ours.unk_token_id) == (0, 1, 2, 3)
    assert ours.convert_ids_to_tokens(list(range(4, 14))) == DIGITS
    assert (ours.mask_token, ours.mask_token_id, len(ours)) == ("[MASK]", 100, 101)
    (ids,) = encode(ours, ["in 1984"])["input_ids"]
    assert ours.convert_ids_to_tokens(ids)[-4:] == list("1984")


def test_missing_special_tokens_get_the_ids_after_those_of_the_model(tmp_path: Path) -> None:
    ours = load_sentencepiece(trained_model(tmp_path / "x.model", bos_id=-1, eos_id=-1, unk_id=0, vocab_size=60))
    added = {ours.cls_token_id, ours.sep_token_id, ours.pad_token_id, ours.mask_token_id}
    assert added == {60, 61, 62, 63} and ours.unk_token_id == 0


def test_a_saved_tokenizer_encodes_like_the_model(tmp_path: Path) -> None:
    ours = load_tokenizer(str(trained_model(tmp_path / "x.model", vocab_size=60)))
    ours.save_pretrained(tmp_path / "saved")
    loaded = load_tokenizer(str(tmp_path / "saved"))
    assert encode(loaded, TEXTS)["input_ids"] == encode(ours, TEXTS)["input_ids"]
    assert loaded.mask_token_id == ours.mask_token_id


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a model at all", "not a SentencePiece model"),
        (b"", "not a SentencePiece model of type bpe or unigram with one unknown piece"),
    ],
)
def test_other_files_are_refused_in_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.model").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(str(tmp_path / "x.model"))
    assert "\n" not in str(error.value) and "x.model" in str(error.value)
    trained_model(tmp_path / "c.model", model_type="char", vocab_size=40)
    with pytest.raises(UserError, match="not a SentencePiece model of type bpe or unigram"):
        load_tokenizer(str(tmp_path / "c.model"))


def test_a_model_with_spaces_as_suffixes_is_refused_with_a_remedy(tmp_path: Path) -> None:
    trained_model(tmp_path / "x.model", model_type="bpe", treat_whitespace_as_suffix=True)
    with pytest.raises(UserError, match="x.model: spaces as suffixes; train it without treat_whitespace_as_suffix"):
        load_tokenizer(str(tmp_path / "x.model"))


def test_a_damaged_model_loads_or_is_refused_in_one_line(tmp_path: Path) -> None:
    whole, rng = trained_model(tmp_path / "x.model", vocab_size=60).read_bytes(), random.Random(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 5])):
            begin = rng.randrange(len(damaged))
            damaged[begin : begin + rng.randrange(3)] = bytes([rng.randrange(256)])
        (tmp_path / "y.model").write_bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
        try:
            encode(load_tokenizer(str(tmp_path / "y.model")), TEXTS)
        except UserError as error:
            refused += "y.model" in str(error) and "\n" not in str(error)
    assert refused > 20


@pytest.mark.parametrize("vocab_size", [10, 100_000])
def test_untrainable_vocabulary_sizes_are_refused(vocab_size: int) -> None:
    with pytest.raises(UserError, match=f"vocab_size={vocab_size}: no SentencePiece model can be trained") as error:
        train_sentencepiece(SENTENCES, vocab_size)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("process", ["mdlm", "word_freq"])
@pytest.mark.slow
def test_processes_train_with_a_sentencepiece_tokenizer(
    process: str, monkeypatch, corpus: Path, tmp_path: Path, capsys
) -> None:
    flags = [flag for flag in TINY if flag not in ("--num_steps", "64")]
    model = tmp_path / "x.model"
    model.write_bytes(train_sentencepiece(TRAINING_TEXTS, 100))
    tokenizer_flags = {"mdlm": ["--tokenizer", "sentencepiece", "--vocab_size", 100], "word_freq": [f"-spm={model}"]}[
        process
    ]
    begin = flags.index("--tokenizer")
    flags = [*flags[:begin], *flags[begin + 4 :], *tokenizer_flags, f"-d={corpus}", "-mdir", tmp_path / "run"]
    run_flags = ["--process", process, "--cache_dir", tmp_path / "cache", "--max_steps", 2, "--valid_fraction", 0.1]
    assert call(main.main, monkeypatch, *flags, *run_flags) == 0
    assert "101 tokens in the vocabulary" in capsys.readouterr().out
    assert load_tokenizer(str(tmp_path / "run" / "checkpoint")).mask_token_id == 100
