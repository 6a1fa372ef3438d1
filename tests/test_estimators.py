"""Every estimator has the enumerated bound for its mean; the sets it draws follow the law that it divides by."""

import itertools
import math

import pytest
import torch
from conftest import TableDenoiser, text_batch
from scipy.stats import chisquare
from torch import Generator, Tensor
from toy_process import COUNTS, MASK, SCHEDULES, every, exact_bound, make

from diffusion_word_freq import WordFreqArgs
from diffusion_word_freq_released import ReleasedWordFreqDiffusion
from estimators import balanced_sets, conditional_sets, count_laws, draw_sizes, draw_windows, log_probability
from process import Batch, BoundArgs, UserError

V = 5
X0 = torch.tensor([0, 2, 1])
ESTIMATORS = {
    "windows": BoundArgs(),
    "stratified, 3 of 6": BoundArgs(estimator="stratified", evaluations=3),
    "stratified, 8 of 6": BoundArgs(estimator="stratified", evaluations=8),
    "masked-count, 1": BoundArgs(estimator="masked-count", evaluations=1),
    "masked-count, 5": BoundArgs(estimator="masked-count", evaluations=5),
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(
    ("spindle", "schedule", "num_steps", "windows"),
    [("none", "mutual", 6, 6), ("none", "cosine", 40, 7), ("paper", "mutual", 6, 6), ("released", "linear", 60, 20)],
)
def test_the_mean_is_the_enumerated_bound_and_the_error_is_the_spread(
    name: str, spindle: str, schedule: str, num_steps: int, windows: int
) -> None:
    """20,000 sentences, each with draws of its own: their mean, and the share of the step that ends at 0 within it."""
    process, denoiser = make(num_steps, spindle, schedule=schedule), TableDenoiser(V)
    batch = text_batch(X0.expand(20_000, -1))
    bound = process.bound(denoiser, batch, windows, ESTIMATORS[name])
    expected, last = (exact_bound(process, denoiser, X0, windows, only_last=only) for only in (False, True))
    for draws, truth in ((bound.total, expected), (bound.reconstruction, last)):
        assert abs(draws.mean() - truth) < 4 * draws.std() / math.sqrt(len(draws)) + 1e-9


class Reader(TableDenoiser):
    """Guesses some tokens well and others badly, all of them better the more it sees: as networks do."""

    def __init__(self, x0: Tensor) -> None:
        super().__init__(V)
        self.right = torch.nn.functional.one_hot(x0, V).double()

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """A logit for the true token that depends on its place and on how many others stand."""
        seen = xt.ne(MASK).double().mean(1)[:, None, None]
        talent = torch.linspace(-1, 4, xt.shape[1], dtype=torch.float64)[:, None]
        return self.right * (talent + 2 * seen)


@pytest.mark.parametrize(("spindle", "share"), [("none", 0.4), ("paper", 0.8)])
def test_masked_count_errs_least_at_equal_price(spindle: str, share: float) -> None:
    """Sixteen tokens, 64 forwards each."""
    x0 = torch.tensor([0, 1, 2, 4] * 4)
    process, batch = make(64, spindle), text_batch(x0.expand(1000, -1))
    same_price = {"windows": 0, "stratified": 64, "masked-count": 64}
    spread = {
        name: process.nll_bound(Reader(x0), batch, 64, BoundArgs(estimator=name, evaluations=evaluations)).std()
        for name, evaluations in same_price.items()
    }
    assert spread["masked-count"] < share * spread["stratified"] and spread["masked-count"] < share * spread["windows"]


@pytest.mark.parametrize("spindle", ["none", "paper"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_neither_neighbours_nor_padding_change_a_sentence(spindle: str, name: str) -> None:
    process, denoiser = make(12, spindle), TableDenoiser(V)
    on = torch.tensor([[True, True, True, False, False], [True] * 5])
    beside = Batch(torch.tensor([[0, 2, 1, 4, 4], [4, 4, 0, 1, 2]]), on, on)

    def streams(n: int) -> list[Generator]:
        return [Generator().manual_seed(seed) for seed in range(n)]

    alone = process.nll_bound(denoiser, text_batch(X0[None]), 6, ESTIMATORS[name], generator=streams(1))
    both = process.nll_bound(denoiser, beside, 6, ESTIMATORS[name], generator=streams(2))
    torch.testing.assert_close(both[:1], alone)


def test_a_sentence_without_targets_costs_nothing() -> None:
    batch = Batch(X0.expand(2, -1), every(X0.expand(2, -1)), torch.tensor([[True] * 3, [False] * 3]))
    for spindle in ("none", "paper"):
        for args in ESTIMATORS.values():
            bound = make(6, spindle).nll_bound(TableDenoiser(V), batch, 6, args)
            assert bound[1] == 0 and bound[0] > 0


def test_masked_count_is_refused_where_it_would_be_wrong() -> None:
    class Timed(TableDenoiser):
        time_conditioned = True

    args, batch = ESTIMATORS["masked-count, 1"], text_batch(X0[None])
    with pytest.raises(UserError, match="needs a network that is not told the time"):
        make(6).bound(Timed(V), batch, 6, args)
    released = ReleasedWordFreqDiffusion(WordFreqArgs(6, posterior="released"), COUNTS, mask_id=MASK)
    with pytest.raises(UserError, match="needs the exact posterior"):
        released.bound(TableDenoiser(V), batch, 6, args)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"estimator": "best"}, "must be one of windows, stratified, masked-count"),
        ({"evaluations": 5}, "windows takes one forward a window"),
        ({"estimator": "stratified", "evaluations": -1}, "evaluations=-1"),
        ({"target_se": 1.0}, "target_se=1.0"),
        ({"target_se": math.nan}, "target_se=nan"),
    ],
)
def test_settings_that_name_no_estimate_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        BoundArgs(**setting)


# ---- sets ------------------------------------------------------------------------------------------------------------


def rates() -> Tensor:
    """Mask rates of five tokens, the third no target."""
    return torch.tensor([0.9, 0.3, 0.0, 0.5, 0.05], dtype=torch.float64)


def patterns() -> Tensor:
    return torch.tensor(list(itertools.product([False, True], repeat=5)))


def test_count_laws_and_log_probabilities_are_those_of_enumeration() -> None:
    p, masks = rates(), patterns()
    law = torch.where(masks, p, 1 - p).prod(1)
    counts = count_laws(p)[0]
    for k in range(6):
        assert counts[k] == pytest.approx(law[masks.sum(1) == k].sum().item())
    targets = p[None] > 0
    possible = masks[~masks[:, 2]]
    found = log_probability((1 - p)[None, None], targets, possible[None])[0, :, 0]
    torch.testing.assert_close(found.exp(), law[~masks[:, 2]])


def frequencies(masked: Tensor) -> Tensor:
    """How often each of the 32 patterns came."""
    return torch.bincount((masked.long() * 2 ** torch.arange(4, -1, -1)).sum(-1).flatten(), minlength=32)


def test_conditional_sets_follow_the_mixture_of_the_windows_given_their_size() -> None:
    n = 60_000
    keep = torch.stack([1 - rates(), (1 - rates()).sqrt(), 1 - rates() ** 2])[None].expand(n, -1, -1)
    targets = (rates() > 0).expand(n, -1)
    size = torch.tensor([[1, 2, 3, 4]]).expand(n, -1)
    masked, log_proposal = conditional_sets(keep, targets, size, None)
    assert torch.equal(masked.sum(-1), size)
    mixture = log_probability(keep[:1], targets[:1], patterns()[None])[0].exp().mean(-1) * ~patterns()[:, 2]
    for e in range(3):
        law = mixture * (patterns().sum(1) == e + 1)
        law = law / law.sum()
        counts = frequencies(masked[:, e])
        possible = law > 0
        assert counts[~possible].sum() == 0
        assert chisquare(counts[possible].numpy(), (law[possible] * n).numpy()).pvalue > 1e-3
        index = (masked[:, e].long() * 2 ** torch.arange(4, -1, -1)).sum(-1)
        torch.testing.assert_close(log_proposal[:, e].exp(), law[index])


def test_balanced_sets_are_uniform_each_and_even_together() -> None:
    n = 40_000
    targets = (rates() > 0).expand(n, -1)
    size = torch.tensor([[1, 1, 2, 2, 3, 1]]).expand(n, -1)
    masked, log_proposal = balanced_sets(targets[:, None].double(), targets, size, None)
    assert torch.equal(masked.sum(-1), size) and not masked[..., 2].any()
    for e in range(6):
        counts = frequencies(masked[:, e])
        counts = counts[counts > 0]
        assert len(counts) == math.comb(4, int(size[0, e])) and chisquare(counts.numpy()).pvalue > 1e-3
        assert log_proposal[0, e].exp() == pytest.approx(1 / len(counts))
    assert masked[:, :4].sum(1)[:, [0, 1, 3, 4]].min() >= 1  # 6 places, 4 tokens: none is left out


@pytest.mark.parametrize("evaluations", [1, 7])
def test_sizes_are_uniform_and_rise(evaluations: int) -> None:
    lengths = torch.tensor([5, 2]).repeat_interleave(30_000)
    size = draw_sizes(lengths, torch.rand(60_000, evaluations, dtype=torch.float64))
    assert (size.diff(dim=1) >= 0).all()
    for length in (5, 2):
        counts = torch.bincount(size[lengths == length].flatten(), minlength=length + 1)
        assert counts[0] == 0 and len(counts) == length + 1
        share = counts[1:] / counts.sum()
        torch.testing.assert_close(share, torch.full_like(share, 1 / length), atol=0.01, rtol=0)
    assert draw_sizes(torch.tensor([0]), torch.tensor([[0.9]])).tolist() == [[0]]


def test_windows_are_drawn_in_proportion() -> None:
    n, weights = 60_000, torch.tensor([0.5, 0.0, 1.0, 2.5])
    u = torch.rand(n, 2, dtype=torch.float64)
    drawn = draw_windows(weights.double().expand(n, 1, -1), u)
    counts = torch.bincount(drawn.flatten(), minlength=4)
    assert counts[1] == 0 and (drawn.diff(dim=-1) >= 0).all()
    assert counts[[0, 2, 3]].tolist() == pytest.approx([2 * n / 8, 2 * n / 4, 2 * n * 5 / 8], rel=0.02)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_network_that_knows_nothing_pays_the_same_for_every_token(schedule: str) -> None:
    """With -log pi = log 4 everywhere the bound is L log 4: sum_k W(k) k = L, W(k) = sum_j u_j Binomial(k; L, ...)."""
    process, length = make(1000, "none", schedule=schedule), 6
    batch = text_batch(torch.zeros(4000, length, dtype=torch.long))
    args = BoundArgs(estimator="masked-count", evaluations=6)
    bound = process.nll_bound(TableDenoiser(V, scale=0.0), batch, 1000, args)
    assert bound.mean().item() == pytest.approx(length * math.log(4), rel=0.01)
