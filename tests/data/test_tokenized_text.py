"""tokenized_text.py: texts become ordinary tokens, a damaged cache is rebuilt, held-out texts are stable."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizerFast

from data import tokenized_text
from data.corpus import training_source
from data.options import DataArgs
from data.plain_text import chunks
from data.row_formats import load_texts
from data.tokenized_text import TokenizedText, _write_tokens, tokenize
from data.tokenizers import train_wordpiece
from tests.conftest import SENTENCES
from utils.errors import UserError


@pytest.fixture
def text(corpus: Path, tokenizer: BertTokenizerFast, tmp_path: Path) -> TokenizedText:
    return tokenize(training_source(str(corpus)), tokenizer, 32, str(tmp_path / "cache"))


# ---- tokenised text --------------------------------------------------------------------------------------------------


def test_tokens_decode_to_the_sentences(text: TokenizedText, tokenizer: BertTokenizerFast) -> None:
    assert len(text) == len(SENTENCES) and text.num_truncated == 0
    for i in (0, 17, 239):
        assert tokenizer.decode(text.tokens[text.offsets[i] : text.offsets[i + 1]]) == SENTENCES[i]
        assert text.num_words[i] == len(SENTENCES[i].split())
    assert int(text.counts(400).sum()) == len(text.tokens) == text.lengths.sum()


def test_names_of_special_tokens_in_a_text_are_ordinary_pieces(tmp_path: Path) -> None:
    written = "see [MASK] and [SEP] and [PAD] and [CLS] here"
    tokenizer = train_wordpiece([written.lower()] * 3, 100)
    file = tmp_path / "a.txt"
    file.write_text(written)
    tokens = tokenize(training_source(str(file)), tokenizer, 64, str(tmp_path / "cache")).tokens
    special = {i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id}
    assert not special & set(np.asarray(tokens).tolist())


def test_long_sentences_are_cut_and_only_kept_words_are_counted(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    file = tmp_path / "a.txt"
    file.write_text("the cat sees the house and the cat sees a tree\na dog\n")
    text = tokenize(training_source(str(file)), tokenizer, 4, str(tmp_path / "cache"))
    assert text.num_truncated == 1 and text.lengths.tolist() == [4, 2] and text.num_words.tolist() == [4, 2]


def test_the_same_text_is_tokenised_once(
    corpus: Path, tokenizer: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = _write_tokens
    monkeypatch.setattr(tokenized_text, "_write_tokens", lambda *a, **k: (calls.append(1), original(*a, **k)))
    cache = str(tmp_path / "cache")

    def get(max_length: int = 32) -> TokenizedText:
        return tokenize(training_source(str(corpus)), tokenizer, max_length, cache)

    get(), get()
    assert len(calls) == 1
    get(max_length=16)
    assert len(calls) == 2  # another maximum length
    corpus.write_text(corpus.read_text() + "one more\n")
    assert len(get()) == 241 and len(calls) == 3  # another content
    tokenize(training_source(str(corpus)), train_wordpiece(SENTENCES, 100), 32, cache)
    assert len(calls) == 4  # another vocabulary


@pytest.mark.parametrize("file", ["meta.json", "tokens.bin", "offsets.npy", "num_words.npy"])
def test_a_damaged_cache_is_rebuilt(corpus: Path, tokenizer: BertTokenizerFast, tmp_path: Path, file: str) -> None:
    def get() -> TokenizedText:
        return tokenize(training_source(str(corpus)), tokenizer, 32, str(tmp_path / "cache"))

    whole = get().tokens.tolist()
    (damaged,) = (tmp_path / "cache").glob(f"*/{file}")
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    assert get().tokens.tolist() == whole


def test_a_failed_tokenisation_leaves_no_files(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    file, cache = tmp_path / "a.txt", tmp_path / "cache"
    file.write_bytes(b"good\n" * 5000 + b"\xff\n")
    with pytest.raises(UserError, match="a.txt:5001"):
        tokenize(training_source(str(file)), tokenizer, 32, str(cache))
    assert list(cache.iterdir()) == []


def test_long_texts_are_tokenised_a_few_at_a_time() -> None:
    """Without a limit, 2,000 lines of two million characters would be tokenised at once."""
    texts = ["x" * 10**6] * 5 + ["y"] * 3000
    parts = list(chunks(texts))
    assert sum(parts, []) == texts and [len(chunk) for chunk in parts] == [2, 2, 2000, 1001]
    pairs = list(chunks((text, (0, i)) for i, text in enumerate(texts)))
    assert [len(chunk) for chunk in pairs] == [2, 2, 2000, 1001]


# ---- splits ----------------------------------------------------------------------------------------------------------


def test_without_a_validation_set_a_stable_share_is_held_out(
    corpus: Path, tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    def split(order: list[str]) -> tuple[set, set]:
        corpus.write_text("\n".join(order))
        args = DataArgs(str(corpus), valid_fraction=0.1, max_length=32, cache_dir=str(tmp_path / "cache"))
        return tuple(
            {tokenizer.decode(t.tokens[a:b]) for a, b in itertools.pairwise(t.offsets)}
            for t in load_texts(args, tokenizer)
        )

    train, valid = split(SENTENCES)
    assert train | valid == set(SENTENCES) and not train & valid and valid
    assert split(SENTENCES[::-1]) == (train, valid)


def test_a_given_validation_set_is_used_whole(corpus: Path, tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("the cat\na dog\n")
    settings = {"max_length": 32, "cache_dir": str(tmp_path / "cache"), "batch_size": 8}
    train, valid = load_texts(DataArgs(str(corpus), valid_data=str(own), **settings), tokenizer)
    assert (len(train), len(valid)) == (240, 2)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.txt").write_text(corpus.read_text())
    (folder / "valid.txt").write_text("a dog\n")
    train, valid = load_texts(DataArgs(str(folder), **settings), tokenizer)
    assert (len(train), len(valid)) == (240, 1)


@pytest.mark.parametrize("way", [{"max_tokens": 5000}, {"packing": True, "batch_size": 100}])
def test_fewer_tokens_than_slots_of_a_batch_are_refused(
    corpus: Path, tokenizer: BertTokenizerFast, tmp_path: Path, way: dict
) -> None:
    with pytest.raises(UserError, match="training tokens do not fill one batch of (5000|3200) slots"):
        load_texts(DataArgs(str(corpus), max_length=32, cache_dir=str(tmp_path / "cache"), **way), tokenizer)
    few = {"max_tokens": 100, "batch_size": 1000}  # max_tokens replaces batch_size
    load_texts(DataArgs(str(corpus), max_length=32, cache_dir=str(tmp_path / "cache"), **few), tokenizer)


def test_fewer_sentences_than_a_batch_are_refused(corpus: Path, tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    args = DataArgs(str(corpus), batch_size=512, max_length=32, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match="training sentences are fewer than batch_size=512"):
        load_texts(args, tokenizer)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"valid_fraction": 1.0}, "valid_fraction=1.0"),
        ({"max_length": 2}, "max_length=2"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        DataArgs("x", **setting)
