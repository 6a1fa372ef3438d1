"""benchmarks/paper_tables.py: the rows of runs/paper_tables.sh, the tables and the claims from recorded reports."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import paper_tables
from benchmarks.paper_tables import CLAIMS, ROWS, claims, collected, table_2, table_3
from tests.conftest import ROOT, SENTENCES


def record(out: Path, row: str, seed: int, nats: float, released: float, sentences: list[float] = ()) -> None:
    """Write the reports of one training; `sentences` are the nats of each by the bound."""
    reports = {
        "exact": {"nats_per_sequence": nats, "ppl_word": 10 * nats},
        "released": {"nats_per_sequence": released, "ppl_word": 10 * released},
        "metrics": {"bleu_4": 0.25, "self_bleu_4": 0.5},
        "samples": {"forwards": 26.0, "seconds": 60.0, "samples": 1000},
    }
    for part, report in reports.items():
        (out / f"{row}-{seed}.{part}.json").write_text(json.dumps(report))
    if sentences:
        lines = [json.dumps({"sentence": i, "nats": each}) + "\n" for i, each in enumerate(sentences)]
        (out / f"{row}-{seed}.exact.jsonl").write_text("".join(lines))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for seed, shift in ((1, 0.0), (2, 4.0), (3, 2.0)):  # the seeds differ by more than the rows
        record(tmp_path, "pretrained_none_tad", seed, 100 + shift, 99 + shift)
        record(tmp_path, "scratch_none_tad", seed, 110 + shift + 0.1 * seed, 90 + shift)
    return tmp_path


def test_the_script_and_the_tables_have_the_same_rows() -> None:
    script = (ROOT / "runs" / "paper_tables.sh").read_text()
    named = " ".join(re.findall(r'all\+?="([^"]*)"', script)).split()
    assert named == list(ROWS)
    assert {name for _, *names in CLAIMS for name in names} <= set(ROWS)


def test_a_claim_is_judged_by_the_differences_of_equal_seeds(out: Path) -> None:
    (line,) = [line for line in claims(collected(out)).splitlines() if "pretrained weights help, time-agnostic" in line]
    _, _, exact, released, paper, _ = (cell.strip() for cell in line.split("|"))
    assert exact == "yes, by 10.20 nats (± 0.06 over trainings, 176.7 errors)"  # differences 10.1, 10.2, 10.3
    assert released == "no, by -9.00 nats (± 0.00 over trainings)" and paper == "78.76 < 125.15"


def test_every_claim_holds_in_the_paper() -> None:
    reported = [(ROWS[better].ppl, ROWS[worse].ppl) for _, better, worse in CLAIMS if ROWS[better].ppl]
    assert len(reported) == len(CLAIMS) - 1 and all(
        better < worse for better, worse in reported
    )  # one of released code


def test_a_difference_within_its_error_is_not_distinguishable(tmp_path: Path) -> None:
    """Differences 1, 2, 6: mean 3, standard error 1.53; Student's bound of 2 degrees of freedom is 4.30 errors."""
    for seed, difference in ((1, 1), (2, 2), (3, 6)):
        record(tmp_path, "pretrained_none_tad", seed, 100, 100)
        record(tmp_path, "scratch_none_tad", seed, 100 + difference, 101 + difference / 6)
    (line,) = [line for line in claims(collected(tmp_path)).splitlines() if "weights help" in line]
    assert "| not distinguishable, by 3.00 nats (± 1.53 over trainings, 2.0 errors) |" in line
    assert "| yes, by 1.50 nats (± 0.25 over trainings, 5.9 errors) |" in line  # 1 plus a sixth of each


def test_the_error_over_sentences_is_that_of_their_paired_differences(tmp_path: Path) -> None:
    """Sentences of very different lengths, whose differences are 1, 2 and 3: standard error 1 / sqrt(3)."""
    record(tmp_path, "pretrained_none_tad", 1, 200.0, 90, [100, 200, 300])
    record(tmp_path, "scratch_none_tad", 1, 202.0, 90, [101, 202, 303])
    (line,) = [line for line in claims(collected(tmp_path)).splitlines() if "weights help" in line]
    assert "| yes, by 2.00 nats (± 0.58 over sentences, 3.5 errors; one training each) |" in line
    record(tmp_path, "pretrained_none_tad", 2, 200.0, 90, [100, 200, 300])
    record(tmp_path, "scratch_none_tad", 2, 206.0, 90, [105, 206, 307])  # the mean differences are 3, 4 and 5
    (line,) = [line for line in claims(collected(tmp_path)).splitlines() if "weights help" in line]
    assert "by 4.00 nats (± 0.58 over sentences, 6.9 errors; ± 2.00 over trainings, 2.0 errors)" in line
    assert "| not distinguishable," in line  # two trainings; a difference of zero is 12.7 errors away at 95 %


def test_no_difference_is_no_negative_zero(tmp_path: Path) -> None:
    record(tmp_path, "pretrained_none_tad", 1, 100.001, 90)
    record(tmp_path, "scratch_none_tad", 1, 100.0, 90)
    assert "no, by 0.00 nats (one training each)" in claims(collected(tmp_path))


def test_one_training_has_no_error(tmp_path: Path) -> None:
    record(tmp_path, "pretrained_paper_tad", 1, 100.0, 99.0)
    record(tmp_path, "pretrained_none_tad", 1, 101.0, 99.0)
    assert "yes, by 1.00 nats (one training each)" in claims(collected(tmp_path))


def test_table_2_gives_means_with_their_errors_and_the_papers_figures(out: Path) -> None:
    scratch, pretrained = table_2(collected(out)).splitlines()[2:]
    assert scratch.startswith("| scratch | none | TAD | 112.20 ±") and " 125.15 " in scratch and " 0.339 " in scratch
    assert pretrained.startswith("| pretrained | none | TAD | 102.00 ± 1.15 | 1020.0 ± 11.5 | 1010.0 ± 11.5 | 78.76 |")


def test_an_unfinished_row_is_left_out(out: Path) -> None:
    (out / "scratch_none_tad-2.metrics.json").unlink()
    assert len(collected(out)["scratch_none_tad"]) == 2


def test_table_3_has_the_papers_steps_and_the_limit() -> None:
    report = {"nats_per_sequence": 150.0, "draws_error_nats": 0.1, "ppl_word": 300.0, "forwards": 20.0, "seconds": 5.0}
    lines = table_3({"128": report, "inf": report}).splitlines()
    assert lines[2] == "| 128 | 150.00 ± 0.10 | 300.0 | 63.78 | 20.0 | 5.0 | 7.53 |"
    assert lines[3] == "| inf | 150.00 ± 0.10 | 300.0 |  | 20.0 | 5.0 |  |"


def test_nothing_to_print_is_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["paper_tables.py", "print", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        paper_tables.main()
    assert capsys.readouterr().err.count("\n") == 1


def test_samples_and_steps_are_measured(monkeypatch: pytest.MonkeyPatch, trained: Path, tmp_path: Path) -> None:
    """Samples with their cost; the bound at every number of steps falls, and the last one is at the model's T."""
    (tmp_path / "held.txt").write_text("\n".join(SENTENCES[::9]) + "\n")
    given = ["--checkpoint", trained, "--num_samples", "6", "--precision", "fp32", "--threads", "1"]
    scored = ["--data", tmp_path / "held.txt", "--limit", "8", "--cache_dir", tmp_path / "cache"]
    for part, file, more in (("samples", "s.txt", []), ("steps", "steps.json", scored)):
        monkeypatch.setattr(paper_tables, "STEPS", {2: (1.0, 1.0), 16: (1.0, 1.0)})
        monkeypatch.setattr(paper_tables, "PAPER_STEPS", 32)
        monkeypatch.setattr("sys.argv", ["x", part, *map(str, [*given, "--output", tmp_path / file, *more])])
        paper_tables.main()
    texts, cost = (tmp_path / "s.txt").read_text().splitlines(), json.loads((tmp_path / "s.json").read_text())
    assert len(texts) == 6 and all(texts) and cost["samples"] == 6
    assert 1 <= cost["forwards"] <= 32 and cost["seconds"] > 0
    found = json.loads((tmp_path / "steps.json").read_text())
    assert list(found) == ["2", "16", "64"]  # a spindle has no limit, and this one is trained at T = 64
    assert found["2"]["nats_per_sequence"] > found["16"]["nats_per_sequence"] > 0 and found["2"]["forwards"] <= 2
