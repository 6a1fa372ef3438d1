"""clock.py: steps and parts of an evaluation that fit before the time limit."""

import pytest

from training.clock import Deadline


def test_the_deadline_is_near_when_two_of_the_longest_step_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [97.0]
    monkeypatch.setattr("training.clock.time.monotonic", lambda: now[0])
    monkeypatch.setattr("training.clock.PROCESS_BEGAN", 0.0)
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    deadline, never = Deadline(2.0), Deadline(0)
    # steps of 3, 5, 8 s; 20, 15, 7 s are left
    for moment, near in ((100, False), (105, False), (113, True), (113.5, True)):
        now[0] = moment
        assert deadline.is_near() == near and not never.is_near()


def test_an_evaluation_stops_before_a_part_that_might_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("training.clock.time.monotonic", lambda: now[0])
    monkeypatch.setattr("training.clock.time.time", lambda: 1000 + now[0])
    monkeypatch.setattr("training.clock.PROCESS_BEGAN", 0.0)
    fits_next, never = Deadline(1.0).part_check(), Deadline(0).part_check()
    for moment, fits in ((0, True), (10, True), (30, True), (31, False)):  # two parts of the longest, 20 s, must fit
        now[0] = moment
        assert fits_next() == (fits and moment < 30) and never()
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(1000 + 300 + 40))  # the last 300 s are reserved
    now[0] = 0.0
    assert Deadline(1.0).left() == 40
    monkeypatch.setenv("SLURM_JOB_END_TIME", "tomorrow")
    assert Deadline(1.0).left() == 60
