"""curve.py: a curve is drawn for every run, diverged ones too."""

from pathlib import Path

import pytest

from training.curve import _without_short_end
from training.tracking import Tracker

UNIGRAM = {"unigram_bits_per_token": 9.0}


@pytest.mark.filterwarnings("error")
def test_a_diverged_run_has_a_curve(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, {"seed": 1})
    for step, bits in enumerate((9.0, None, 20.0, 1e300), 1):
        tracker.train(step, {"bits_per_token": bits})
    tracker.valid(4, {"bits_per_token": 1e300, **UNIGRAM}, best=True)
    tracker.close()
    assert (tmp_path / "curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_last_point_of_few_steps_is_not_plotted() -> None:
    def points(*steps: int) -> list[dict]:
        return [{"step": step} for step in steps]

    assert _without_short_end(points(20, 40, 60, 61)) == points(20, 40, 60)
    assert _without_short_end(points(20, 40, 60, 75)) == points(20, 40, 60, 75)
    assert _without_short_end(points(1, 2)) == points(1, 2)
