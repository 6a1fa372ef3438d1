"""time_density.py: the density integrates to one, is that of the drawn times, and its weights make sums unbiased."""

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest, truncnorm
from torch import Tensor

from diffusion.draws import Share, stratified_times, stratified_timesteps
from diffusion.time_density import UNIFORM, TimeDensity

BELLS = [TimeDensity(0.5, 0.2), TimeDensity(0.3, 0.15), TimeDensity(0.0, 0.5), TimeDensity(1.0, 0.05)]


def truncated(density: TimeDensity) -> object:
    low, high = ((end - density.centre) / density.width for end in (0, 1))
    return truncnorm(low, high, density.centre, density.width)


@pytest.mark.parametrize("density", BELLS)
def test_the_weight_is_one_over_the_truncated_gaussian(density: TimeDensity) -> None:
    time = torch.linspace(0, 1, 11, dtype=torch.float64)
    expected = 1 / torch.from_numpy(truncated(density).pdf(time.numpy()))
    torch.testing.assert_close(density.weight(time), expected, rtol=1e-9, atol=0)
    mass = quad(lambda t: 1 / density.weight(torch.tensor(t)).item(), 0, 1, points=[density.centre], epsabs=1e-10)[0]
    assert mass == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("density", [UNIFORM, *BELLS])
def test_times_have_the_density(density: TimeDensity) -> None:
    share = Share(density=density)
    drawn = torch.cat([stratified_times(4, torch.Generator().manual_seed(i), share)[:1] for i in range(4000)])
    law = "uniform" if density.is_uniform else truncated(density).cdf
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert kstest(drawn.numpy(), law).pvalue > 1e-4


@pytest.mark.parametrize("density", [UNIFORM, *BELLS])
def test_the_probabilities_of_the_steps_sum_to_one_and_invert_the_weights(density: TimeDensity) -> None:
    steps = torch.arange(1, 33)
    probability = density.probability((steps - 1) / 32, steps / 32)
    assert probability.sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(density.step_weight(steps, 32) * probability * 32, torch.ones(32, dtype=torch.float64))
    values = torch.linspace(-3, 5, 32, dtype=torch.float64) ** 3
    assert density.step_mean(values).item() == pytest.approx((probability * values).sum().item(), rel=1e-9)


@pytest.mark.parametrize("density", [TimeDensity(0.5, 0.2), TimeDensity(0.3, 0.3)])
def test_weighted_means_over_drawn_steps_and_times_are_those_over_all(density: TimeDensity) -> None:
    """The mean of f(t) / (T P(t)) over drawn t is the mean of f over all t."""

    def f(t: Tensor) -> Tensor:
        return 1 + t.double().sin() + t.double() ** 2

    share, generator = Share(density=density), torch.Generator().manual_seed(0)
    step = stratified_timesteps(20_000, 16, generator, share)
    found = (density.step_weight(step, 16) * f(step / 16)).mean().item()
    assert found == pytest.approx(f(torch.arange(1, 17) / 16).mean().item(), rel=2e-3)
    time = stratified_times(20_000, generator, share)
    found = (density.weight(time) * f(time)).mean().item()
    assert found == pytest.approx(1 + (1 - math.cos(1)) + 1 / 3, rel=2e-3)


@pytest.mark.parametrize("total", [1000, 10**6])
def test_the_weights_of_steps_are_exact_for_any_number_of_them(total: int) -> None:
    density, steps = TimeDensity(0.5, 0.2), torch.tensor([1, total // 3, total])
    law = truncated(density)
    expected = [1 / (total * (law.cdf(step / total) - law.cdf((step - 1) / total))) for step in steps.tolist()]
    torch.testing.assert_close(density.step_weight(steps, total), torch.tensor(expected).double(), rtol=1e-6, atol=0)


def test_the_largest_weight_is_at_an_end() -> None:
    density = TimeDensity(0.3, 0.2)
    grid = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert density.largest_weight == density.weight(grid).max().item() and UNIFORM.largest_weight == 1


def test_the_uniform_density_changes_nothing() -> None:
    u = torch.rand(100, dtype=torch.float64)
    assert UNIFORM.time_at(u) is u and UNIFORM.weight(u).eq(1).all() and UNIFORM.step_weight(u.long(), 8).eq(1).all()


def test_midpoints_have_equal_probability() -> None:
    density = TimeDensity(0.4, 0.1)
    assert density.midpoints().mean().item() == pytest.approx(truncated(density).mean(), abs=1e-4)
