"""pairs.py: cards, prompts and folders of pairs; invalid ones are refused in one line."""

import json
import os
from pathlib import Path

import datasets
import pytest
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

import main
from data.corpus import holds_pairs, read_sentences, training_source
from data.pairs import prompt_of
from data.tokenizers import train_wordpiece
from tests.conftest import PAIRS, ROOT, TINY, call, write_jsonl
from utils.errors import UserError


@pytest.fixture(scope="module")
def pairs_tokenizer() -> PreTrainedTokenizerBase:
    return train_wordpiece([text for pair in PAIRS for text in pair.values()] * 2, 300)


# ---- cards -----------------------------------------------------------------------------------------------------------

CARDS = {
    "qqp": '"{src}" is equal to "{trg}',
    "Q-T": " Answer: {src} Question: {trg}",
    "wiki_alignment": '"{src}" can be summarized as: {trg}',
    "CC": "{src} - {trg}",
    "docstrings": "plain",
}


@pytest.mark.parametrize("task", CARDS)
def test_cards_declare_the_released_prompts(task: str) -> None:
    assert prompt_of(str(ROOT / "conditional_data" / task)) == CARDS[task]


def test_every_task_has_a_card() -> None:
    assert {path.parent.name for path in (ROOT / "conditional_data").glob("*/README.md")} == set(CARDS)


@pytest.mark.parametrize("task", CARDS)
def test_the_datasets_library_reads_a_task_by_its_card(task: str, pairs_folder: Path, tmp_path: Path) -> None:
    (pairs_folder / "README.md").write_text((ROOT / "conditional_data" / task / "README.md").read_text())
    loaded = datasets.load_dataset(str(pairs_folder), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "validation", "test"} and loaded["test"][0] == PAIRS[1]


def test_a_folder_without_a_card_is_plain_and_a_file_takes_the_card_beside_it(pairs_folder: Path) -> None:
    assert prompt_of(str(pairs_folder)) == "plain"
    (pairs_folder / "README.md").write_text("# no header\n")
    assert prompt_of(str(pairs_folder)) == "plain"
    (pairs_folder / "README.md").write_text("---\nprompt: '{src} > {trg}'\n---\n")
    assert prompt_of(str(pairs_folder / "train.jsonl")) == "{src} > {trg}"


BILLION_LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (f"---\n{BILLION_LAUGHS}prompt: plain\n---\n", r"not YAML \(aliases"),
        ("---\na: &a [*a]\n---\n", r"not YAML \(aliases"),
        ("---\n" + "[" * 5000 + "\n---\n", "not YAML"),
        ("---\n- a list\n---\n", r"not YAML \(no keys and values\)"),
        ("---\n" + "a: b\n" * 50_000 + "---\n", "not YAML .250,004 characters, more than 131,072|249,999 characters"),
        ("x" * 2_000_000, "more than 1,048,576 for a file of this kind"),
        (None, "not a regular file but a pipe"),
    ],
)
def test_a_hostile_card_is_refused(pairs_folder: Path, card: str | None, message: str) -> None:
    if card is None:
        os.mkfifo(pairs_folder / "README.md")
    else:
        (pairs_folder / "README.md").write_text(card)
    with pytest.raises(UserError, match=message):
        prompt_of(str(pairs_folder))


def test_text_is_not_taken_for_pairs(pairs_folder: Path, corpus: Path, tmp_path: Path) -> None:
    assert holds_pairs(training_source(str(pairs_folder)))
    assert not holds_pairs(training_source(str(corpus)))
    text = write_jsonl(tmp_path / "t.jsonl", [{"text": "a cat", "src": "x"}])
    assert not holds_pairs(training_source(str(text)))
    assert list(read_sentences(training_source(str(text)))) == ["a cat"]


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{"src": "a"}', ("train.jsonl:3", "trg", "['src']")),
        ('{"trg": "a"}', ("train.jsonl:3", "src")),
        ('{"src": "a", "trg": 5}', ("train.jsonl:3", "trg")),
        ('{"src": "a", "trg": "  "}', ("train.jsonl:3", "empty")),
        ('{"src": "a", "trg": "b"', ("train.jsonl:3", "not JSON")),
        ('["a", "b"]', ("train.jsonl:3", "object")),
    ],
)
def test_a_malformed_pair_is_reported_with_its_line(
    line: str, parts: tuple, pairs_folder, tmp_path, monkeypatch, capsys
) -> None:
    file = pairs_folder / "train.jsonl"
    good = file.read_text().splitlines()
    file.write_text("\n".join([*good[:2], line, *good[2:]]) + "\n")
    flags = ["--train_data", pairs_folder, "--output_dir", tmp_path / "run", "--cache_dir", tmp_path / "cache"]
    assert call(main.main, monkeypatch, *TINY, *flags) == 2
    stderr = capsys.readouterr().err
    assert all(part in stderr for part in parts) and "Traceback" not in stderr and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--max_length", 12, "--target_window", 11], ("max_length=12", "no room", "window 11")),
        (["--prompt", "{src} only"], ("{src} only", "{trg}")),
        (["--prompt", "{trg} before {src}"], ("{trg} at its end",)),
        (["--prompt", "{src} {trg}"], ("a mark or a word",)),
        (["--target_window", -1], ("target_window=-1",)),
    ],
)
def test_invalid_pair_settings_are_refused_in_one_line(
    flags: list, parts: tuple, pairs_folder, tmp_path, monkeypatch, capsys
) -> None:
    base = ["--train_data", pairs_folder, "--output_dir", tmp_path / "run", "--cache_dir", tmp_path / "cache"]
    assert call(main.main, monkeypatch, *TINY, *base, *flags) == 2
    stderr = capsys.readouterr().err
    assert all(part in stderr for part in parts) and len(stderr.strip().splitlines()) == 1


def test_word_counts_from_a_file_gain_the_special_tokens_of_the_windows(
    pairs_folder, pairs_tokenizer, tmp_path, monkeypatch
) -> None:
    pairs_tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "f.json").write_text('{"the": 1000, "cat": 10}')
    base = ["--train_data", pairs_folder, "--output_dir", tmp_path / "run", "--cache_dir", tmp_path / "cache"]
    flags = ["--tokenizer", tmp_path / "tokenizer", "--vocab_size", 0, "--word_freq_file", tmp_path / "f.json"]
    assert call(main.main, monkeypatch, *TINY, *base, *flags, "--max_steps", 1, "--eval_sequences", 2) == 0
    counts = json.loads((tmp_path / "run" / "checkpoint" / "word_freq.json").read_text())
    assert (counts["the"], counts["cat"]) == (1000, 10) and counts["[SEP]"] > 50 and counts["[PAD]"] > 50


@pytest.mark.parametrize("line", [b'{"src": "a", "trg": "b"', b'{"src": "\xff", "trg": "b"}', b"[1]"])
def test_a_malformed_first_line_is_reported_with_its_number(
    line: bytes, pairs_folder, tmp_path, monkeypatch, capsys
) -> None:
    file = pairs_folder / "train.jsonl"
    file.write_bytes(line + b"\n" + file.read_bytes())
    flags = ["--train_data", pairs_folder, "--output_dir", tmp_path / "run", "--cache_dir", tmp_path / "cache"]
    assert call(main.main, monkeypatch, *TINY, *flags, "--prompt", "plain") == 2
    stderr = capsys.readouterr().err
    assert "train.jsonl:1:" in stderr and len(stderr.strip().splitlines()) == 1


def test_a_target_without_tokens_is_reported_with_its_line(pairs_folder, tmp_path, monkeypatch, capsys) -> None:
    file = pairs_folder / "train.jsonl"
    file.write_text(file.read_text() + json.dumps({"src": "a", "trg": "\u0007"}) + "\n")
    flags = ["--train_data", pairs_folder, "--output_dir", tmp_path / "run", "--cache_dir", tmp_path / "cache"]
    assert call(main.main, monkeypatch, *TINY, *flags) == 2
    assert "train.jsonl:361: the target has no tokens" in capsys.readouterr().err


def test_pair_settings_are_refused_for_text(corpus, tmp_path, monkeypatch, capsys) -> None:
    flags = ["--train_data", corpus, "--output_dir", tmp_path / "run", "--cache_dir", tmp_path / "cache"]
    assert call(main.main, monkeypatch, *TINY, *flags, "--prompt", "plain") == 2
    assert "holds text" in capsys.readouterr().err


def test_a_missing_training_file_and_an_invalid_card_are_refused(pairs_folder, tmp_path) -> None:
    (pairs_folder / "train.jsonl").unlink()
    with pytest.raises(UserError, match="no train.txt or train.jsonl"):
        training_source(str(pairs_folder))
    (pairs_folder / "README.md").write_text("---\nprompt: [unclosed\n---\n")
    with pytest.raises(UserError, match="not YAML"):
        prompt_of(str(pairs_folder))
    (pairs_folder / "README.md").write_text("---\nprompt: 7\n---\n")
    with pytest.raises(UserError, match="prompt=7"):
        prompt_of(str(pairs_folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"---\na: &a [x, x]\nprompt: [*a, *a]\n---\n", r"the header is not YAML \(aliases \(\*name\)"),
        (b"---\nprompt: [" + b"x, " * 100_000 + b"]\n---\n", r"the header is not YAML .300,010 characters, more"),
        ("---\nprompt: plain\n---\n".encode("utf-16"), "the header is not YAML .*; give --prompt"),
        (b"---\n" + b"x: y\n" * 300_000 + b"---\n", "more than 1,048,576 for a file of this kind"),
        (b"---\n- ab\n- cd\n---\n", "the header is not YAML"),
    ],
)
def test_an_invalid_card_is_refused_with_a_short_message(pairs_folder: Path, content: bytes, message: str) -> None:
    (pairs_folder / "README.md").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        prompt_of(str(pairs_folder))
    assert len(str(error.value)) < 500


def test_a_card_may_have_a_byte_order_mark_but_must_be_a_regular_file(pairs_folder: Path) -> None:
    card = pairs_folder / "README.md"
    card.write_bytes(b"\xef\xbb\xbf---\r\nprompt: '{src} > {trg}'\r\n---\r\n# A card\r\n")
    assert prompt_of(str(pairs_folder)) == "{src} > {trg}"
    card.unlink()
    os.mkfifo(card)
    with pytest.raises(UserError, match="README.md: not a regular file"):
        prompt_of(str(pairs_folder))
    card.unlink()
    card.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="README.md: not a regular file"):
        prompt_of(str(pairs_folder))
