"""tensorboard_record.py: a run's curves, settings and samples, read back with TensorBoard's own reader."""

import os
import shutil
from pathlib import Path

import pytest

from tests.training.test_fitlog_record import REPORT
from training.tensorboard_record import command
from training.tracking import Tracker

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip("tensorboard")


def fill(output: Path, steps: range) -> Tracker:
    tracker = Tracker(output, {"seed": 1, "note": "a\nb"}, trackers=("tensorboard",))
    for step in steps:
        tracker.train(step, {"bits_per_token": 10.0 - step, "learning_rate": 0.1, "tokens_per_second": None})
        tracker.valid(step, {**REPORT, "bits_per_token": 9.0 - step}, best=True)
        tracker.samples(step, [f"sample *{step}*", "<b>two\nlines</b>"])
    return tracker


def read(output: Path):  # noqa: ANN201 (TensorBoard's reader)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    return events


def text(events, tag: str) -> list[str]:  # noqa: ANN001
    return [event.tensor_proto.string_val[0].decode() for event in events.Tensors(f"{tag}/text_summary")]


def test_tensorboard_shows_loss_bound_settings_and_samples(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fill(tmp_path / "run", range(1, 4)).close()
    events = read(tmp_path / "run")
    assert [(s.step, s.value) for s in events.Scalars("train/bits_per_token")] == [(1, 9.0), (2, 8.0), (3, 7.0)]
    assert [s.value for s in events.Scalars("valid/ppl_word")] == [40.0] * 3
    assert "train/tokens_per_second" not in events.Tags()["scalars"]
    assert "| seed | 1 |\n| note | a b |" in text(events, "settings")[0]
    assert text(events, "samples")[2] == "    sample *3*\n\n    <b>two lines</b>"
    assert command(tmp_path / "run") == f"tensorboard --logdir {tmp_path}" and command(tmp_path) == ""
    assert "warning" not in capsys.readouterr().err


def test_a_resumed_run_has_every_step_once_at_its_time(tmp_path: Path) -> None:
    fill(tmp_path / "run", range(1, 4)).records["tensorboard"].close()  # killed
    log = tmp_path / "run" / "log.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("".join(line + "\n" for line in lines[:-3]))  # up to step 2
    fill(tmp_path / "run", range(3, 5)).close()
    events = read(tmp_path / "run")
    found = events.Scalars("train/bits_per_token")
    assert [s.step for s in found] == [1, 2, 3, 4] and len(text(events, "samples")) == 4
    assert [s.wall_time for s in found] == sorted(s.wall_time for s in found)


def test_a_removed_folder_costs_one_warning_and_no_traceback(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    tracker = fill(tmp_path / "run", range(1, 2))
    shutil.rmtree(tmp_path / "run" / "tensorboard")
    for step in range(2, 6):
        tracker.train(step, {"bits_per_token": 1.0})
        tracker.valid(step, {**REPORT, "bits_per_token": 1.0}, best=False)
    tracker.close()
    error = capfd.readouterr().err
    assert error.count("warning: tensorboard: ") == 1 and error.count("\n") == 1
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 4 + 8
