"""Properties of the process, mostly by enumeration in float64: a vocabulary of 5 tokens, short sentences."""

import itertools
import math

import pytest
import torch
from torch import Tensor

import diffusion_word_freq
from data.batch import Batch
from data.word_counts import information
from diffusion.draws import WHOLE, Share
from diffusion.options import step_windows
from diffusion.process import Vocabulary
from diffusion.process_options import WordFreqArgs
from diffusion.time_density import UNIFORM, TimeDensity
from diffusion_word_freq import WordFreqDiffusion, base_alpha_bar
from tests.conftest import OracleDenoiser, TableDenoiser, text_batch
from tests.toy_process import (
    COUNTS,
    MASK,
    SCHEDULES,
    SPINDLES,
    TOKENS,
    every,
    exact_bound,
    make,
    steps,
    true_likelihoods,
)
from utils.errors import UserError

# ---- schedule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_base_schedules_fall_from_1_to_0(schedule: str) -> None:
    for num_steps in (1, 2, 8, 2048):
        alpha_bar = base_alpha_bar(schedule, num_steps)
        assert alpha_bar[0] == 1 and alpha_bar[-1] == 0 and (alpha_bar.diff() < 0).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("spindle", ["paper", "released"])
@pytest.mark.parametrize("lam", [0.1, 0.3, 0.5, 3.0])
def test_alpha_bar_falls_from_1_to_0_for_every_token_of_a_zipf_vocabulary(
    schedule: str, spindle: str, lam: float
) -> None:
    counts = (1e6 / torch.arange(1, 2001)).long()  # from 1,000,000 down to 500
    counts[-50:] = 0
    args = WordFreqArgs(num_steps=512, schedule=schedule, spindle=spindle, word_freq_lambda=lam)
    process = WordFreqDiffusion(args, counts, Vocabulary(len(counts), 0))
    x0 = torch.stack([torch.arange(2000), torch.randint(0, 20, (2000,))])  # a typical mean and a low one
    x0[1, :5] = torch.arange(1995, 2000)
    table = torch.stack([process.alpha_bar(steps(2, t), x0, every(x0)) for t in range(513)])
    assert (table[0] == 1).all() and (table[-1] == 0).all()
    assert (table.diff(dim=0) < 0).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_equation_9_holds_for_the_paper_spindle(schedule: str) -> None:
    """The expected share of information left at t is the base schedule, where h is not clamped."""
    process = make(num_steps=16, schedule=schedule, lam=0.1)
    x0 = torch.tensor([[0, 1, 2, 4, 4], [0, 0, 0, 2, 1]])
    h = 1 - process.schedule.sentence_mean(x0, every(x0))[:, None] / process.schedule.statistic[x0]
    assert h.abs().max() < process.schedule.largest_h
    for t in range(17):
        information = process.schedule.statistic[x0]
        left = (process.alpha_bar(steps(2, t), x0, every(x0)) * information).sum(1) / information.sum(1)
        torch.testing.assert_close(left, process.schedule.base[t].expand(2))


def test_informative_tokens_are_masked_earlier() -> None:
    for spindle in ("paper", "released"):
        process = make(num_steps=8, spindle=spindle)
        common_to_rare = torch.tensor([[0, 4, 1, 2]])
        keep = process.alpha_bar(steps(1, 4), common_to_rare, every(common_to_rare))
        assert (keep.diff() < 0).all()


def test_an_unseen_token_has_finite_information_and_probabilities_sum_to_1() -> None:
    assert information(COUNTS).isfinite().all()
    assert information(COUNTS).neg().exp().sum() == pytest.approx(1)


def test_the_sentence_mean_is_taken_over_the_targets_only() -> None:
    process = make()
    x0 = torch.tensor([[0, 1, 2, 2]])
    target = torch.tensor([[True, True, False, False]])
    other = torch.tensor([[0, 1, 4, 0]])
    t = steps(1, 2)
    torch.testing.assert_close(process.alpha_bar(t, x0, target)[target], process.alpha_bar(t, other, target)[target])
    short = process.alpha_bar(t, x0[:, :2], target[:, :2])
    torch.testing.assert_close(process.alpha_bar(t, x0, target)[:, :2], short)


# ---- marginals and posteriors against products of transition matrices ------------------------------------------------


def transition_matrix(process: WordFreqDiffusion, x0: Tensor, i: int, s: int, t: int) -> Tensor:
    """Return q(x_t | x_s) of token i as a 2 x 2 matrix over (itself, [MASK]), from one-step betas only."""
    product = torch.eye(2, dtype=torch.float64)
    for step in range(s + 1, t + 1):
        before, after = (process.alpha_bar(steps(1, k), x0, every(x0))[0, i] for k in (step - 1, step))
        keep = (after / before).item()
        product = product @ torch.tensor([[keep, 1 - keep], [0, 1]], dtype=torch.float64)
    return product


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("spindle", SPINDLES)
def test_marginals_and_posteriors_equal_products_of_transition_matrices(schedule: str, spindle: str) -> None:
    process = make(num_steps=5, schedule=schedule, spindle=spindle)
    for x0 in (torch.tensor([[0, 2, 4]]), torch.tensor([[1, 1, 2]])):
        for i, (s, t) in itertools.product(range(3), itertools.combinations(range(6), 2)):
            to_s, s_to_t, to_t = (transition_matrix(process, x0, i, a, b) for a, b in ((0, s), (s, t), (0, t)))
            marginal = process.alpha_bar(steps(1, t), x0, every(x0))[0, i]
            torch.testing.assert_close(marginal, to_t[0, 0])
            bayes = to_s[0, 0] * s_to_t[0, 1] / to_t[0, 1]  # q(x_s = x0) q(x_t = M | x_s = x0) / q(x_t = M)
            torch.testing.assert_close(process.posterior(x0, steps(1, s), steps(1, t), every(x0))[0, i], bayes)


@pytest.mark.parametrize("spindle", SPINDLES)
def test_the_posterior_composes(spindle: str) -> None:
    """Steps t to s and s to r compose to t to r: probabilities of staying masked multiply."""
    process = make(num_steps=9, spindle=spindle)
    x0 = torch.tensor([[0, 1, 2, 4]])

    def reveal(s: int, t: int) -> Tensor:
        return process.posterior(x0, steps(1, s), steps(1, t), every(x0))

    for r, s, t in itertools.combinations(range(10), 3):
        torch.testing.assert_close(reveal(s, t) + (1 - reveal(s, t)) * reveal(r, s), reveal(r, t))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_windows", [1, 3, 7, 64])
def test_the_weights_of_a_tokens_cross_entropy_sum_to_1(schedule: str, num_windows: int) -> None:
    process = make(num_steps=64, schedule=schedule)
    h = torch.linspace(-1, 1, 21, dtype=torch.float64) * process.schedule.largest_h
    total = torch.zeros_like(h)
    for t, s in step_windows(64, num_windows):
        t, s = torch.tensor([t]), torch.tensor([s])
        total += (1 - process.schedule.alpha_bar(t, h)) * process.schedule.reveal_probability(s, t, h)
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("spindle", SPINDLES)
def test_corrupt_masks_targets_at_rate_1_minus_alpha_bar_and_nothing_else(spindle: str) -> None:
    process = make(num_steps=8, spindle=spindle)
    sentence, target = torch.tensor([0, 1, 2, 4, 4]), torch.tensor([True, True, True, True, False])
    n = 40_000
    x0, targets = sentence.expand(n, -1), target.expand(n, -1)
    for t in (0, 1, 5, 8):
        xt = process.corrupt(x0, steps(n, t), targets)
        masked = xt.eq(MASK)
        assert torch.equal(xt[~masked], x0[~masked]) and not masked[:, 4].any()
        rate = 1 - process.alpha_bar(steps(1, t), x0[:1], targets[:1])[0, :4]
        error = (masked[:, :4].double().mean(0) - rate).abs()
        assert (error <= 4 * (rate * (1 - rate) / n).sqrt() + 1e-12).all()


# ---- the bound -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spindle", "lam", "schedule", "num_steps", "num_windows"),
    [
        ("none", 0.0, "mutual", 4, 4),
        ("paper", 0.3, "mutual", 4, 4),
        ("released", 0.3, "mutual", 4, 3),
        ("paper", 0.6, "cosine", 5, 2),
        ("released", 0.3, "linear", 3, 3),
    ],
)
def test_the_bound_is_at_least_the_negative_log_likelihood(
    spindle: str, lam: float, schedule: str, num_steps: int, num_windows: int
) -> None:
    """bound(x0) >= -log p_theta(x0) for every x0, p_theta sums to 1, and so exp(-bound) sums to at most 1."""
    process = make(num_steps=num_steps, spindle=spindle, lam=lam, schedule=schedule)
    denoiser = TableDenoiser(5)
    law = true_likelihoods(process, denoiser, 2, num_windows)
    assert sum(law.values()) == pytest.approx(1) and not any(MASK in x for x in law)
    bounds = {x: exact_bound(process, denoiser, torch.tensor(x), num_windows) for x in law}
    assert len(bounds) == len(TOKENS) ** 2
    for x, bound in bounds.items():
        assert bound >= -math.log(law[x]) - 1e-9
    assert sum(math.exp(-b) for b in bounds.values()) <= 1 + 1e-9


def test_the_bound_is_tight_for_one_step_and_for_one_token() -> None:
    """With one window, or one token and no spindle, the gap is 0."""
    denoiser = TableDenoiser(5)
    for process, length, windows in ((make(num_steps=4), 2, 1), (make(num_steps=4, lam=0), 1, 4)):
        law = true_likelihoods(process, denoiser, length, windows)
        for x, probability in law.items():
            assert exact_bound(process, denoiser, torch.tensor(x), windows) == pytest.approx(-math.log(probability))


@pytest.mark.parametrize("spindle", SPINDLES)
def test_the_bound_of_an_oracle_is_zero(spindle: str) -> None:
    x0 = torch.tensor([[0, 1, 2, 4], [4, 4, 0, 0]])
    process = make(num_steps=16, spindle=spindle)
    bound = process.bound(OracleDenoiser(x0, 5), text_batch(x0), 16).total
    torch.testing.assert_close(bound, torch.zeros_like(bound), atol=1e-9, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("spindle", ["paper", "released"])
def test_the_slope_of_a_reveal_probability_is_its_derivative_by_the_expectation(spindle: str, schedule: str) -> None:
    """Central differences in the sentence mean, which rises by 1 / 3 per unit of one of three expectations."""
    schedule = make(6, spindle, schedule=schedule).schedule
    mean = schedule.statistic[TOKENS].mean().double().repeat(3)
    targets, step = torch.ones(3, 3, dtype=torch.bool), 1e-6
    s, t = torch.tensor([0, 2, 1]), torch.tensor([1, 5, 6])
    _, slope = schedule.candidate_reveal(mean, targets, s, t)
    above, below = (schedule.candidate_reveal(mean + sign * step / 3, targets, s, t)[0] for sign in (1, -1))
    torch.testing.assert_close(slope, (above - below) / (2 * step), atol=1e-8, rtol=1e-6)
    assert slope[1].abs().max() > 1e-3


@pytest.mark.parametrize("spindle", SPINDLES)
def test_the_bound_is_an_unbiased_estimate_of_the_enumerated_bound(spindle: str) -> None:
    process, denoiser = make(num_steps=6, spindle=spindle), TableDenoiser(5)
    x0 = torch.tensor([0, 2, 1])
    expected = exact_bound(process, denoiser, x0, 4)
    draws = process.bound(denoiser, text_batch(x0.expand(20_000, -1)), 4).total
    assert abs(draws.mean() - expected) < 4 * draws.std() / math.sqrt(len(draws))


@pytest.mark.parametrize("density", [UNIFORM, TimeDensity(0.4, 0.3)])
@pytest.mark.parametrize("spindle", SPINDLES)
def test_the_training_loss_is_an_unbiased_estimate_of_the_bound(spindle: str, density: TimeDensity) -> None:
    process, denoiser = make(num_steps=6, spindle=spindle), TableDenoiser(5)
    x0 = torch.tensor([0, 2, 1])
    expected = exact_bound(process, denoiser, x0, 6)
    batch = text_batch(x0.expand(32, -1))
    draws = torch.stack([process.loss(denoiser, batch, share=Share(density=density)).total / 32 for _ in range(600)])
    assert abs(draws.mean() - expected) < 4 * draws.std() / math.sqrt(len(draws))


def test_uniform_weights_sum_to_1_and_the_hybrid_term_is_added_per_step() -> None:
    """Let every token have the cross-entropy c: uniform weights give c; hybrid adds lambda T c times the mask rate."""
    batch = text_batch(torch.tensor([[0, 1, 2, 4]]).expand(20_000, -1))
    count, c = 80_000, math.log(4)  # four tokens are possible, [MASK] is not
    denoiser = TableDenoiser(5, scale=0.0)
    uniform = make(num_steps=4, spindle="none", loss_weighting="uniform")
    for share in (WHOLE, Share(density=TimeDensity(0.4, 0.3))):
        assert uniform.loss(denoiser, batch, share=share).total.item() / count == pytest.approx(c, rel=0.02)
    plain, hybrid = (make(num_steps=64, spindle="none", hybrid_lambda=weight) for weight in (0.0, 0.5))
    losses = [p.loss(denoiser, batch, generator=torch.Generator().manual_seed(3)).total.item() for p in (plain, hybrid)]
    mean_mask_rate = sum(t / 64 for t in range(1, 65)) / 64
    assert (losses[1] - losses[0]) / count == pytest.approx(0.5 * 64 * mean_mask_rate * c, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_arithmetic_is_float32_whatever_the_dtype_of_the_logits(dtype: torch.dtype) -> None:
    """Only the network rounds logits to half precision; later arithmetic is in float32 or more."""

    class Half(TableDenoiser):
        def decode(self, hidden: Tensor) -> Tensor:
            return hidden.to(dtype)

    class Rounded(TableDenoiser):
        def decode(self, hidden: Tensor) -> Tensor:
            return hidden.to(dtype).double()

    x0, process = torch.tensor([[0, 1, 2]]), make(num_steps=8)
    xt, s, t = torch.full_like(x0, MASK), steps(1, 3), steps(1, 4)
    half, exact = (process.token_terms(kind(5), text_batch(x0), xt, s, t) for kind in (Half, Rounded))
    for ours, reference in zip(half, exact, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-6, rtol=1e-5)


def test_settings_without_a_valid_process_are_refused() -> None:
    for setting, message in (
        ({"num_steps": 16.5}, "num_steps=16.5"),
        ({"num_steps": 20_000, "schedule": "linear"}, "schedule=linear underflows beyond 10000 steps"),
        ({"schedule": "foo"}, "schedule='foo' must be one of mutual, cosine, linear"),
        ({"word_freq_lambda": math.nan}, "word_freq_lambda=nan"),
    ):
        with pytest.raises(UserError, match=message):
            WordFreqArgs(**setting)
    assert (base_alpha_bar("linear", 10_000).diff() < 0).all()


def test_without_spindle_the_bound_is_the_plain_absorbing_process() -> None:
    """lambda = 0 switches either spindle off; a step's KL is u times the cross-entropy, u = 1/t for one step."""
    x0 = torch.tensor([[0, 1, 2, 4]])
    xt = torch.tensor([[MASK, 1, MASK, MASK]])
    denoiser = TableDenoiser(5)
    plain = make(num_steps=10, spindle="none")
    for spindle in ("paper", "released"):
        zero = make(num_steps=10, spindle=spindle, lam=0.0)
        tiny = make(num_steps=10, spindle=spindle, lam=1e-9)  # through the spindle's own formulas
        for t in (1, 4, 10):
            kl, cross_entropy = plain.token_terms(denoiser, text_batch(x0), xt, steps(1, t - 1), steps(1, t))
            torch.testing.assert_close(kl, cross_entropy / t)
            for other in (zero, tiny):
                other_kl, _ = other.token_terms(denoiser, text_batch(x0), xt, steps(1, t - 1), steps(1, t))
                torch.testing.assert_close(other_kl, kl, rtol=1e-6, atol=1e-9)


def test_at_large_T_the_plain_bound_is_the_weighted_cross_entropy() -> None:
    """As T grows the bound tends to sum over masked sets, MDLM's integral of 1/t times the cross-entropy."""
    denoiser, x0 = TableDenoiser(5), torch.tensor([0, 2, 4])
    limit = 0.0
    for pattern in itertools.product([False, True], repeat=3):
        masked = torch.tensor(pattern)
        k = int(masked.sum())
        if k == 0:
            continue
        logits = denoiser.encode(x0.masked_fill(masked, MASK)[None], steps(1, 1), every(x0[None]))[0]
        logits[:, MASK] = -math.inf
        cross_entropy = -logits.log_softmax(-1)[masked, x0[masked]].sum().item()
        limit += math.gamma(k) * math.gamma(4 - k) / math.gamma(4) * cross_entropy  # int t^(k-1) (1-t)^(L-k) dt
    gaps = [exact_bound(make(num_steps=n, spindle="none"), denoiser, x0, n) - limit for n in (32, 64, 128)]
    assert abs(gaps[-1]) < 0.02 * limit
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.1) and gaps[1] / gaps[2] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("spindle", SPINDLES)
def test_extreme_logits_give_finite_losses_and_gradients(spindle: str) -> None:
    x0 = torch.tensor([[0, 1, 2, 4]])
    process = make(num_steps=2048, spindle=spindle)
    for token in (0, 4):
        wrong = OracleDenoiser(torch.full_like(x0, token), 5)
        wrong.logits = wrong.logits.float().requires_grad_()
        for t in (1, 2, 1000, 2048):
            xt = torch.full_like(x0, MASK)
            kl, _ = process.token_terms(wrong, text_batch(x0), xt, steps(1, t - 1), steps(1, t))
            (gradient,) = torch.autograd.grad(kl.sum(), wrong.logits)
            assert kl.isfinite().all() and gradient.isfinite().all() and (kl >= -1e-9).all()


@pytest.mark.parametrize("spindle", SPINDLES)
@pytest.mark.parametrize("weighting", ["elbo", "uniform"])
def test_padding_changes_neither_the_loss_nor_the_bound(
    spindle: str, weighting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, denoiser = make(num_steps=8, spindle=spindle, loss_weighting=weighting), TableDenoiser(5)
    monkeypatch.setattr(
        "diffusion.masked.transitions.uniform", lambda where, generator=None: where.double() * 0.3 + (~where)
    )
    monkeypatch.setattr(diffusion_word_freq, "stratified_timesteps", lambda n, *_: steps(n, 6))
    plain = text_batch(torch.tensor([[0, 1, 2]]))
    present = torch.tensor([[True, True, True, False, False]])
    padded = Batch(torch.tensor([[0, 1, 2, 4, 4]]), present, present)
    for measure in (lambda b: process.loss(denoiser, b).total, lambda b: process.bound(denoiser, b, 4).total):
        torch.testing.assert_close(measure(padded), measure(plain))
