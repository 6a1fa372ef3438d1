"""noise_levels.py: the recorded numbers of schedule and scalings; how levels and given tokens are drawn."""

import math

import pytest
import torch
from torch import Generator

from diffusion.process_options import GIVEN_KINDS
from diffusion.score.noise_levels import (
    NoiseDraw,
    RhoSchedule,
    anisotropy,
    c_in,
    default_sigma_max,
    draw_given,
    loss_weight,
    position_relative_levels,
    relative_level_grid,
    rising_relative_levels,
)

RELATIVE = torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64)
EVERY = torch.ones(1, 5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("low", "high", "rho", "levels"),
    [
        (1, 10, 1, [10, 7.75, 5.5, 3.25, 1]),
        (1, 10, 7, [10, 6.013451, 3.47483, 1.916383, 1]),
        (0.1, 100, 7, [100, 30.302438, 7.177132, 1.168049, 0.1]),
    ],
)
def test_the_schedule_is_the_recorded_one(low: float, high: float, rho: float, levels: list[float]) -> None:
    assert RhoSchedule(low, high, rho)(RELATIVE).tolist() == pytest.approx(levels, rel=1e-6)


def test_scalings_are_the_recorded_ones() -> None:
    sigma = torch.tensor([0.0, 1, 2, 5, 10], dtype=torch.float64)
    assert c_in(sigma).tolist() == pytest.approx([1, 0.707107, 0.447214, 0.196116, 0.099504], abs=5e-7)
    assert (c_in(sigma) ** 2).tolist() == pytest.approx([1, 0.5, 0.2, 0.038462, 0.009901], abs=5e-7)  # their c_skip
    assert (sigma * c_in(sigma)).tolist() == pytest.approx([0, 0.707107, 0.894427, 0.980581, 0.995037], abs=5e-7)
    assert loss_weight(sigma).tolist() == pytest.approx([math.inf, 2, 1.25, 1.04, 1.01])


def test_the_grid_leads_from_the_highest_level_to_the_lowest() -> None:
    assert RhoSchedule(1, 10, 1)(relative_level_grid(4)).tolist() == pytest.approx([10, 7, 4, 1])
    assert relative_level_grid(1).tolist() == [1] and relative_level_grid(2).tolist() == [1, 0]


def test_a_level_of_ten_destroys_little_at_width_256_and_the_default_all() -> None:
    """Share of noisy tokens nearer to their own embedding than to one sqrt(2 E) away: nearly 0.9 at sigma 10."""
    shares = [
        0.5 * math.erfc(-math.sqrt(2 * 256) / (2 * sigma) / math.sqrt(2)) for sigma in (10, default_sigma_max(256))
    ]
    assert shares[0] == pytest.approx(0.871, abs=1e-3) and shares[1] == pytest.approx(0.515, abs=1e-3)
    assert default_sigma_max(256) == 300
    for width in (16, 64, 256):
        assert width / 2 * math.log1p(default_sigma_max(width) ** -2) == pytest.approx(0.00142, rel=0.01)


# ---- relative levels -------------------------------------------------------------------------------------------------


def test_positions_have_levels_spread_over_their_row() -> None:
    noised = torch.tensor([[True] * 6, [False, True, True, True, False, False]])
    draws = torch.stack([position_relative_levels(noised, Generator().manual_seed(i)) for i in range(4000)])
    assert (draws >= 0).all() and (draws < 1).all()
    for row, number in ((0, 6), (1, 3)):
        slices = (draws[:, row, noised[row]] * number).long().sort(1).values
        assert torch.equal(slices, torch.arange(number).expand(4000, -1))  # one in each slice
    assert draws[:, noised].mean(0).sub(0.5).abs().max() < 0.02
    assert draws[:, noised].var(0).sub(1 / 12).abs().max() < 0.004


@pytest.mark.parametrize(
    ("i", "levels"),
    [(0, [0, 0, 0, 0, 0]), (2, [0, 0, 0, 12, 25]), (4, [0, 10, 20, 30, 40]), (8, [4, 14, 23, 32, 42]), (104, [99] * 5)],
)
def test_rising_levels_are_the_recorded_ones(i: int, levels: list[int]) -> None:
    relative = rising_relative_levels(torch.tensor([i / 104], dtype=torch.float64), EVERY, num_levels=100)
    assert (relative[0] * 99).tolist() == pytest.approx(levels, abs=0.51)  # the recorded levels are rounded


def test_rising_levels_count_the_noised_tokens_alone() -> None:
    noised = torch.tensor([[False, True, True, False, True, True, True, False]])
    start = torch.tensor([0.4], dtype=torch.float64)
    assert torch.equal(rising_relative_levels(start, noised)[noised], rising_relative_levels(start, EVERY)[0])


# ---- given tokens ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GIVEN_KINDS)
def test_given_parts_have_their_form_and_a_uniform_size(kind: str) -> None:
    target = torch.zeros(20_000, 9, dtype=torch.bool)
    target[:, 1:7] = True
    given = draw_given(target, 1.0, [kind], Generator().manual_seed(0))
    assert not (given & ~target).any()
    numbers = given.sum(1)
    assert numbers.max() == 5  # never all tokens
    assert given[:, 1:7].float().mean() == pytest.approx((6 - 1) / (2 * 6), abs=0.01)
    assert (numbers.bincount(minlength=6) / 20_000 - 1 / 6).abs().max() < 0.01
    runs = (given.int().diff(dim=1) == 1).sum(1)
    if kind == "prefix":
        assert torch.equal(given[:, 1], numbers > 0) and runs.max() == 1
    elif kind == "span":
        assert runs.max() == 1 and given[:, 6].any() and (~given[numbers > 0, 1]).any()
    else:
        assert runs.max() == 3
        assert given[:, 1:7].float().mean(0).sub(5 / 12).abs().max() < 0.02


def test_a_share_of_the_sentences_has_given_tokens() -> None:
    target = torch.ones(20_000, 8, dtype=torch.bool)
    given = draw_given(target, 0.3, ["prefix", "infill"], Generator().manual_seed(0))
    assert given.any(1).float().mean() == pytest.approx(0.3 * 7 / 8, abs=0.01)
    assert not draw_given(target, 0.0, list(GIVEN_KINDS), Generator().manual_seed(0)).any()
    # a single target is never given
    assert not draw_given(target[:, :1], 1.0, list(GIVEN_KINDS), Generator().manual_seed(0)).any()


def test_means_cover_the_predicted_tokens_of_each_sentence() -> None:
    predicted = torch.tensor([[True, True, False], [False, False, False], [False, True, False]])
    drawn = NoiseDraw(torch.zeros(3, 3), predicted, torch.zeros(3), torch.tensor([True, True, False]))
    means, counted = drawn.means(torch.tensor([1.0, 3.0, 5.0]))
    assert means.tolist() == [2, 0, 5] and counted.tolist() == [True, False, False]


def test_anisotropy_is_the_mean_cosine() -> None:
    assert anisotropy(torch.eye(2)) == pytest.approx(0, abs=1e-12)
    assert anisotropy(torch.tensor([[1.0, 0], [1, 1], [0, 1]])) == pytest.approx(0.471404, abs=1e-6)
