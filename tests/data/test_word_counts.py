"""word_counts.py: the counts of a corpus do not depend on who counts."""

from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizerFast

from data import word_counts
from data.corpus import read_sentences
from data.tokenizers import vocabulary_size
from data.word_counts import count_corpus, count_tokens
from tests.data.test_shards import KINDS, write
from utils.errors import UserError


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_token_counts_once(tmp_path: Path, tokenizer: BertTokenizerFast, kind: str, workers: int) -> None:
    source, size = write(tmp_path, kind), vocabulary_size(tokenizer)
    ids = [i for text in read_sentences(source) for i in tokenizer(text, add_special_tokens=False).input_ids]
    counts, sentences = count_corpus(source, tokenizer, size, workers)
    assert sentences == 500 and np.array_equal(counts, np.bincount(ids, minlength=size))


def test_a_broken_line_is_named_by_whoever_reads_it(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    source = write(tmp_path, "jsonl")
    with open(source.files[1], "a") as file:
        file.write("\n{")
    with pytest.raises(UserError, match="part-1.jsonl:522: not JSON"):
        count_corpus(source, tokenizer, 300, 2)


def test_counts_are_kept(tmp_path: Path, tokenizer: BertTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "text", "txt")
    words = {"cache_dir": str(tmp_path), "identity": "a"}
    first = count_tokens(source, tokenizer, 300, **words)
    monkeypatch.setattr(word_counts, "count_corpus", lambda *_: pytest.fail("counted again"))
    assert first.equal(count_tokens(source, tokenizer, 300, **words)) and first.sum() > 0
