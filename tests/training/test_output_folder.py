"""output_folder.py: the lock, and the removal of earlier results. Overlapping runs: test_overlap.py."""

from pathlib import Path

import pytest

from training.arguments import TrainArgs
from training.output_folder import OUTPUTS, claim, exclusive_access
from utils.errors import UserError


def test_one_process_at_a_time_holds_an_output_folder(tmp_path: Path) -> None:
    args = TrainArgs(str(tmp_path / "run"))
    with (
        exclusive_access(args),
        pytest.raises(UserError, match="another process is training into this folder"),
        exclusive_access(args),
    ):
        pass
    assert not (tmp_path / "run").exists()  # no run began there
    with exclusive_access(args):
        (tmp_path / "run" / "run.json").write_text("{}")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.json", "run.lock"}


def test_an_existing_empty_folder_stays_and_its_lock_file_goes(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    with exclusive_access(TrainArgs(str(tmp_path / "notes"))):
        pass
    assert not list((tmp_path / "notes").iterdir())


def test_a_new_run_removes_earlier_results_and_nothing_else(tmp_path: Path) -> None:
    for name in (*OUTPUTS, "mine.txt", ".log.jsonl.abcd1234", ".mine.abcd1234"):
        (tmp_path / name).write_text("")
    claim(tmp_path, {"seed": 1}, 0)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", ".mine.abcd1234", "run.json", "state"}
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "log.jsonl").write_text('{"kind": "train", "step": 3}\n{"kind": "train", "step": 9}\n')
    claim(tmp_path, {"seed": 1}, 5)
    assert (tmp_path / "checkpoint").is_dir()
    assert (tmp_path / "log.jsonl").read_text() == '{"kind": "train", "step": 3}\n'
