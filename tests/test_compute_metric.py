"""compute_metric.py: the report as a table."""

from pathlib import Path

import compute_metric
from tests.conftest import call, write_jsonl
from tests.evaluation.test_metric_report import RECORDS


def test_the_text_report_is_a_table_with_standard_errors(monkeypatch, tmp_path: Path, capsys) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", RECORDS)
    assert call(compute_metric.main, monkeypatch, "--predictions", path, "--threads", 1) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "±" in lines["bleu"] and lines["num_sources"].split() == ["num_sources", "3"] and "bleu_se" not in lines


def test_large_values_are_printed_with_an_exponent() -> None:
    report = {
        "gen_ppl": 3.2e12,
        "gen_ppl_se": 1e7,
        "num_references": 12345678,
        "bleu": 0.5,
        "bleu_se": None,
        "notes": [],
    }
    assert [" ".join(line.split()) for line in compute_metric.table(report).splitlines()] == [
        "gen_ppl 3.200e+12 ± 1.000e+07", "num_references 12345678", "bleu 0.5000",
    ]  # fmt: skip
