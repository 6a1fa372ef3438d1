"""word_freq.py: counts of texts and of the targets of pairs, refused input."""

import json
from collections import Counter
from pathlib import Path

import pytest
from transformers import BertTokenizerFast

import main
import word_freq
from tests.conftest import SENTENCES, TINY, call


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


def test_counts_of_detokenized_text_are_those_of_a_training_on_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The mark @-@ becomes a hyphen, so the counts without the detokenizer differ."""
    rows = [f"the cat {i % 7} ca n't see the dog {i % 5} @-@ legged , it said ." for i in range(80)]
    (tmp_path / "a.csv").write_text("body,id\n" + "".join(f'"{row}",{i}\n' for i, row in enumerate(rows)))
    folder, file, column = tmp_path / "run", tmp_path / "f.json", ["--text_column", "body"]
    text = ["--train_data", tmp_path / "a.csv", *column]
    flags = [
        *TINY,
        *text,
        "--output_dir",
        folder,
        "--cache_dir",
        tmp_path / "cache",
        "--valid_data",
        tmp_path / "a.csv",
    ]
    flags += ["--max_steps", 1]
    wikitext = ["--detokenizer", "wikitext"]
    assert call(main.main, monkeypatch, *flags, *wikitext) == 0
    known = json.loads((folder / "checkpoint" / "word_freq.json").read_text())
    base = [*text, "--tokenizer", folder / "tokenizer", "--output", file]
    assert call(word_freq.main, monkeypatch, *base, *wikitext) == 0
    assert "--text_column body --detokenizer wikitext --output_dir DIR" in capsys.readouterr().out
    counted = json.loads(file.read_text())
    assert counted == known and counted["[detokenizer]"] == "wikitext"
    with_file = [*flags, "--overwrite", "true", "--word_freq_file", file]
    assert call(main.main, monkeypatch, *with_file, *wikitext) == 0
    assert json.loads((folder / "checkpoint" / "word_freq.json").read_text()) == known
    assert call(main.main, monkeypatch, *with_file) == 2
    message = "of text with detokenizer=wikitext, but this text has detokenizer=none; count again with word_freq.py"
    assert message in capsys.readouterr().err
    assert call(word_freq.main, monkeypatch, *base) == 0
    assert json.loads(file.read_text()) != counted
