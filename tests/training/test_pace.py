"""pace.py: learning rates over a whole training, resumed or not, by steps or by time; the cost of evaluations."""

import math

import pytest

from training.arguments import OptimArgs, TrainArgs
from training.pace import MAX_EVALUATION_SHARE, MIN_SEQUENCES, Pace, WarmUp, evaluation_plan

SCHEDULES = ["constant", "cosine", "linear"]


def rates(schedule: str, total: int, warmup: int = 0, minutes: float = 0.0, speed: float = 1.0, stop: int = 0) -> list:
    """Return the learning rates, relative to their peak, of all steps within the time; a step takes `speed` seconds.

    After step `stop` the run is resumed. With -stop the state is an old one, without the end of the warm-up.
    """
    optim, warm_up = OptimArgs(lr_schedule=schedule, learning_rate=2.0, warmup_steps=warmup), WarmUp()
    relative = []
    for step in range(1, total + 1):
        if step - 1 == abs(stop):
            warm_up = WarmUp(warm_up.step, warm_up.seconds) if stop > 0 else WarmUp()
        pace = Pace.of(TrainArgs("-", max_minutes=minutes), optim, total)
        relative.append(pace.rate(optim, step, speed * (step - 1), warm_up) / 2)
        if pace.progress(step, speed * (step - 1)) == 1:
            break
    return relative


@pytest.mark.parametrize(("minutes", "left"), [(0.0, 120.0), (3.0, 120.0), (2.0, 60.0)])
def test_the_time_left_is_that_of_the_nearer_limit(minutes: float, left: float) -> None:
    """After 30 steps of 90, two seconds each."""
    pace = Pace.of(TrainArgs("-", max_minutes=minutes), OptimArgs(), 90)
    assert pace.seconds_left(30, 60.0, 0, 0.0) == pytest.approx(left)


def test_the_time_left_of_a_resumed_run_follows_its_own_speed() -> None:
    """Sixty steps of a second each on one machine, then ten of ten seconds each on another."""
    pace = Pace.of(TrainArgs("-"), OptimArgs(), 90)
    assert pace.seconds_left(70, 160.0, 60, 60.0) == pytest.approx(200.0)
    assert pace.seconds_left(90, 360.0, 60, 60.0) == 0.0
    assert pace.seconds_left(60, 60.0, 60, 60.0) is None
    pace = Pace.of(TrainArgs("-", max_minutes=60), OptimArgs(), 1000)
    assert pace.seconds_left(510, 2400.0, 500, 600.0) == 1200.0  # the hour ends before the steps
    assert pace.seconds_left(510, 3700.0, 500, 600.0) == 0.0


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("share", [0.001, 0.01, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("minutes", [0.0, 16.0])
def test_the_rate_falls_from_the_end_of_the_warm_up_to_the_floor(schedule: str, share: float, minutes: float) -> None:
    """By steps: 960 steps. By time: 960 steps of a second each, with a limit of a million steps."""
    warmup = max(1, round(960 * share))
    relative = rates(schedule, 10**6 if minutes else 960, warmup, minutes)
    assert len(relative) == 960 + bool(minutes)
    assert relative[:warmup] == pytest.approx([n / warmup for n in range(1, warmup + 1)])  # up to the peak
    fall = relative[warmup - 1 :]
    assert all(a >= b for a, b in zip(fall, fall[1:], strict=False))
    assert max(a - b for a, b in zip(fall, fall[1:], strict=False)) < 2 / len(fall)  # no jump
    floor = 1.0 if schedule == "constant" else 0.02
    assert relative[-1] == pytest.approx(floor, abs=2 / len(fall)) and relative[-1] >= floor


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("minutes", [0.0, 16.0])
@pytest.mark.parametrize("warmup", [0, 300])
def test_a_resumed_run_takes_the_same_rates(schedule: str, minutes: float, warmup: int) -> None:
    total = 3000 if minutes else 960
    whole = rates(schedule, total, warmup, minutes, 1.0)
    for stop in (5, 299, 300, 301, 700):
        assert rates(schedule, total, warmup, minutes, 1.0, stop) == whole
    assert rates(schedule, total, 300, minutes, 1.0, -700) == pytest.approx(rates(schedule, total, 300, minutes))


def test_the_default_warm_up_is_a_hundredth_of_the_time_limit() -> None:
    """The time limit ends this training long before max_steps."""
    relative = rates("cosine", 10**9, minutes=16.0)
    assert relative[9] < 1 and relative[10] == 1 and relative[6] == pytest.approx(0.625)


def test_the_default_warm_up_changes_later_rates_by_less_than_a_hundredth() -> None:
    relative = rates("cosine", 1000)
    without = [0.02 + 0.98 * (1 + math.cos(math.pi * (step - 1) / 1000)) / 2 for step in range(1, 1001)]
    assert max(abs(a - b) for a, b in zip(relative[9:], without[9:], strict=True)) < 0.01


@pytest.mark.parametrize("total", [1, 3, 19, 20, 100, 999, 5000, 10**6])
@pytest.mark.parametrize("batch", [8, 64])
@pytest.mark.parametrize("windows", [1, 32, math.inf])
@pytest.mark.parametrize("available", [1, 24, 10_000])
def test_evaluation_is_a_bounded_share_of_the_forward_passes(
    total: int, batch: int, windows: float, available: int
) -> None:
    eval_steps, sequences = evaluation_plan(TrainArgs("-"), total, batch, windows, available)
    times = math.ceil(total / eval_steps)
    forwards = times * min(sequences, available) * (windows if math.isfinite(windows) else 32)
    least = min(available, MIN_SEQUENCES)
    assert 1 <= eval_steps <= total and times <= 20 and sequences > 0
    assert forwards <= MAX_EVALUATION_SHARE * total * batch or (times == 1 and min(sequences, available) == least)


def test_long_trainings_and_explicit_flags_keep_their_evaluation_plan() -> None:
    assert evaluation_plan(TrainArgs("-"), 5000, 64, 32, 10_000) == (500, 256)
    assert evaluation_plan(TrainArgs("-"), 1_900_000, 64, 32, 10_000) == (190_000, 256)
    assert evaluation_plan(TrainArgs("-", eval_steps=2), 20, 64, 32, 10_000) == (2, 256)
    assert evaluation_plan(TrainArgs("-", eval_steps=2, eval_sequences=0), 20, 64, 32, 10_000) == (2, 0)
    assert evaluation_plan(TrainArgs("-"), 20, 64, 32, 10_000) == (20, 16)  # 512 forward passes instead of 81,920
    assert evaluation_plan(TrainArgs("-", eval_sequences=100), 20, 64, 32, 10_000) == (20, 100)
