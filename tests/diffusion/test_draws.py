"""draws.py: each kind of draw against its law."""

import math

import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Generator

from diffusion.draws import filter_logits, sample_categorical, stratified_timesteps, uniform
from diffusion.options import SampleArgs
from utils.errors import UserError


def test_stratified_timesteps_are_uniform_per_sentence_and_even_over_the_batch() -> None:
    draws = torch.stack([stratified_timesteps(8, 16) for _ in range(8000)])
    assert draws.min() == 1 and draws.max() == 16
    slices = ((draws - 1) // 2).sort(dim=1).values
    assert torch.equal(slices, torch.arange(8).expand_as(slices))  # one t in each eighth of 1..16, every time
    for row in range(8):
        assert chisquare(torch.bincount(draws[:, row], minlength=17)[1:]).pvalue > 1e-4


def test_timesteps_of_a_batch_larger_than_T_stay_in_range() -> None:
    t = stratified_timesteps(1000, 3)
    assert torch.bincount(t).tolist() == [0, *torch.bincount(t)[1:].tolist()] and set(t.tolist()) == {1, 2, 3}


@pytest.mark.slow
def test_categorical_follows_small_weights_and_never_picks_zero() -> None:
    """The shared float32 Gumbel trick draws a weight of 2e-3 beside 50,000 others a third as often as it should."""
    n = 200_000
    weights = torch.full((1, 3001), 0.002 / 3000)
    weights[0, 1500], weights[0, 7] = 0.998, 0.0
    drawn = sample_categorical(weights.expand(n, -1)[:2000], torch.rand(2000, dtype=torch.float64))
    assert not drawn.eq(7).any()
    u = torch.arange(n, dtype=torch.float64) / n
    rare = sum(int(sample_categorical(weights.expand(2000, -1), part).ne(1500).sum()) for part in u.split(2000))
    assert rare / n == pytest.approx(0.002, abs=1e-5)


def test_categorical_inverts_the_cumulative_sum_exactly() -> None:
    weights = torch.tensor([[0.0, 1.0, 0.0, 3.0, 0.0]]).expand(5, -1)
    u = torch.tensor([0.0, 0.2499999, 0.25, 0.999999999, 1 - 2**-53], dtype=torch.float64)
    assert sample_categorical(weights, u).tolist() == [1, 1, 3, 3, 3]


def test_the_largest_uniform_number_never_leaves_the_vocabulary() -> None:
    """u * total stays below the total at sums of every size, so the index stays in range."""
    weights = torch.rand(20_000, 7, dtype=torch.float64).exp2() * torch.logspace(-30, 30, 20_000).double()[:, None]
    weights = torch.cat([weights, torch.tensor([[1.0, 1.0], [1.0, 2.0**-52]]).double().new_zeros(2, 7)])
    weights[-2:, 0] = torch.tensor([1.0, 1 + 2.0**-52], dtype=torch.float64)
    drawn = sample_categorical(weights, torch.full((len(weights),), 1 - 2.0**-53, dtype=torch.float64))
    assert (drawn[:-2] == 6).all() and drawn[-2:].tolist() == [0, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_predictions_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(UserError, match="predictions are not finite"):
        sample_categorical(torch.tensor([[1.0, value, 0.0]]), torch.tensor([0.5], dtype=torch.float64))


def test_filters_keep_the_specified_tokens() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    kept = lambda **k: filter_logits(logits, SampleArgs(**k)).softmax(-1)[0].tolist()  # noqa: E731
    assert kept() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert kept(top_k=2) == pytest.approx([0, 0, 3 / 7, 4 / 7])
    assert kept(top_k=9) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert kept(top_p=0.7) == pytest.approx([0, 0, 3 / 7, 4 / 7])
    assert kept(top_p=0.71) == pytest.approx([0, 2 / 9, 3 / 9, 4 / 9])
    assert kept(top_p=1e-9) == pytest.approx([0, 0, 0, 1])
    assert kept(temperature=0.5) == pytest.approx([1 / 30, 4 / 30, 9 / 30, 16 / 30])
    assert kept(temperature=0.5, top_k=1) == [0, 0, 0, 1]


@pytest.mark.parametrize("setting", [{"temperature": 1e-3}, {"temperature": 1e3}, {"top_p": 1e-300}, {"top_k": 10**9}])
def test_extreme_settings_still_leave_a_distribution(setting: dict) -> None:
    probs = filter_logits(torch.tensor([[50.0, -50.0, -torch.inf, 0.0]]), SampleArgs(**setting)).softmax(-1)
    assert probs.isfinite().all() and probs.sum().item() == pytest.approx(1) and probs[0, 2] == 0
    assert probs.argmax() == 0


def test_uniform_with_a_stream_per_sentence_ignores_batch_and_padding() -> None:
    def streams(*seeds: int) -> list[Generator]:
        return [Generator().manual_seed(seed) for seed in seeds]

    narrow = torch.tensor([[True, True, True]])
    wide = torch.tensor([[True, False, True, True, False], [True] * 5])
    alone, together = uniform(narrow, streams(1)), uniform(wide, streams(1, 2))
    assert alone[narrow].tolist() == together[0][wide[0]].tolist()
    assert (together[~wide] == 1).all()


def test_uniform_is_uniform_and_follows_its_generator() -> None:
    where = torch.ones(50, 100, dtype=torch.bool)
    first, again = (uniform(where, Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again) and first.dtype == torch.float64
    assert kstest(first.flatten().numpy(), "uniform").pvalue > 1e-3
