"""options.py: reverse steps and settings of sampling, each against its bounds."""

import math

import pytest

from diffusion.options import SampleArgs, step_windows
from utils.errors import UserError


@pytest.mark.parametrize(("total", "num_steps"), [(8, 8), (8, 2), (8, 3), (2048, 128), (2048, 1000), (7, 1)])
def test_windows_lead_from_T_to_0_without_gap(total: int, num_steps: int) -> None:
    windows = step_windows(total, num_steps)
    assert len(windows) == num_steps and windows[0][0] == total and windows[-1][1] == 0
    assert all(s == following for (_, s), (following, _) in zip(windows, windows[1:], strict=False))
    sizes = [t - s for t, s in windows]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("num_steps", [-1, 9])
def test_numbers_of_windows_out_of_range_are_refused(num_steps: int) -> None:
    with pytest.raises(UserError, match=f"num_steps={num_steps} must lie in 1..8"):
        step_windows(8, num_steps)


@pytest.mark.parametrize(
    "setting",
    [
        *({"temperature": value} for value in (0.0, -1.0, 1e-40, 1e300, math.inf, math.nan)),
        *({"top_p": value} for value in (0.0, 1.5, math.nan)),
        *({"num_steps": value} for value in (-1, 2.5, math.nan, -math.inf, 1e300)),
        {"top_k": -1},
    ],
)
def test_sampling_settings_out_of_range_are_refused(setting: dict) -> None:
    (name,) = setting
    with pytest.raises(UserError, match=f"{name}="):
        SampleArgs(**setting)


def test_the_default_number_of_windows_is_128_or_every_step() -> None:
    assert len(step_windows(2048)) == 128 and len(step_windows(16)) == 16
