"""tracking.py: the JSONL log is complete, fitlog works, and a failing tracker never stops a run."""

import json
import sys
import types
from pathlib import Path

import pytest

from training.tracking import Tracker

UNIGRAM = {"unigram_bits_per_token": 9.0}


def fill(tracker: Tracker) -> None:
    for step in (1, 2):
        tracker.train(step, {"bits_per_token": 8.0 / step, "learning_rate": 0.1})
    tracker.valid(2, {"bits_per_token": 5.0, **UNIGRAM}, best=True)
    tracker.close()


def test_the_log_holds_every_figure_and_the_curve_is_a_png(tmp_path: Path) -> None:
    fill(Tracker(tmp_path, {"seed": 1}, trackers=("fitlog",)))
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["kind"] for r in records] == ["settings", "train", "train", "valid"]
    assert records[0]["seed"] == 1 and records[2]["bits_per_token"] == 4.0 and records[3]["step"] == 2
    assert all("seconds" in r for r in records)
    assert (tmp_path / "curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_fitlog_records_settings_losses_and_bounds(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fill(Tracker(tmp_path / "run", {"seed": 1, "schedule": "mutual"}, trackers=("fitlog",)))
    (folder,) = (tmp_path / "fitlog").iterdir()
    assert '"seed": "1"' in (folder / "hyper.log").read_text() or "seed" in (folder / "hyper.log").read_text()
    assert "8.0" in (folder / "loss.log").read_text() and "Step:2" in (folder / "loss.log").read_text()
    assert "5.0" in (folder / "metric.log").read_text() and "5.0" in (folder / "best_metric.log").read_text()
    assert "warning" not in capsys.readouterr().err


class Broken(types.ModuleType):
    """Stand-in for fitlog in which one function fails."""

    def __init__(self, failing: str) -> None:
        super().__init__("fitlog")
        self.failing = failing

    def __getattr__(self, name: str):
        def method(*args: object, **kwargs: object) -> None:
            if name == self.failing:
                raise AttributeError("module 'numpy' has no attribute 'str'")

        return method


@pytest.mark.parametrize(
    "failing", ["set_log_dir", "add_hyper", "add_loss", "add_metric", "add_best_metric", "add_other", "finish"]
)
def test_a_failing_fitlog_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, failing: str
) -> None:
    monkeypatch.setitem(sys.modules, "fitlog", Broken(failing))
    fill(Tracker(tmp_path / "run", {"seed": 1}, trackers=("fitlog",)))
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 4
    stderr = capsys.readouterr().err
    assert stderr.count("warning: ") == 1 and "no attribute 'str'" in stderr


def test_missing_fitlog_and_matplotlib_cost_one_warning_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "fitlog", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    fill(Tracker(tmp_path / "run", {"seed": 1}, trackers=("fitlog",)))
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 4
    assert capsys.readouterr().err.count("warning: ") == 2


def test_an_inactive_tracker_writes_nothing(tmp_path: Path) -> None:
    fill(Tracker(tmp_path / "x", {"seed": 1}, active=False))
    assert not (tmp_path / "x").exists()
