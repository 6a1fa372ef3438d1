"""sampling.py: recorded numbers and orders of convergence of the samplers, and the law of sde."""

import math

import pytest
import torch
from torch import Tensor

from diffusion.score.noise_levels import RhoSchedule, relative_level_grid
from diffusion.score.sampling import SAMPLERS

START = torch.tensor([[[10.0, 20.0]]], dtype=torch.float64)


def levels(number: int, low: float = 1, high: float = 10) -> list[Tensor]:
    return list(RhoSchedule(low, high, 1)(relative_level_grid(number)).view(-1, 1, 1, 1).unbind())


def run(name: str, denoise, x: Tensor, number: int, **bounds: float) -> Tensor:
    return SAMPLERS[name](denoise, x, levels(number, **bounds), lambda: torch.zeros_like(x))


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_reach_an_oracle_in_the_stated_number_of_calls(name: str) -> None:
    sigmas = []
    target = torch.tensor([1.0, -1.0], dtype=torch.float64)

    def oracle(x: Tensor, sigma: Tensor) -> Tensor:
        sigmas.append(float(sigma))
        return target.expand_as(x)

    noise = lambda: torch.randn(START.shape, dtype=torch.float64)  # noqa: E731
    found = SAMPLERS[name](oracle, START, levels(4), noise)
    assert torch.allclose(found, target.expand_as(found), atol=1e-12)
    assert len(sigmas) == (7 if name == "heun" else 4)
    assert sigmas == pytest.approx([10, 7, 7, 4, 4, 1, 1] if name == "heun" else [10, 7, 4, 1])


def test_a_linear_denoiser_gives_the_recorded_numbers() -> None:
    x = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64)
    half = lambda x, sigma: x / 2  # noqa: E731
    assert run("euler", half, x, 4).flatten().tolist() == pytest.approx([0.20870538, 0.41741076], abs=6e-8)
    assert run("heun", half, x, 4).flatten().tolist() == pytest.approx([0.10685871, 0.21371742], abs=6e-8)


def posterior_mean(x: Tensor, sigma: Tensor) -> Tensor:
    """Estimator for two equally likely tokens at sqrt(2) times the unit vectors."""
    table = math.sqrt(2) * torch.eye(2, dtype=torch.float64)
    return (x @ table.T / sigma**2).softmax(-1) @ table


def test_the_exact_posterior_of_two_tokens_gives_the_recorded_numbers() -> None:
    x = torch.tensor([[[4.0, 1.0], [-3.0, 2.0]]], dtype=torch.float64)
    found = {(name, n): run(name, posterior_mean, x, n)[0] for name, n in (("euler", 20), ("heun", 20), ("euler", 200))}
    recorded = {
        ("euler", 20): [[0.92194, 0.49227], [0.36893, 1.04528]],
        ("heun", 20): [[0.9493, 0.46492], [0.33447, 1.07975]],
        ("euler", 200): [[0.93977, 0.47445], [0.34599, 1.06822]],
    }
    for key, numbers in recorded.items():
        assert found[key].flatten().tolist() == pytest.approx(torch.tensor(numbers).flatten().tolist(), abs=6e-6)


def test_heun_is_of_second_order_and_euler_of_first() -> None:
    x = torch.tensor([[[4.0, 1.0]]], dtype=torch.float64)

    def x_at_level_1(name: str, number: int) -> float:
        """Return x at level 1, before the last step, which all samplers share."""
        states = []

        def watched(x: Tensor, sigma: Tensor) -> Tensor:
            states.append(x)
            return posterior_mean(x, sigma)

        run(name, watched, x, number)
        return states[-1]

    exact = x_at_level_1("heun", 4000)
    errors = {name: [(x_at_level_1(name, n) - exact).abs().max() for n in (41, 81)] for name in ("euler", "heun")}
    assert errors["heun"][1] < errors["euler"][1] / 3
    assert errors["euler"][0] / errors["euler"][1] == pytest.approx(2, rel=0.2)
    assert errors["heun"][0] / errors["heun"][1] == pytest.approx(4, rel=0.3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_positions_at_level_zero_stay_and_receive_no_noise(name: str) -> None:
    x = torch.tensor([[[4.0, 1.0], [-3.0, 2.0]]], dtype=torch.float64)
    noised = torch.tensor([[[1.0], [0.0]]], dtype=torch.float64)
    rungs = [level * noised for level in levels(5)]
    found = SAMPLERS[name](lambda x, sigma: torch.zeros_like(x), x, rungs, lambda: torch.randn_like(x))
    assert torch.equal(found[0, 1], x[0, 1]) and found[0, 0].abs().max() < 1e-12


@pytest.mark.parametrize("name", SAMPLERS)
def test_positions_may_have_levels_of_their_own(name: str) -> None:
    """Two independent positions each follow the path that they follow alone."""
    x = torch.tensor([[[4.0, 1.0], [-3.0, 2.0]]], dtype=torch.float64)
    one, other = levels(5), levels(5, high=20)
    noise = lambda: torch.full_like(x, 0.3)  # noqa: E731
    together = SAMPLERS[name](posterior_mean, x, [torch.cat(pair, 1) for pair in zip(one, other, strict=True)], noise)
    for i, own in enumerate((one, other)):
        alone = SAMPLERS[name](posterior_mean, x[:, i : i + 1], own, lambda: noise()[:, :1])
        assert torch.allclose(together[:, i : i + 1], alone, atol=1e-12)


def test_sde_draws_from_the_posterior_of_the_forward_process() -> None:
    """With x0 known, x_s given x_t has Bayes' mean and spread, and marginally x_s is e + s z."""
    n, x0 = 200_000, 1.5
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(1, n, 1, generator=generator, dtype=torch.float64)  # noqa: E731
    seen = []

    def known(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x)
        return torch.full_like(x, x0)

    SAMPLERS["sde"](known, x0 + 10 * draw(), levels(4), draw)
    for x, sigma in zip(seen, (10, 7, 4, 1), strict=True):
        assert x.mean() == pytest.approx(x0, abs=4 * sigma / math.sqrt(n)) and x.std() == pytest.approx(sigma, rel=0.01)
    covariance = ((seen[1] - x0) * (seen[2] - x0)).mean()
    assert covariance == pytest.approx(4**2, rel=0.05)  # x_t = x_s + more noise


def test_renoise_keeps_nothing_of_the_previous_x() -> None:
    x = torch.tensor([[[4.0, 1.0]]], dtype=torch.float64)
    seen = []

    def known(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x)
        return torch.ones_like(x)

    SAMPLERS["renoise"](known, x, levels(3), lambda: torch.full_like(x, 2.0))
    assert [float(each[0, 0, 0]) for each in seen] == [4, 1 + 5.5 * 2, 1 + 1 * 2]
