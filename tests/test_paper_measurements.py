"""benchmarks/paper_measurements.py: samples with their cost, and the bound at the numbers of steps of Table 3."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from benchmarks import paper_measurements, paper_tables
from tests.conftest import SENTENCES, call
from tests.test_main import train


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_measurements, "STEPS", {2: (1.0, 1.0), 16: (1.0, 1.0)})
    monkeypatch.setattr(paper_measurements, "PAPER_STEPS", 32)


def arguments(checkpoint: Path, tmp_path: Path) -> tuple[list, list]:
    """Return arguments of both commands, and more of `steps`."""
    (tmp_path / "held.txt").write_text("\n".join(SENTENCES[::9]) + "\n")
    given = ["--checkpoint", checkpoint, "--num_samples", "6", "--precision", "fp32", "--threads", "1"]
    return given, ["--data", tmp_path / "held.txt", "--limit", "8", "--cache_dir", tmp_path / "cache"]


def test_samples_are_written_beside_their_cost(monkeypatch, few, trained: Path, tmp_path: Path, capsys) -> None:
    given, _ = arguments(trained, tmp_path)
    assert call(paper_tables.main, monkeypatch, "samples", *given, "--output", tmp_path / "s.txt") == 0
    texts, cost = (tmp_path / "s.txt").read_text().splitlines(), json.loads((tmp_path / "s.json").read_text())
    assert len(texts) == 6 and all(texts) and cost["samples"] == 6
    assert 1 <= cost["forwards"] <= 32 and cost["seconds"] > 0
    (tmp_path / "t.json").mkdir()
    for name, message in (("s.json", "must end in .txt"), ("t.txt", "t.json: a folder")):
        assert call(paper_tables.main, monkeypatch, "samples", *given, "--output", tmp_path / name) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "t.txt").exists()


def test_the_bound_falls_with_the_steps_and_goes_on_where_it_was_stopped(
    monkeypatch, few, trained: Path, tmp_path: Path
) -> None:
    given, scored = arguments(trained, tmp_path)
    command, file = ["steps", *given, *scored, "--output", tmp_path / "steps.json"], tmp_path / "steps.json"
    assert call(paper_tables.main, monkeypatch, *command) == 0
    found = json.loads(file.read_text())["steps"]
    assert list(found) == ["2", "16", "64"]  # a spindle has no limit, and this one is trained at T = 64
    assert found["2"]["nats_per_sequence"] > found["16"]["nats_per_sequence"] > 0 and found["2"]["forwards"] <= 2
    stopped = json.loads(file.read_text())
    stopped["steps"] = {"2": "kept"}  # as if stopped after the first
    file.write_text(json.dumps(stopped))
    calls = iter([True, False])
    monkeypatch.setattr(paper_measurements, "draw", lambda *_: ([], {"seconds": 0.0}) if next(calls) else 1 / 0)
    with pytest.raises(ZeroDivisionError):  # stopped again, at the third
        call(paper_tables.main, monkeypatch, *command)
    again = json.loads(file.read_text())["steps"]
    assert again["2"] == "kept" and list(again) == ["2", "16"]
    assert again["16"]["nats_per_sequence"] == found["16"]["nats_per_sequence"]


def test_figures_of_other_weights_or_another_text_are_neither_mixed_nor_shown(
    monkeypatch, few, trained: Path, tmp_path: Path, capsys
) -> None:
    """Files of the same names with other content; the old figures stay."""
    mine = tmp_path / "mine"
    shutil.copytree(trained / "checkpoint", mine)
    given, scored = arguments(mine, tmp_path)
    command, file = ["steps", *given, *scored, "--output", tmp_path / "steps.json"], tmp_path / "steps.json"
    assert call(paper_tables.main, monkeypatch, *command) == 0
    kept = file.read_bytes()
    assert call(paper_tables.main, monkeypatch, *command) == 0 and "measured before" in capsys.readouterr().out
    (tmp_path / "held.txt").write_text("other text.\n" * 9)
    assert call(paper_tables.main, monkeypatch, *command) == 2
    arguments(mine, tmp_path)  # the text as before
    weights = load_file(mine / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 0.01}, mine / "model.safetensors", {"format": "pt"})
    assert call(paper_tables.main, monkeypatch, *command) == 2 and file.read_bytes() == kept
    for line in capsys.readouterr().err.splitlines():
        assert "figures of other weights, another text or other settings; remove it" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        (["--spindle", "none", "--num_steps", 16], ["2", "16", "inf"]),
        (["--time_conditioning", "layerwise", "--num_steps", 8], ["2", "8"]),
        (["--process", "mdlm"], ["2", "16", "inf"]),
    ],
)
def test_every_text_model_has_a_table_3(monkeypatch, few, corpus: Path, tmp_path: Path, flags: list, steps) -> None:
    """Fewer steps than the table has, a limit, and a network that takes the time as input."""
    code, folder = train(monkeypatch, corpus, tmp_path, "--max_steps", 1, *flags)
    given, scored = arguments(folder / "checkpoint-last", tmp_path)
    assert code == 0
    assert call(paper_tables.main, monkeypatch, "steps", *given, *scored, "--output", tmp_path / "steps.json") == 0
    assert list(json.loads((tmp_path / "steps.json").read_text())["steps"]) == steps
