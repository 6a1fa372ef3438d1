"""noise_schedules.py: the recorded sigma(t) of the released MDLM; alpha_bar runs from 1 to 0."""

import math

import pytest
import torch

from diffusion.masked.noise_schedules import SCHEDULES, geometric, linear, log_mask_rates, log_uniform_time
from tests.toy_family import recorded

NOISE = recorded("noise")
NAMES = {
    **{name: SCHEDULES[name] for name in ("loglinear", "cosine", "cosinesqr")},
    "geometric_1em3_1": geometric(1e-3, 1.0),
    "geometric_1em4_20": geometric(),
    "linear_0_10": linear(),
}
T = torch.linspace(0, 1, 101, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_sigma_its_rate_and_the_weight_are_the_recorded_ones(name: str) -> None:
    schedule, case = NAMES[name], NOISE["cases"][name]
    t = torch.tensor(NOISE["t"], dtype=torch.float64)
    for key, found, atol in (
        ("sigma", schedule.sigma(t), 2e-6),
        ("dsigma", schedule.rate(t), 2e-4 if name == "cosinesqr" else 2e-6),
        ("move_chance", 1 - schedule.alpha_bar(t), 2e-6),
        ("weight_dsigma_over_expm1_sigma", schedule.weight(t), 2e-6),
    ):
        expected = torch.tensor([math.nan if value == "nan" else float(value) for value in case[key]]).double()
        small = (t < 1e-4) & (key == "move_chance")  # float32's 1 - exp(-sigma) has two digits there,
        known = expected.isfinite() & ~small & ~((t < 0.1) & (key[0] == "w"))  # and so has every quotient by it
        torch.testing.assert_close(found[known], expected[known], rtol=5e-4, atol=atol)
        torch.testing.assert_close(found[small], expected[small], rtol=2e-2, atol=2e-6)
    assert name in NOISE["cases"]


def test_the_loglinear_weight_is_1_over_t() -> None:
    t = T[1:]
    torch.testing.assert_close(SCHEDULES["loglinear"].weight(t), 1 / t)
    torch.testing.assert_close(SCHEDULES["loglinear"].closed(t), 1 - t)


@pytest.mark.parametrize("name", NAMES)
def test_the_rate_is_the_derivative_and_the_time_the_inverse(name: str) -> None:
    schedule, inner = NAMES[name], T[1:-1].clone().requires_grad_()
    (derivative,) = torch.autograd.grad(schedule.sigma(inner).sum(), inner)
    torch.testing.assert_close(schedule.rate(inner.detach()), derivative)
    torch.testing.assert_close(schedule.time_at(schedule.closed(T)), T, atol=1e-6, rtol=0)
    (slope,) = torch.autograd.grad(schedule.closed(inner).sum(), inner)
    torch.testing.assert_close(schedule.closed_weight(inner.detach()), (-slope / (1 - schedule.closed(inner))).detach())


@pytest.mark.parametrize("name", NAMES)
def test_the_closed_alpha_bar_runs_from_1_to_0(name: str) -> None:
    closed = NAMES[name].closed(T)
    assert closed[0] == 1 and closed[-1] == 0 and (closed.diff() <= 0).all()


def test_importance_sampling_makes_the_log_mask_rate_uniform() -> None:
    case = NOISE["cases"]["loglinear_importance"]
    found = log_uniform_time(SCHEDULES["loglinear"], torch.tensor(case["t_in"]))
    torch.testing.assert_close(found, torch.tensor(case["t_out"]).double(), rtol=5e-4, atol=2e-6)
    for schedule in SCHEDULES.values():
        low, high = log_mask_rates(schedule)
        rates = (1 - schedule.alpha_bar(log_uniform_time(schedule, T))).log()
        torch.testing.assert_close(rates, low + (high - low) * T)
    assert log_mask_rates(SCHEDULES["loglinear"]) == pytest.approx((-6.90826, -0.0010005), rel=1e-5)
