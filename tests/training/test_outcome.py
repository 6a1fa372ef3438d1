"""outcome.py: verdicts on trainings that learned nothing or diverged, also with enormous figures; a risen bound."""

import json
import re
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from training.outcome import Figures, closing_message, risen_bound, verdict, verdict_in_log

LEARNT = {"best": 4.0, "last": 4.1, "unigram": 9.6, "uniform": 14.9, "first_loss": 15.2, "last_loss": 4.4, "skipped": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"first_loss": 30.0, "last_loss": 40.0}, ""),  # a noisy loss with another weighting
        (
            {"best": 9.7, "last": 9.7},
            "has learned nothing yet: its best bound, 9.700 bits/token, is not below that of the unigram",
        ),
        ({"best": 17.0, "last": 17.0}, "has learned nothing yet: its best bound, 17.000"),  # a new network
        ({"best": 17.0, "last": 17.0, "last_loss": 14.0, "unigram": 23.6}, ""),  # pairs: [PAD] is scored too
        (
            {"best": 17.0, "last": 1e300, "last_loss": 99.0},
            "diverged: its best bound, 17.000 bits/token, is worse than a uniform guess",
        ),
        ({"best": 1e300, "last": 1e300}, "its best bound, 1.000e+300 bits/token, is worse"),
        ({"last": 312.0}, "diverged after its best bound (4.000 bits/token): the last one is 312.000"),
        ({"last_loss": 50.0}, "its loss rose from 15.200 to 50.000 bits/token"),
        ({"first_loss": 4.0, "last_loss": 14.0}, ""),  # pretrained: not worse than a uniform guess
        ({"first_loss": 0.0, "last_loss": 0.0}, ""),  # a state without these figures
        ({"skipped": 0.25}, "25 % of the steps were skipped"),
        ({"unigram": 0.0, "best": 1e300, "skipped": 1}, ""),
    ],
)
def test_a_verdict_names_the_figures_it_compares(changes: dict, message: str) -> None:
    output = verdict(**{**LEARNT, **changes})
    assert message in output and bool(message) == bool(output)
    assert not output or "--" in output or "steps were skipped" in output  # a flag to change, or no remedy


def test_figures_of_an_earlier_version_give_no_verdict() -> None:
    assert Figures.of({"best": 1e9, "skipped": 3, "unknown": 1}).verdict(10) == ""


@pytest.mark.parametrize(
    ("best", "last", "noted"),
    [(6.0, 6.0, False), (6.0, 6.11, False), (6.0, 6.13, True), (0.02, 0.06, False), (0.02, 0.08, True)],
)
def test_a_bound_that_rose_by_2_percent_and_0_05_bits_is_noted(best: float, last: float, noted: bool) -> None:
    note = risen_bound(best=best, last=last)
    assert bool(note) == noted and (not noted or f"rose from {best:.3f} to {last:.3f}" in note)
    assert risen_bound(best=float("inf"), last=0.0) == "" == risen_bound(best=best, last=float("nan"))


def test_a_rise_is_noted_without_a_verdict_and_between_like_evaluations() -> None:
    figures = {"best": 4.0, "last_bound": 5.0, "unigram": 9.6, "uniform": 14.9, "first_loss": 15.2, "last_loss": 4.4}
    figures |= {"best_of": 7.0, "last_of": 7.0}
    note = Figures.of(figures).risen_bound(10)
    assert "rose from 4.000 to 5.000" in note and "--dropout" in note
    for other in ({"last_bound": 312.0}, {"unigram": 0.0}, {"best_of": 8.0}):
        assert Figures.of({**figures, **other}).risen_bound(10) == ""
    for text in (note, ""):
        message = closing_message(Path("run"), "", text, of_pairs=False, trackers=())
        assert (f"  note        {note}\n" in message) == bool(text) and "WARNING" not in message


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"kind": "note", "steps": 3, "verdict": "diverged"}], "diverged"),
        ([{"kind": "note", "steps": 3}], ""),
        ([[1]], ""),
        ([], ""),
    ],
)
def test_the_verdict_of_a_log_is_that_of_its_last_note(tmp_path: Path, lines: list, message: str) -> None:
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert verdict_in_log(tmp_path / "log.jsonl") == message and verdict_in_log(tmp_path / "none") == ""


@pytest.mark.parametrize("script", ["run.sh", "run_condition.sh"])
@pytest.mark.parametrize("message", ["", "the training diverged: lower --learning_rate"])
def test_the_summary_of_a_demo_repeats_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, script: str, message: str
) -> None:
    """Run the Python code inside the script on the files of a demo."""
    monkeypatch.chdir(tmp_path)
    names = [f"bleu{name}" for name in ("", "_single", "_random", "_nearest")]
    elbo = {"bits_per_token": 3e300, "unigram_bits_per_token": 9.6, "ppl_word": 1e304, "num_steps": 128}
    metrics = {name + error: 0.1 for name in names for error in ("", "_se")} | {"num_sources": 5, "mbr_size": 5}
    for folder in (tmp_path / "out" / "demo", tmp_path / "out" / "condition_demo"):
        folder.mkdir(parents=True)
        (folder / "log.jsonl").write_text(json.dumps({"kind": "note", "verdict": message}) + "\n")
        (folder / "elbo.json").write_text(json.dumps(elbo))
        (folder / "samples.txt").write_text("a text\n")
        for name in ("predictions", "shuffled"):
            (folder / f"metrics.{name}.json").write_text(json.dumps(metrics))
    program = r'summarise_demo\(\) \{ # folder\n    python - "\$1" <<.PYTHON.\n(.*?)\nPYTHON\n'
    (code,) = re.findall(program, (ROOT / script).read_text(), re.S)
    folder = {"run.sh": "out/demo", "run_condition.sh": "out/condition_demo"}[script]
    monkeypatch.setattr(sys, "argv", ["-", folder])
    exec(compile(code, script, "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert (f"WARNING: {message}\n" in printed) == bool(message) and max(map(len, printed.splitlines())) < 200
    (summary,) = tmp_path.rglob("summary.json")
    assert json.loads(summary.read_text())["verdict"] == message
