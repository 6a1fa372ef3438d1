"""benchmarks/pretrained_table.py: means over trainings with their standard errors."""

import json
from pathlib import Path

import pytest

from benchmarks import pretrained_table
from tests.conftest import call


def record(out: Path, name: str, step: int, nats: float, ppl: float | None) -> None:
    """Write the report and the steps of one training."""
    (out / name / "checkpoint-last").mkdir(parents=True)
    (out / name / "checkpoint-last" / "process.json").write_text(json.dumps({"facts": {"step": step}}))
    report = {"nats_per_sequence": nats, "bits_per_token": nats / 20, "ppl_word": ppl}
    (out / f"{name}.json").write_text(json.dumps(report))


def test_a_network_has_its_mean_and_the_standard_error_over_its_trainings(tmp_path: Path) -> None:
    for seed, nats in ((1, 100.0), (2, 104.0), (3, 102.0)):  # deviation 2, error of the mean 2 / sqrt(3)
        record(tmp_path, f"minilm_scratch-{seed}", 1000 * seed, nats, 10 * nats)
    record(tmp_path, "small-1", 1500, 90.0, None)  # no perplexity per word, as for Chinese
    names = ["small-1", "minilm_scratch-1", "minilm_scratch-2", "minilm_scratch-3"]
    small, scratch = pretrained_table.table(tmp_path, names).splitlines()[2:]
    assert small == "| small | 1 | 1,500 | 90.00 | 4.500 | n/a |"
    assert scratch == "| minilm_scratch | 3 | 2,000 | 102.00 ± 1.15 | 5.100 ± 0.058 | 1020.0 ± 11.5 |"


def test_a_training_that_learned_nothing_is_named_below_the_table(tmp_path: Path, monkeypatch, capsys) -> None:
    for name in ("small-1", "small-2"):
        record(tmp_path, name, 9, 90.0, 900.0)
        (tmp_path / name / "log.jsonl").write_text('{"kind": "note", "steps": 9}\n')
    (tmp_path / "small-2" / "log.jsonl").write_text('{"kind": "note", "verdict": "the training diverged"}\n')
    assert call(pretrained_table.main, monkeypatch, tmp_path, "small-1", "small-2") == 0
    assert capsys.readouterr().out.splitlines()[3:] == ["warning: small-2: the training diverged"]


@pytest.mark.parametrize("content", [None, "{", "[]", '{"ppl_word": 3}'])
def test_a_missing_or_damaged_report_is_one_line(tmp_path: Path, monkeypatch, capsys, content: str | None) -> None:
    if content is not None:
        (tmp_path / "small-1.json").write_text(content)
    assert call(pretrained_table.main, monkeypatch, tmp_path, "small-1") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/small-1.json: " in line
