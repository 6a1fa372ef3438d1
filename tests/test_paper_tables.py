"""benchmarks/paper_tables.py: the rows of runs/paper_tables.sh, the tables and the claims from recorded reports."""

import json
import re
from pathlib import Path
from statistics import mean

import pytest

from benchmarks import paper_tables
from benchmarks.paper_tables import (
    CLAIMS,
    NOTE_TRAININGS,
    ROWS,
    collected,
    difference,
    findings,
    table_2,
    table_3,
    table_of_findings,
)
from tests.conftest import ROOT, call
from utils.errors import UserError


def record(out: Path, row: str, seed: int, exact: list[float], released: list[float]) -> None:
    """Write the reports of one training, given the nats of its sentences."""
    each = {"exact": exact, "released": released}
    reports = {part: {"nats_per_sequence": mean(nats), "ppl_word": 10 * mean(nats)} for part, nats in each.items()}
    reports |= {"metrics": {"bleu_4": 0.25, "self_bleu_4": 0.5}}
    reports |= {"samples": {"forwards": 26.0, "seconds": 60.0, "samples": 1000}}
    for part, report in reports.items():
        (out / f"{row}-{seed}.{part}.json").write_text(json.dumps(report))
    for part, nats in each.items():
        lines = [json.dumps({"sentence": 7 * i, "nats": number}) + "\n" for i, number in enumerate(nats)]
        (out / f"{row}-{seed}.{part}.jsonl").write_text("".join(lines))


def finding(out: Path, words: str = "pretrained weights help, time-agnostic") -> tuple[str, str]:
    """Return what is said of a finding by the bound and by the released arithmetic."""
    (line,) = [line for line in findings(collected(out)) if line["finding"] == words]
    return line["exact"], line["released"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Three seeds that differ by more than the rows do: by the bound 9, 10 and 11 nats, by the other -10."""
    for seed, shift in ((1, 0), (2, 4), (3, 2)):
        record(tmp_path, "pretrained_none_tad", seed, [100 + shift, 200 + shift], [90 + shift, 190 + shift])
        of_scratch = [108 + shift + seed, 208 + shift + seed]
        record(tmp_path, "scratch_none_tad", seed, of_scratch, [80 + shift, 180 + shift])
    return tmp_path


def test_the_script_and_the_tables_have_the_same_rows() -> None:
    script = (ROOT / "runs" / "paper_tables.sh").read_text()
    named = " ".join(re.findall(r'all\+?="([^"]*)"', script)).split()
    assert named == list(ROWS)
    assert {name for _, *names in CLAIMS for name in names} <= set(ROWS)


def test_a_finding_is_judged_by_the_differences_of_equal_seeds(out: Path) -> None:
    """Differences 9, 10 and 11: standard error 1 / sqrt(3). Those of the sentences are equal."""
    assert finding(out) == (
        "as in the paper: lower by 10.00 ± 0.58 nats (17.3 standard errors)", "reversed: higher by 10.00 ± 0.00 nats"
    )  # fmt: skip


def test_every_claim_holds_in_the_paper() -> None:
    reported = [(ROWS[better].ppl, ROWS[worse].ppl) for _, better, worse in CLAIMS if ROWS[better].ppl]
    assert len(reported) == len(CLAIMS) - 1 and all(
        better < worse for better, worse in reported
    )  # one of released code


def test_the_error_of_several_trainings_is_that_of_sentences_and_of_trainings(tmp_path: Path) -> None:
    """Sentences: 1 and 3 more, so a variance of 1. Trainings: 0, 1 and 2 more, so a variance of 1/3."""
    for seed in (1, 2, 3):
        record(tmp_path, "pretrained_none_tad", seed, [100, 300], [100, 300])
        record(tmp_path, "scratch_none_tad", seed, [100 + seed, 302 + seed], [150 + seed, 350 + seed])
    both, trainings = finding(tmp_path)
    assert both == "not distinguishable: lower by 3.00 ± 1.15 nats (2.6 standard errors)"
    assert trainings == "as in the paper: lower by 52.00 ± 0.58 nats (90.1 standard errors)"
    assert difference([[1.0, 3.0], [2.0, 4.0], [3.0, 5.0]]) == pytest.approx((3, (4 / 3) ** 0.5, 1))
    many = [0.62 + 0.1 * (-1) ** i for i in range(500)]
    assert (
        difference([[x - 0.1 for x in many], [x + 0.1 for x in many]])[2] == 1
    )  # two trainings, however many sentences


def test_a_difference_within_its_error_is_not_distinguishable(tmp_path: Path) -> None:
    """Differences 1, 2 and 6: mean 3, standard error 1.53; Student's bound of 2 degrees of freedom is 4.30 errors."""
    for seed, more in ((1, 1), (2, 2), (3, 6)):
        record(tmp_path, "pretrained_none_tad", seed, [100, 200, 300], [100, 200, 300])
        of_scratch = [nats + more for nats in (100, 200, 300)]
        record(tmp_path, "scratch_none_tad", seed, of_scratch, [nats + 1 + more / 6 for nats in (100, 200, 300)])
    bound, released = finding(tmp_path)
    assert bound == "not distinguishable: lower by 3.00 ± 1.53 nats (2.0 standard errors)"
    assert released == "as in the paper: lower by 1.50 ± 0.25 nats (5.9 standard errors)"  # 1 plus a sixth of each


def test_one_training_of_each_is_said_to_be_one(tmp_path: Path) -> None:
    """Sentences of very different lengths, with differences 2, 2 and 3, and -3, 0 and 1: within the error."""
    record(tmp_path, "pretrained_none_tad", 1, [100, 200, 300], [100, 200, 300])
    record(tmp_path, "scratch_none_tad", 1, [102, 202, 303], [97, 200, 301])
    assert finding(tmp_path) == (
        "one training, as in the paper: lower by 2.33 ± 0.33 nats (7.0 standard errors)",
        "one training, not distinguishable: higher by 0.67 ± 1.20 nats (0.6 standard errors)",
    )


def test_no_difference_is_not_distinguishable(tmp_path: Path) -> None:
    for row in ("pretrained_none_tad", "scratch_none_tad"):
        record(tmp_path, row, 1, [100, 101], [100, 101])
    assert finding(tmp_path)[0].startswith("one training, not distinguishable: higher by 0.00 ± 0.00")


def test_rows_that_scored_other_sentences_are_not_compared(tmp_path: Path) -> None:
    record(tmp_path, "pretrained_none_tad", 1, [100, 200, 300], [100, 200, 300])
    record(tmp_path, "scratch_none_tad", 1, [101, 202], [101, 202])
    with pytest.raises(UserError, match="same sentences"):
        findings(collected(tmp_path))


def test_table_2_gives_means_with_their_errors_and_the_papers_figures(out: Path) -> None:
    scratch, pretrained = table_2(collected(out)).splitlines()[2:]
    assert scratch.startswith("| scratch | none | TAD | 162.00 ±") and " 125.15 " in scratch and " 0.339 " in scratch
    assert pretrained.startswith("| pretrained | none | TAD | 152.00 ± 1.15 | 1520.0 ± 11.5 | 1420.0 ± 11.5 | 78.76 |")


@pytest.mark.parametrize("part", ["metrics.json", "released.jsonl"])
def test_an_unfinished_row_is_left_out(out: Path, part: str) -> None:
    (out / f"scratch_none_tad-2.{part}").unlink()
    assert len(collected(out)["scratch_none_tad"]) == 2


def test_table_3_has_the_papers_steps_and_the_limit() -> None:
    report = {"nats_per_sequence": 150.0, "draws_error_nats": 0.1, "ppl_word": 300.0, "forwards": 20.0, "seconds": 5.0}
    lines = table_3({"128": report, "inf": report}).splitlines()
    assert lines[2] == "| 128 | 150.00 ± 0.10 | 300.0 | 63.78 | 20.0 | 5.0 | 7.53 |"
    assert lines[3] == "| inf | 150.00 ± 0.10 | 300.0 |  | 20.0 | 5.0 |  |"


def test_what_cannot_be_printed_is_one_line(out: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "empty").mkdir()
    (out / "scratch_none_tad-2.exact.jsonl").write_text("{")
    for folder, message in ((tmp_path / "empty", "no finished row"), (out, "scratch_none_tad-2.exact.jsonl: not")):
        assert call(paper_tables.main, monkeypatch, "print", folder) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    record(out, "scratch_none_tad", 2, [100], [100])
    record(out, "pretrained_none_tad", 2, [100], [100])
    assert (
        call(paper_tables.main, monkeypatch, "print", out, "--rows", "scratch_none_tad-2", "pretrained_none_tad-2") == 2
    )
    printed = capsys.readouterr()
    assert "one sentence is scored" in printed.err and "| scratch | none | TAD | 100.00 |" in printed.out
    assert [*json.loads((out / "tables.json").read_text())["table_2"]] == ["scratch_none_tad", "pretrained_none_tad"]


def test_both_tables_are_printed_with_what_main_py_found(out: Path, monkeypatch, capsys) -> None:
    """Of all trainings, or of some; ± only with several, and a warning for a training that learned nothing."""
    report = {"nats_per_sequence": 150.0, "draws_error_nats": 0.1, "ppl_word": 300.0, "forwards": 20.0, "seconds": 5.0}
    (out / "steps.json").write_text(json.dumps({"settings": {}, "steps": {"128": report}}))
    (out / "scratch_none_tad-2").mkdir()
    (out / "scratch_none_tad-2" / "log.jsonl").write_text('{"kind": "note", "verdict": "nothing was learned"}\n')
    for rows, warned in (([], True), (["--rows", "scratch_none_tad-1", "pretrained_none_tad-1"], False)):
        assert call(paper_tables.main, monkeypatch, "print", out, *rows) == 0
        printed = capsys.readouterr().out
        assert ("warning: scratch_none_tad-2: nothing was learned" in printed) == warned
        assert (NOTE_TRAININGS in printed) == warned and ("one training, as in the paper" in printed) != warned
        assert "| 128 | 150.00 ± 0.10 | 300.0 | 63.78 |" in printed
    assert json.loads((out / "tables.json").read_text())["table_3"] == {"128": report}


def test_the_released_spindle_is_no_finding_of_the_paper(tmp_path: Path) -> None:
    record(tmp_path, "pretrained_none_tad", 1, [100, 200, 300], [100, 200, 300])
    record(tmp_path, "pretrained_released_tad", 1, [98, 198, 297], [103, 203, 304])
    bound, released = finding(tmp_path, "the released code's spindle helps")
    assert bound.startswith("one training, held: lower by 2.33") and released.startswith("one training, reversed: ")


def test_the_page_shows_the_recorded_tables() -> None:
    recorded = json.loads((ROOT / "benchmarks" / "results" / "paper_tables.json").read_text())
    page = (ROOT / "docs" / "paper.md").read_text()
    for table in (table_2(recorded["table_2"]), table_3(recorded["table_3"]), table_of_findings(recorded["findings"])):
        assert table in page
