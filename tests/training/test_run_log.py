"""run_log.py: a full disk costs lines at most, and a log is cut at a step without a gap."""

import errno
import json
from pathlib import Path

import pytest

from training.run_log import cut_log
from training.tracking import Tracker


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
    tracker = Tracker(tmp_path / "run", {"seed": 1})
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
