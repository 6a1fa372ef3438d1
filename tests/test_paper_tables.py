"""benchmarks/paper_tables.py: the rows of runs/paper_tables.sh, the tables and the claims from recorded reports."""

import json
import re
from pathlib import Path
from statistics import mean

import pytest

from benchmarks import paper_tables
from benchmarks.paper_tables import CLAIMS, ROWS, claims, collected, difference, table_2, table_3
from tests.conftest import ROOT, SENTENCES
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
    (line,) = [line for line in claims(collected(out)).splitlines() if words in line]
    return tuple(cell.strip() for cell in line.split("|")[2:4])


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
        claims(collected(tmp_path))


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
    found = json.loads((tmp_path / "steps.json").read_text())["steps"]
    assert list(found) == ["2", "16", "64"]  # a spindle has no limit, and this one is trained at T = 64
    assert found["2"]["nats_per_sequence"] > found["16"]["nats_per_sequence"] > 0 and found["2"]["forwards"] <= 2
    stopped = json.loads((tmp_path / "steps.json").read_text())
    stopped["steps"] = {"2": "kept"}  # as if stopped after the first
    (tmp_path / "steps.json").write_text(json.dumps(stopped))
    monkeypatch.setattr(paper_tables, "draw", lambda *_: ([], {"seconds": 0.0}) if next(calls) else 1 / 0)
    calls = iter([True, False])
    with pytest.raises(ZeroDivisionError):  # stopped again, at the third
        paper_tables.main()
    again = json.loads((tmp_path / "steps.json").read_text())["steps"]
    assert again["2"] == "kept" and list(again) == ["2", "16"]
    assert again["16"]["nats_per_sequence"] == found["16"]["nats_per_sequence"]


def test_steps_go_on_where_they_were_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    """Finished numbers of steps are not measured again; figures of another text are refused and kept."""
    settings = {"limit": 8, "num_samples": 6, "length": 0, "precision": "fp32", "checkpoint": "b/c", "data": "t"}
    kept = {"settings": settings, "steps": {"2": {"ppl_word": 1.0}, "64": {"ppl_word": 2.0}}}
    file = tmp_path / "steps.json"
    file.write_text(json.dumps(kept))
    monkeypatch.setattr(paper_tables, "STEPS", {2: (1.0, 1.0)})
    given = ["x", "steps", "--checkpoint", "a/b/c", "--limit", "8", "--num_samples", "6", "--output", str(file)]
    given += ["--precision", "fp32", "--threads", "1", "--data"]
    monkeypatch.setattr("sys.argv", [*given, "../t"])
    paper_tables.main()  # there is no checkpoint c: nothing is loaded
    monkeypatch.setattr("sys.argv", [*given, "other"])
    with pytest.raises(SystemExit, match="2"):
        paper_tables.main()
    assert "other settings" in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert json.loads(file.read_text()) == kept
