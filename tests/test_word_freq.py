"""word_freq.py: counts of texts and of the targets of pairs, refused input."""

import json
from collections import Counter
from pathlib import Path

import pytest
from transformers import BertTokenizerFast

import word_freq
from tests.conftest import SENTENCES, call


def test_counts_are_those_of_the_corpus(
    monkeypatch: pytest.MonkeyPatch,
    corpus: Path,
    tokenizer: BertTokenizerFast,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    output = tmp_path / "new" / "f.json"
    assert (
        call(
            word_freq.main,
            monkeypatch,
            "--train_data",
            corpus,
            "--tokenizer",
            tmp_path / "tokenizer",
            "--output",
            output,
        )
        == 0
    )
    expected = Counter(token for sentence in SENTENCES for token in tokenizer.tokenize(sentence))
    assert json.loads(output.read_text()) == dict(expected)
    assert f"{len(SENTENCES)} sentences, {expected.total():,} tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "f.pt"], "must end in .json"),
        (["--train_data", "missing.txt"], "no such file"),
        (["--tokenizer", "no/such"], "cannot load the tokenizer"),
        (["--output", "/dev/null/f.json"], "/dev/null cannot be written to"),
        (["--train_data", "zeros"], "the tokenizer finds no token in it"),
    ],
)
def test_bad_input_is_a_one_line_error_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch,
    corpus: Path,
    tokenizer: BertTokenizerFast,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    flags: list,
    message: str,
) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "zeros").mkdir()
    (tmp_path / "zeros" / "train.txt").write_text("\u0001\u0001\n")
    monkeypatch.chdir(tmp_path)
    base = ["--train_data", corpus, "--tokenizer", tmp_path / "tokenizer", "--output", tmp_path / "f.json"]
    assert call(word_freq.main, monkeypatch, *base, *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.glob("f.*"))


def test_only_the_targets_of_pairs_are_counted(monkeypatch, tokenizer, pairs_folder, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    flags = ["--train_data", pairs_folder, "--tokenizer", tmp_path / "tokenizer", "--output", tmp_path / "f.json"]
    assert call(word_freq.main, monkeypatch, *flags) == 0
    counted = json.loads((tmp_path / "f.json").read_text())
    targets = [json.loads(line)["trg"] for line in (pairs_folder / "train.jsonl").read_text().splitlines()]
    assert counted["the"] == sum(target.split().count("the") for target in targets) > 0
