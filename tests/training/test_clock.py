"""clock.py: steps and parts of an evaluation that fit before the time limit."""

import pytest

from training.clock import Deadline


def test_there_must_be_time_for_two_more_of_the_longest_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [97.0]
    monkeypatch.setattr("training.clock.time.monotonic", lambda: now[0])
    monkeypatch.setattr("training.clock.PROCESS_BEGAN", 0.0)
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    deadline, never = Deadline(2.0), Deadline(0)
    for then, near in (
        (100, False),
        (105, False),
        (113, True),
        (113.5, True),
    ):  # steps of 3, 5, 8 s; 20, 15, 7 s are left
        now[0] = then
        assert deadline.is_near() == near and not never.is_near()


def test_work_in_parts_is_given_up_when_the_next_might_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("training.clock.time.monotonic", lambda: now[0])
    monkeypatch.setattr("training.clock.time.time", lambda: 1000 + now[0])
    monkeypatch.setattr("training.clock.PROCESS_BEGAN", 0.0)
    fits_next, never = Deadline(1.0).part_check(), Deadline(0).part_check()
    for then, fits in ((0, True), (10, True), (30, True), (31, False)):  # two parts of the longest, 20 s, must fit
        now[0] = then
        assert fits_next() == (fits and then < 30) and never()
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(1000 + 300 + 40))  # the last 300 s are reserved
    now[0] = 0.0
    assert Deadline(1.0).left() == 40
    monkeypatch.setenv("SLURM_JOB_END_TIME", "tomorrow")
    assert Deadline(1.0).left() == 60
