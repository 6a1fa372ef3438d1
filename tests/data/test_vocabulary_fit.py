"""vocabulary_fit.py: English fits an English vocabulary, other text does not."""

from pathlib import Path

import pytest
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data import vocabulary_fit
from data.vocabulary_fit import Fit, beginning, fit_of
from tests.conftest import SENTENCES, call
from utils.errors import UserError


def test_the_text_of_the_vocabulary_fits_and_another_language_does_not(tokenizer: PreTrainedTokenizerBase) -> None:
    assert fit_of(tokenizer, SENTENCES).good and fit_of(tokenizer, SENTENCES).pieces_per_word < 1.2
    german = fit_of(tokenizer, ["lange nachtarbeit hinterlässt irgendwann spuren"])
    assert german.pieces_per_word > 1.3 and not german.good


def test_pieces_and_unknown_tokens_are_counted_per_word_and_per_piece(tokenizer: PreTrainedTokenizerBase) -> None:
    assert fit_of(tokenizer, ["the cat 猫"]) == Fit(1.0, 1 / 3)
    assert not Fit(1.0, 0.02).good and not Fit(1.31, 0.0).good and Fit(1.3, 0.01).good


def test_a_text_without_words_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="has no word"):
        fit_of(tokenizer, [])


def test_both_sides_of_pairs_are_read(pairs_folder: Path) -> None:
    texts = beginning(str(pairs_folder))
    assert "cat see dog" in texts or any(" see " in text for text in texts)
    assert any(text.startswith("the ") for text in texts)


def test_the_exit_code_tells_the_fit(
    monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path, corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.save_pretrained(tmp_path / "tok")
    assert not call(vocabulary_fit.main, monkeypatch, "--tokenizer", tmp_path / "tok", "--data", corpus)
    assert "pieces per word, 0.0 % unknown" in capsys.readouterr().out
    corpus.write_text("zugzwang quixotisch vorwürfe\n")
    assert call(vocabulary_fit.main, monkeypatch, "--tokenizer", tmp_path / "tok", "--data", corpus) == 3
