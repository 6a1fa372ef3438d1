"""word_counts.py: counts do not depend on the number of workers; frequency files are checked."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertTokenizerFast

from data import word_counts
from data.corpus import read_sentences
from data.tokenizers import vocabulary_size
from data.word_counts import count_corpus, count_tokens, read_word_freq, write_word_freq
from tests.data.test_shards import KINDS, write
from utils.errors import UserError


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_token_is_counted_once(tmp_path: Path, tokenizer: BertTokenizerFast, kind: str, workers: int) -> None:
    source, size = write(tmp_path, kind), vocabulary_size(tokenizer)
    ids = [i for text in read_sentences(source) for i in tokenizer(text, add_special_tokens=False).input_ids]
    counts, sentences = count_corpus(source, tokenizer, size, workers)
    assert sentences == 500 and np.array_equal(counts, np.bincount(ids, minlength=size))


def test_a_malformed_line_is_named_by_any_worker(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    source = write(tmp_path, "jsonl")
    with open(source.files[1], "a") as file:
        file.write("\n{")
    with pytest.raises(UserError, match="part-1.jsonl:522: not JSON"):
        count_corpus(source, tokenizer, 300, 2)


def test_counts_are_cached(tmp_path: Path, tokenizer: BertTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "text", "txt")
    options = {"cache_dir": str(tmp_path), "identity": "a"}
    first = count_tokens(source, tokenizer, 300, **options)
    monkeypatch.setattr(word_counts, "count_corpus", lambda *_: pytest.fail("counted again"))
    assert first.equal(count_tokens(source, tokenizer, 300, **options)) and first.sum() > 0


def test_word_frequencies_survive_a_round_trip(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    counts = torch.arange(len(tokenizer)) * 3
    write_word_freq(tmp_path / "f.json", counts, tokenizer)
    assert torch.equal(read_word_freq(tmp_path / "f.json", tokenizer, len(tokenizer)), counts)
    listed = json.loads((tmp_path / "f.json").read_text())
    assert list(listed.values()) == sorted(listed.values(), reverse=True) and 0 not in listed.values()


def test_relative_frequencies_become_counts(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text('{"the": 0.5, "a": 0.25, "cat": 0.0625}')
    counts = read_word_freq(tmp_path / "f.json", tokenizer, len(tokenizer))
    assert [counts[tokenizer.convert_tokens_to_ids(t)].item() for t in ("the", "a", "cat", "dog")] == [8, 4, 1, 0]


def test_saved_frequencies_are_those_used_in_training(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    """Fractions become integers on reading, so that a checkpoint holds the schedule it was trained with."""
    (tmp_path / "f.json").write_text('{"the": 2.7, "a": 0.4}')
    counts = read_word_freq(tmp_path / "f.json", tokenizer, len(tokenizer))
    write_word_freq(tmp_path / "g.json", counts, tokenizer)
    assert json.loads((tmp_path / "g.json").read_text()) == {"the": 7, "a": 1}
    assert torch.equal(read_word_freq(tmp_path / "g.json", tokenizer, len(tokenizer)), counts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"the": 1, "zebra": 2}', "of another vocabulary: 1 of 2 tokens, e.g. 'zebra'"),
        ("[1, 2]", "must map tokens to numbers"),
        ("{}", "no token has a count above 0"),
        ('{"the": 0}', "no token has a count above 0"),
        ('{"the": 1e308, "a": 1}', "must map tokens to numbers from 0 to 1e"),
        ('{"the": 1' + "0" * 400 + "}", "must map tokens to numbers from 0 to 1e"),
        ('{"the": 0.5, "a": 1e-300}', "more than 1e"),
        ('{"the": 1' + "0" * 5000 + "}", "not JSON"),
        ("[" * 100000, "not JSON"),
        ('{"the": -1}', "must map tokens to numbers"),
        ('{"the": NaN}', "must map tokens to numbers"),
        ('{"the": true}', "must map tokens to numbers"),
        ('{"the": "1"}', "must map tokens to numbers"),
        ("\x80\x04pickle", "not JSON"),
    ],
)
def test_invalid_frequency_files_are_refused(
    tokenizer: BertTokenizerFast, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "f.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_word_freq(tmp_path / "f.json", tokenizer, len(tokenizer))


def test_a_byte_order_mark_in_a_frequency_file_is_ignored(tmp_path: Path, tokenizer) -> None:
    (tmp_path / "f.json").write_text('{"the": 3}', encoding="utf-8-sig")
    counts = read_word_freq(tmp_path / "f.json", tokenizer, len(tokenizer))
    assert counts.sum() == counts[tokenizer.get_vocab()["the"]] == 3
