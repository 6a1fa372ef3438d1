"""The sampler of diffusion_word_freq.py: it draws from p_theta, finishes, and keeps what it was given."""

import itertools

import pytest
import torch
from conftest import TableDenoiser, text_batch
from scipy.stats import chisquare
from torch import Tensor
from toy_process import COUNTS, MASK, SPINDLES, every, make, true_likelihoods

from diffusion_word_freq import WordFreqArgs, WordFreqDiffusion
from process import Batch, SampleArgs


@pytest.mark.parametrize(
    ("spindle", "num_steps", "num_windows"), [("none", 4, 4), ("paper", 4, 4), ("released", 5, 3), ("paper", 5, 2)]
)
def test_samples_follow_the_exact_distribution_of_a_known_denoiser(
    spindle: str, num_steps: int, num_windows: int
) -> None:
    process, denoiser = make(num_steps=num_steps, spindle=spindle), TableDenoiser(5)
    law = true_likelihoods(process, denoiser, 2, num_windows)
    n = 40_000
    batch = text_batch(torch.zeros(n, 2, dtype=torch.long))
    drawn = process.sample(denoiser, batch, SampleArgs(num_steps=num_windows))
    counts = torch.bincount(drawn[:, 0] * 5 + drawn[:, 1], minlength=25)
    expected = [law.get((i // 5, i % 5), 0.0) * n for i in range(25)]
    possible = [i for i in range(25) if expected[i] > 0]
    assert counts.sum() == sum(counts[i] for i in possible)
    assert chisquare([counts[i].item() for i in possible], [expected[i] for i in possible]).pvalue > 1e-3


@pytest.mark.parametrize("spindle", SPINDLES)
@pytest.mark.parametrize("num_windows", [1, 3, 7, 16])
def test_nothing_is_left_masked_and_given_tokens_stay(spindle: str, num_windows: int) -> None:
    process = make(num_steps=16, spindle=spindle)
    target = torch.tensor([[False, True, True, True, False]]).expand(64, -1)
    batch = Batch(torch.tensor([[2, 4, 4, 4, 1]]).expand(64, -1), every(target), target)
    seen = []
    drawn = process.sample(
        TableDenoiser(5),
        batch,
        SampleArgs(num_steps=num_windows, temperature=0.1, top_k=2, top_p=0.5),
        on_step=lambda done, s, xs: seen.append((done, s, xs)),
    )
    assert not drawn.eq(MASK).any()
    assert torch.equal(drawn[~target], batch.input_ids[~target])
    assert [done for done, _, _ in seen] == list(range(1, num_windows + 1)) and seen[-1][1] == 0
    for (_, _, earlier), (_, _, later) in itertools.pairwise(seen):
        revealed = ~earlier.eq(MASK)
        assert torch.equal(earlier[revealed], later[revealed])


def test_temperature_acts_on_the_prediction_not_on_the_reveal() -> None:
    """The released code cools the posterior, whose largest entry is [MASK]: at 0.1 almost nothing is revealed early."""
    process, batch = make(num_steps=16, spindle="none"), text_batch(torch.zeros(500, 8, dtype=torch.long))
    masks_left = {}
    for temperature in (1.0, 0.1):
        left = []
        process.sample(
            TableDenoiser(5),
            batch,
            SampleArgs(num_steps=16, temperature=temperature),
            on_step=lambda done, s, xs, left=left: left.append(xs.eq(MASK).double().mean().item()),
        )
        masks_left[temperature] = left
    assert masks_left[0.1][7] == pytest.approx(0.5, abs=0.03) == masks_left[1.0][7]


def test_excluded_tokens_are_never_predicted_and_unsampled_ones_never_drawn() -> None:
    args = WordFreqArgs(num_steps=4)
    process = WordFreqDiffusion(args, COUNTS, mask_id=MASK, excluded_ids=(0,), unsampled_ids=(1,))
    drawn = process.sample(
        TableDenoiser(5), text_batch(torch.zeros(2000, 3, dtype=torch.long)), SampleArgs(num_steps=4)
    )
    assert set(drawn.unique().tolist()) == {2, 4}
    bound = process.nll_bound(TableDenoiser(5), text_batch(torch.tensor([[1, 2, 4]])), 4)
    assert bound.isfinite().all()


@pytest.mark.parametrize("spindle", SPINDLES)
def test_the_last_step_reveals_what_is_left_however_the_sum_of_probabilities_is_rounded(spindle: str) -> None:
    class Single(TableDenoiser):
        def decode(self, hidden: Tensor) -> Tensor:
            return hidden.float()

    process, x0 = make(num_steps=8, spindle=spindle), torch.randint(0, 3, (400, 6))
    nearly_one = torch.full(x0.shape, 1 - 2.0**-53, dtype=torch.float64)
    xt = x0.masked_fill(torch.rand(x0.shape) < 0.5, MASK)
    xs = process.reverse_step(Single(5), text_batch(x0), xt, 0, 1, SampleArgs(), (nearly_one, nearly_one))
    assert not xs.eq(MASK).any()
