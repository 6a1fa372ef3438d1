"""comparable.py: notes on stderr and in the JSON where figures are not comparable with those of training."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import compute_elbo
import predict
from checkpoint.folder import load_checkpoint
from data.corpus import training_source
from data.options import TextFormat
from data.row_formats import read_rows
from evaluation.comparable import comparability_notes, longest_trained
from tests.conftest import SENTENCES, call


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Score lines with the trained checkpoint; return the notes of the JSON, and stderr."""

    def run(lines: list[str], *flags: object, output_flags: tuple = ("--json",)) -> tuple[list[str], str, str]:
        (tmp_path / "lines.txt").write_text("\n".join(lines))
        base = ["--checkpoint", trained, "--data", tmp_path / "lines.txt", "--cache_dir", tmp_path / "cache"]
        assert call(compute_elbo.main, monkeypatch, *base, "--num_steps", 1, "--threads", 1, *flags, *output_flags) == 0
        out, err = capsys.readouterr()
        return json.loads(out)["notes"] if output_flags else [], err, out

    return run


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], []),
        (["--protocol", "unpadded", "--detokenizer", "none"], []),
        (["--protocol", "wrapped"], ["tokens at the end", "row_format=wrapped, but the checkpoint was trained with"]),
        (["--detokenizer", "lm1b"], ["detokenizer=lm1b, but the checkpoint was trained with detokenizer=none"]),
        (["--posterior", "released"], ["is not a bound"]),
    ],
)
def test_settings_that_differ_from_training_are_noted(scored, flags: list, expected: list[str]) -> None:
    notes, err, _ = scored(SENTENCES[:60], *flags)
    assert len(notes) == len(expected) and all(part in note for part, note in zip(expected, notes, strict=True))
    reported = [line for line in err.splitlines() if not line.startswith("reading scored: ")]
    assert reported == [f"{'warning' if 'bound:' in note else 'note'}: {note}" for note in notes]
    _, reported, out = scored(SENTENCES[:60], *flags, output_flags=())
    assert [line for line in reported.splitlines() if line in err] == reported.splitlines() and "bits/token" in out


def test_texts_longer_than_any_in_training_are_noted(scored) -> None:
    notes, _, _ = scored([*SENTENCES[:5], " ".join(SENTENCES[:6])])
    assert notes == ["1 of 6 texts are longer than all training texts (15 tokens)"]


def test_words_that_fill_no_block_are_counted(scored) -> None:
    """The last words do not fill a block of 126 tokens, so they are not scored."""
    notes, _, out = scored([SENTENCES[-1]] * 22, "--protocol", "wrapped")
    words, kept = 22 * len(SENTENCES[-1].split()), json.loads(out)["num_words"]
    assert kept < words and f"({words - kept} of {words} words) fill no block and are left out" in notes[0]


def test_another_row_format_is_noted(trained: Path, corpus: Path, tmp_path: Path) -> None:
    run = load_checkpoint(str(trained), torch.device("cpu"))
    for form, expected in ((TextFormat("padded"), 1), (TextFormat(), 0)):
        text = read_rows(training_source(str(corpus)), form, run.tokenizer, run.max_length, str(tmp_path / "cache"))
        notes = comparability_notes(replace(run, text_format=form), text)  # special tokens make no text longer
        assert len(notes) == expected and all("trained with row_format=unpadded" in note for note in notes)


def test_the_longest_training_text_follows_from_the_length_histogram(trained: Path) -> None:
    run = load_checkpoint(str(trained), torch.device("cpu"), row_format="wrapped", detokenizer="ptb")
    assert run.trained_format == TextFormat() and run.text_format == TextFormat("wrapped", "ptb")
    assert longest_trained(run) == 15 == max(n for n, count in enumerate(run.length_histogram) if count)
    assert longest_trained(replace(run, training_format=TextFormat("padded"))) == 13
    assert longest_trained(replace(run, training_format=TextFormat("wrapped"))) is None
    assert longest_trained(replace(run, length_histogram=[0, 0, 1])) is None  # imported weights


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--length", 16], "note: 16 tokens exceed the longest training text (15)"),
        (["--length", 15], ""),
        (["--infill", "the [MASK] " * 10], "note: 20 tokens exceed the longest"),
        (["--infill", "the [MASK]"], ""),
        ([], ""),
        (["--length", 600], "error: 600 tokens"),
    ],
)
def test_a_request_longer_than_any_training_text_is_noted(
    monkeypatch, capsys, trained: Path, flags: list, message: str
) -> None:
    base = ["--checkpoint", trained, "--num_samples", 1, "--num_steps", 1, "--threads", 1]
    assert call(predict.main, monkeypatch, *base, *flags) == (2 if "error" in message else 0)
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == bool(message)
