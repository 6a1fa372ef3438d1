"""tracking.py: the JSONL log is complete, fitlog works, and a failing tracker never stops a run."""

import errno
import json
import sys
import types
from pathlib import Path

import pytest

from training.tracking import Tracker, _without_short_end, cut_log

UNIGRAM = {"unigram_bits_per_token": 9.0}


def fill(tracker: Tracker) -> None:
    for step in (1, 2):
        tracker.train(step, {"bits_per_token": 8.0 / step, "learning_rate": 0.1})
    tracker.valid(2, {"bits_per_token": 5.0, **UNIGRAM}, best=True)
    tracker.close()


def test_the_log_holds_every_figure_and_the_curve_is_a_png(tmp_path: Path) -> None:
    fill(Tracker(tmp_path, {"seed": 1}, use_fitlog=False))
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["kind"] for r in records] == ["settings", "train", "train", "valid"]
    assert records[0]["seed"] == 1 and records[2]["bits_per_token"] == 4.0 and records[3]["step"] == 2
    assert all("seconds" in r for r in records)
    assert (tmp_path / "curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_fitlog_records_settings_losses_and_bounds(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fill(Tracker(tmp_path / "run", {"seed": 1, "schedule": "mutual"}))
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
    fill(Tracker(tmp_path / "run", {"seed": 1}))
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 4
    stderr = capsys.readouterr().err
    assert stderr.count("warning: ") == 1 and "no attribute 'str'" in stderr


def test_missing_fitlog_and_matplotlib_cost_one_warning_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "fitlog", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    fill(Tracker(tmp_path / "run", {"seed": 1}))
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 4
    assert capsys.readouterr().err.count("warning: ") == 2


@pytest.mark.filterwarnings("error")
def test_a_diverged_run_has_a_curve(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, {"seed": 1}, use_fitlog=False)
    for step, bits in enumerate((9.0, None, 20.0, 1e300), 1):
        tracker.train(step, {"bits_per_token": bits})
    tracker.valid(4, {"bits_per_token": 1e300, **UNIGRAM}, best=True)
    tracker.close()
    assert (tmp_path / "curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_an_inactive_tracker_writes_nothing(tmp_path: Path) -> None:
    fill(Tracker(tmp_path / "x", {"seed": 1}, active=False))
    assert not (tmp_path / "x").exists()


class Full:
    """File on a disk with limited room, in bytes."""

    def __init__(self, room: int) -> None:
        self.room, self.content = room, b""

    def write(self, content: bytes) -> int:
        part = content[: self.room - len(self.content)]
        if not part:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.content += part
        return len(part)

    def close(self) -> None:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("room_again", [False, True])
def test_a_full_disk_costs_one_warning_that_names_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture, room_again: bool
) -> None:
    tracker = Tracker(tmp_path / "run", {"seed": 1}, use_fitlog=False)
    tracker.log.file.close()
    tracker.log.file = full = Full(100)
    for step in range(1, 6):
        tracker.train(step, {"bits_per_token": 8.0 / step})
    full.room += 10**6 * room_again
    tracker.train(6, {"bits_per_token": 1.0})
    tracker.close(draw=False)
    stderr, written = capsys.readouterr().err, full.content.count(b"\n")
    assert f"warning: {tmp_path / 'run' / 'log.jsonl'}: the log cannot be written (No space left on device)" in stderr
    if room_again:
        assert stderr.count("\n") == 1
        assert [json.loads(line)["step"] for line in full.content.splitlines()] == [1, 2, 3, 4, 5, 6]
    else:
        assert stderr.count("\n") == 2 and f"{6 - written} lines of the log are lost" in stderr


def test_a_log_that_cannot_be_rewritten_is_named_in_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("utils.files.os.fsync", full)
    with pytest.raises(OSError, match="log.jsonl"):
        cut_log(tmp_path / "log.jsonl", 1)
    assert not list(tmp_path.iterdir())


def test_a_last_point_of_few_steps_is_not_plotted() -> None:
    def points(*steps: int) -> list[dict]:
        return [{"step": step} for step in steps]

    assert _without_short_end(points(20, 40, 60, 61)) == points(20, 40, 60)
    assert _without_short_end(points(20, 40, 60, 75)) == points(20, 40, 60, 75)
    assert _without_short_end(points(1, 2)) == points(1, 2)
