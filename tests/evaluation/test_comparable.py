"""comparable.py: what cannot be compared with the training is said, on stderr and in the JSON."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import compute_elbo
import predict
from checkpoint.folder import load_checkpoint
from data.corpus import training_source
from data.row_formats import RowFormat, read_rows
from evaluation.comparable import longest_trained, other_than_trained
from tests.conftest import SENTENCES, call


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Scores lines with the checkpoint of the sentences; returns the notes of the JSON and what stderr says."""

    def run(lines: list[str], *words: object, more: tuple = ("--json",)) -> tuple[list[str], str, str]:
        (tmp_path / "lines.txt").write_text("\n".join(lines))
        where = ["--checkpoint", trained, "--data", tmp_path / "lines.txt", "--cache_dir", tmp_path / "cache"]
        assert call(compute_elbo.main, monkeypatch, *where, "--num_steps", 1, "--threads", 1, *words, *more) == 0
        out, err = capsys.readouterr()
        return json.loads(out)["notes"] if more else [], err, out

    return run


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], []),
        (["--protocol", "unpadded", "--detokenizer", "none"], []),
        (["--protocol", "wrapped"], ["tokens at the end", "protocol=wrapped, but the checkpoint was trained with"]),
        (["--detokenizer", "lm1b"], ["detokenizer=lm1b, but the checkpoint was trained with detokenizer=none"]),
        (["--posterior", "released"], ["is not a bound"]),
    ],
)
def test_what_is_read_otherwise_than_in_training(scored, words: list, expected: list[str]) -> None:
    notes, err, _ = scored(SENTENCES[:60], *words)
    assert len(notes) == len(expected) and all(part in note for part, note in zip(expected, notes, strict=True))
    said = [line for line in err.splitlines() if not line.startswith("reading scored: ")]
    assert said == [f"{'warning' if 'bound:' in note else 'note'}: {note}" for note in notes]
    _, said, out = scored(SENTENCES[:60], *words, more=())
    assert [line for line in said.splitlines() if line in err] == said.splitlines() and "bits/token" in out


def test_texts_longer_than_any_in_training(scored) -> None:
    notes, _, _ = scored([*SENTENCES[:5], " ".join(SENTENCES[:6])])
    assert notes == ["1 of 6 texts are longer than any in training (15 tokens)"]


def test_words_that_fill_no_block_are_counted(scored) -> None:
    """Of 110 words in blocks of 126 tokens of text the last few are not scored."""
    notes, _, out = scored([SENTENCES[-1]] * 22, "--protocol", "wrapped")
    words, kept = 22 * len(SENTENCES[-1].split()), json.loads(out)["num_words"]
    assert kept < words and f"({words - kept} of {words} words) fill no block and are left out" in notes[0]


def test_padded_rows_are_others_than_unpadded_ones(trained: Path, corpus: Path, tmp_path: Path) -> None:
    run = load_checkpoint(str(trained), torch.device("cpu"))
    for form, told in ((RowFormat("padded"), 1), (RowFormat(), 0)):
        text = read_rows(training_source(str(corpus)), form, run.tokenizer, run.max_length, str(tmp_path / "cache"))
        found = other_than_trained(replace(run, form=form), text)  # no text is longer for its ends
        assert len(found) == told and all("trained with protocol=unpadded: the figures are no" in n for n in found)


def test_the_longest_text_in_training(trained: Path) -> None:
    run = load_checkpoint(str(trained), torch.device("cpu"), protocol="wrapped", detokenizer="ptb")
    assert (
        run.trained_on == "unpadded" and run.trained_detokenizer == "none" and run.form == RowFormat("wrapped", "ptb")
    )
    assert longest_trained(run) == 15 == max(n for n, count in enumerate(run.length_histogram) if count)
    assert longest_trained(replace(run, trained_on="padded")) == 13
    assert longest_trained(replace(run, trained_on="wrapped")) is None
    assert longest_trained(replace(run, length_histogram=[0, 0, 1])) is None  # of imported weights


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--length", 16], "note: 16 tokens are more than any text in training has (15)"),
        (["--length", 15], ""),
        (["--infill", "the [MASK] " * 10], "note: 20 tokens are more than any"),
        (["--infill", "the [MASK]"], ""),
        ([], ""),
        (["--length", 600], "error: 600 tokens"),
    ],
)
def test_a_text_to_be_written_that_is_longer(monkeypatch, capsys, trained: Path, words: list, said: str) -> None:
    base = ["--checkpoint", trained, "--num_samples", 1, "--num_steps", 1, "--threads", 1]
    assert call(predict.main, monkeypatch, *base, *words) == (2 if "error" in said else 0)
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == bool(said)
