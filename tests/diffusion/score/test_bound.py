"""bound.py: an upper bound of -log p by enumeration and sampling; the entropy for the exact posterior."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Generator, Tensor

from diffusion.options import BoundArgs, SampleArgs
from diffusion.process import Vocabulary
from diffusion.process_options import ScoreArgs
from diffusion.score.bound import diffusion_terms
from diffusion.score.noise_levels import relative_level_grid
from diffusion.score.process import ScoreDiffusion
from tests.conftest import all_sentences, text_batch
from tests.diffusion.score.test_process import BATCH, GIVEN_ENDS, denoiser, process, seeded
from utils.errors import UserError

LAW = torch.tensor([0.3, 0.05, 0.02, 0.03, 0.25, 0.05, 0.1, 0.05, 0.15], dtype=torch.float64)
"""Probabilities of the nine sentences of two tokens out of three; the tokens are dependent."""
SENTENCES = all_sentences([0, 1, 2], 2)
STRATIFIED = BoundArgs("stratified", evaluations=64)


@dataclass
class Bayes:
    """The exact p(x0 | x_t) of each token under LAW; `error` scales a deviation that depends on x_t."""

    error: float = 0.0
    embedding_size = 3
    self_conditioning = False
    warp = None
    time_conditioned = True

    def table(self) -> Tensor:
        """Three tokens at right angles, of length sqrt(3)."""
        return math.sqrt(3) * torch.eye(4, 3)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.table()[tokens]

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor, previous: Tensor | None = None) -> Tensor:
        """Logits: the likelihood of both tokens under each sentence, summed over the sentences that have a token."""
        x = (xt * (t.square() + 1).sqrt()[..., None]).double()
        e = self.table()[SENTENCES].double()
        distance = (x[:, None] - e).square().sum(-1) / (2 * t[:, None].double().square())
        weight = LAW.log() - distance.sum(-1)
        logits = [torch.stack([weight[:, SENTENCES[:, i] == k].logsumexp(1) for k in range(3)], -1) for i in range(2)]
        logits = torch.stack(logits, 1) + self.error * torch.sin(3 * x.sum((1, 2)))[:, None, None] * torch.arange(3.0)
        return torch.cat([logits, torch.zeros_like(logits[..., :1])], -1).float()

    def decode(self, hidden: Tensor) -> Tensor:
        return hidden.clone()


def tiny(**settings: object) -> ScoreDiffusion:
    settings = {"sigma_min": 0.3, "sigma_max": 60.0, "rho": 7.0, "output_prior": False, **settings}
    return ScoreDiffusion(ScoreArgs(**settings), Vocabulary(4, 3))


def bounds(
    net: Bayes, num_steps: float, args: BoundArgs, repeats: int, diffusion: ScoreDiffusion | None = None
) -> Tensor:
    """The mean of many estimates for each of the nine sentences, float64 [9]."""
    batch = text_batch(SENTENCES.repeat(repeats, 1))
    total = (diffusion or tiny()).bound(net, batch, num_steps, args, generator=Generator().manual_seed(0)).total
    return total.view(repeats, 9).mean(0)


def test_the_bound_of_the_exact_posterior_is_the_entropy_in_the_limit() -> None:
    """The integral of the mean square error is the mutual information (Guo et al. 2005)."""
    found = (bounds(Bayes(), math.inf, STRATIFIED, 400) * LAW).sum()
    entropy = -(LAW * LAW.log()).sum()
    assert float(found) == pytest.approx(float(entropy), abs=0.02)


@pytest.mark.slow
def test_fewer_steps_cost_more_and_many_tend_to_the_limit() -> None:
    entropy = float(-(LAW * LAW.log()).sum())
    found = [float((bounds(Bayes(), n, BoundArgs("windows"), 300) * LAW).sum()) for n in (2, 8, 64, 256)]
    assert found[0] > found[1] > found[2] > found[3] > entropy
    assert [excess - entropy for excess in found[2:]] == pytest.approx([0.24, 0.06], abs=0.04)
    found[2] = float((bounds(Bayes(), 64, BoundArgs("windows"), 1000) * LAW).sum())
    stratified = (bounds(Bayes(), 64, BoundArgs("stratified", evaluations=32), 2000) * LAW).sum()
    assert float(stratified) == pytest.approx(found[2], abs=0.03)


@pytest.mark.parametrize("error", [0.0, 1.5])
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_the_bound_holds_for_the_law_of_the_sampler_sde(num_steps: int, error: float) -> None:
    """For no sentence is the bound below -log of its frequency among the samples."""
    diffusion, net, n = tiny(sigma_max=8.0), Bayes(error), 60_000
    batch = text_batch(torch.zeros(n, 2, dtype=torch.long))
    args = SampleArgs(sampler="sde", num_steps=num_steps)
    drawn = diffusion.sample(net, batch, args, generator=Generator().manual_seed(1), rows_at_once=20_000)
    frequencies = (drawn[:, 0] * 3 + drawn[:, 1]).bincount(minlength=9) / n
    found = bounds(net, num_steps, BoundArgs("windows"), 3000, diffusion)
    noise = 4 * ((1 - frequencies) / (frequencies * n)).sqrt() + 0.02
    assert (found > -frequencies.log() - noise).all()
    assert (-found).exp().sum() < 1
    if num_steps == 1 and error == 0:  # from almost pure noise, tokens are drawn independently
        assert (found + frequencies.log()).abs().max() < 0.1


def test_the_prior_is_a_divergence_of_gaussians() -> None:
    diffusion, net = tiny(sigma_max=2.0), Bayes()
    found = diffusion.bound(net, text_batch(SENTENCES), 1, generator=seeded()).prior
    q = torch.distributions.Normal(torch.tensor([math.sqrt(3), 0, 0]), 2.0)
    p = torch.distributions.Normal(0.0, math.sqrt(5))
    assert found.tolist() == pytest.approx([2 * float(torch.distributions.kl_divergence(q, p).sum())] * 9, rel=1e-6)


def test_the_steps_are_divergences_of_gaussians() -> None:
    """KL(q(x_s | x_t, e) || q(x_s | x_t, x0_hat)) depends on the two means' distance alone."""
    t, s, e, guess = 4.0, 2.5, 1.7, 0.4
    spread = math.sqrt(s**2 * (t**2 - s**2) / t**2)
    means = [(1 - s**2 / t**2) * mean for mean in (e, guess)]
    kl = torch.distributions.kl_divergence(*(torch.distributions.Normal(mean, spread) for mean in means))
    assert (s**-2 - t**-2) / 2 * (e - guess) ** 2 == pytest.approx(float(kl), rel=1e-5)
    rungs = tiny().schedule(Bayes())(relative_level_grid(6))
    terms, lowest = diffusion_terms(tiny(), Bayes(), text_batch(SENTENCES).noised, 6, BoundArgs("windows"), None)
    assert torch.allclose(torch.stack([level[0, 0] for level, _ in terms]), rungs[:-1]) and (lowest == rungs[-1]).all()
    steps = itertools.pairwise(rungs.tolist())
    assert [float(weight[0, 0]) for _, weight in terms] == pytest.approx([(s**-2 - t**-2) / 2 for t, s in steps])


def test_only_targets_are_scored_and_draws_do_not_depend_on_the_batch() -> None:
    diffusion, net = process(), denoiser()
    whole = [diffusion.bound(net, BATCH, math.inf, BoundArgs("stratified"), generator=[seeded(i) for i in range(4)])]
    rows = torch.tensor([2, 0])
    whole += [
        diffusion.bound(net, BATCH.rows(rows), math.inf, BoundArgs("stratified"), generator=[seeded(2), seeded(0)])
    ]
    assert torch.allclose(whole[0].total[rows], whole[1].total, rtol=1e-5)
    assert whole[0].forwards.tolist() == [17] * 4
    nothing = BATCH.rows(slice(0, 2))
    nothing = type(nothing)(nothing.input_ids, nothing.attention_mask, torch.zeros_like(nothing.target_mask))
    assert diffusion.bound(net, nothing, 4, generator=seeded()).total.tolist() == [0, 0]


def test_a_self_conditioned_network_runs_twice_per_estimate() -> None:
    diffusion, net = process(self_conditioning=True), denoiser(self_conditioning=True)
    calls, answers = [], []
    encode = net.encode

    def watched(*arguments: object) -> Tensor:
        calls.append(arguments)
        answers.append(encode(*arguments))
        return answers[-1]

    net.encode = watched
    found = diffusion.bound(net, BATCH, 5, generator=seeded())
    assert found.forwards.tolist() == [10] * 4 and len(calls) == 10
    for first, answer, second in zip(calls[::2], answers[::2], calls[1::2], strict=True):
        assert first[3] is None and torch.equal(first[0], second[0])  # the same x_t, and no other input from the tokens
        logits = diffusion.logits(net, torch.cat([answer, evidence(first)], -1)[GIVEN_ENDS], net.table())
        expected = diffusion.within_support(logits).softmax(-1) @ net.table()
        assert torch.allclose(second[3][GIVEN_ENDS], expected, atol=1e-4) and not second[3][~GIVEN_ENDS].any()


def evidence(arguments: tuple) -> Tensor:
    """Return the output prior's evidence x_t / sigma^2, from c_in x_t at levels sigma."""
    x, sigma = arguments[0] * (arguments[1] ** 2 + 1).sqrt()[..., None], arguments[1][..., None]
    return torch.where(sigma > 0, x / sigma.clamp(min=1e-6) ** 2, 0.0)


@pytest.mark.parametrize("estimator", ["windows", "stratified"])
def test_rising_levels_are_scored_as_they_are_sampled(estimator: str) -> None:
    diffusion, net = process(level_order="rising", time_warp=False), denoiser()
    rungs = diffusion.levels(net, GIVEN_ENDS, 6)
    terms, lowest = diffusion_terms(diffusion, net, BATCH.noised, 6, BoundArgs(estimator), None)
    assert torch.equal(lowest[GIVEN_ENDS], rungs[-1][GIVEN_ENDS])
    assert len(terms) == {"windows": 5, "stratified": 16}[estimator]
    for level, weight in terms:
        step = torch.tensor([[torch.equal(rungs[i, b], level[b] * GIVEN_ENDS[b]) for b in range(4)] for i in range(5)])
        assert step.sum(0).tolist() == [1] * 4
        exact = (rungs[1:] ** -2 - rungs[:-1] ** -2) / 2
        of_that_step = exact.transpose(0, 1)[step.T][GIVEN_ENDS]
        assert torch.allclose(weight[GIVEN_ENDS], of_that_step * 5 / len(terms))
    assert diffusion.num_steps == 2000
    with pytest.raises(UserError, match="must be at most 2,000; give fewer"):
        diffusion_terms(diffusion, net, BATCH.noised, math.inf, BoundArgs("stratified"), None)


def test_cross_entropies_are_reported_by_level() -> None:
    diffusion, net = process(), denoiser()
    found = diffusion.profile(net, BATCH, [seeded(i) for i in range(4)])
    assert diffusion.profile_names(net) == [
        f"cross_entropy_at_{s}" for s in ("1", "2", "5", "10", "20", "50", "53.033")
    ]
    assert found.shape == (7, 4) and (found > 0).all()
    assert diffusion.network_figures(net)["sigma_max"] == pytest.approx(18.75 * 8**0.5)
    exact = tiny().profile(Bayes(), text_batch(SENTENCES.repeat(2000, 1)), Generator().manual_seed(0))
    one = (exact[tiny().profile_names(Bayes()).index("cross_entropy_at_50")].view(2000, 9).mean(0) * LAW).sum()
    marginals = torch.stack([torch.stack([LAW[SENTENCES[:, i] == k].sum() for k in range(3)]) for i in range(2)])
    assert float(one) == pytest.approx(float(-(marginals * marginals.log()).sum()), abs=0.02)  # tokens are independent


@pytest.mark.parametrize("name", ["masked-count", "trajectory"])
def test_estimators_of_masked_processes_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"estimator={name} is for masked processes"):
        process().bound(denoiser(), BATCH, 4, BoundArgs(name))
    with pytest.raises(UserError, match="estimator=windows: num_steps=inf has infinitely many"):
        process().bound(denoiser(), BATCH, math.inf, BoundArgs("windows"))
