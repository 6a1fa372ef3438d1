"""sampling.py: given tokens stay, rows are independent, guidance, and levels that rise from left to right."""

import math

import pytest
import torch
from torch import Generator, Tensor

from data.batch import Batch
from diffusion.infilling import RestrictedDenoiser
from diffusion.options import SampleArgs
from diffusion.score.process import ScoreDiffusion
from diffusion.score.sampling import SAMPLERS, EmbeddingEstimator
from models.score_denoiser import ScoreDenoiser
from tests.diffusion.score.test_bound import LAW, Bayes, tiny
from tests.diffusion.score.test_process import BATCH, GIVEN_ENDS, IDS, UNK, denoiser, process, seeded

GAPS = torch.tensor([2, 3, 6])


def draw(diffusion: ScoreDiffusion, net: ScoreDenoiser, batch: Batch, **options: object) -> Tensor:
    args = {name: options.pop(name) for name in list(options) if name in SampleArgs.__dataclass_fields__}
    streams = options.pop("generator", [seeded(i) for i in range(len(batch.input_ids))])
    return diffusion.sample(net, batch, SampleArgs(**{"num_steps": 6, **args}), generator=streams, **options)


@pytest.mark.parametrize("sampler", ["auto", *SAMPLERS])
@pytest.mark.parametrize("gaps", [torch.arange(1, 8), GAPS, torch.arange(4, 9), torch.tensor([], dtype=torch.long)])
def test_given_tokens_never_change(sampler: str, gaps: Tensor) -> None:
    batch = Batch(IDS, BATCH.attention_mask, torch.zeros(4, 9).bool().index_fill(1, gaps, True))
    found = draw(process(), denoiser(), batch, sampler=sampler)
    assert torch.equal(found[~batch.target_mask], IDS[~batch.target_mask])
    assert not torch.isin(found[batch.target_mask], torch.tensor([0, 1, 2, UNK, 19])).any()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("settings", [{}, {"guidance": 2.0}, {"top_k": 3}])
def test_a_row_is_the_same_in_any_batch(sampler: str, settings: dict) -> None:
    diffusion, net = process(drop_given=0.1, self_conditioning=True), denoiser(self_conditioning=True)
    whole = draw(diffusion, net, BATCH, sampler=sampler, **settings)
    assert torch.equal(draw(diffusion, net, BATCH, sampler=sampler, rows_at_once=3, **settings), whole)
    order = torch.tensor([3, 1])
    selected = draw(diffusion, net, BATCH.rows(order), sampler=sampler, generator=[seeded(3), seeded(1)], **settings)
    assert torch.equal(selected, whole[order])
    other = draw(diffusion, net, BATCH, sampler=sampler, generator=[seeded(i + 9) for i in range(4)], **settings)
    assert not torch.equal(other, whole)


@pytest.mark.parametrize("sampler", ["renoise", "sde", "euler", "heun"])
@pytest.mark.slow
def test_samples_follow_the_law_of_an_exact_network(sampler: str) -> None:
    """The network is the exact posterior of nine sentences. The law of renoise differs, so its tolerance is wide."""
    n, diffusion = 6000, tiny(sigma_max=30.0)
    everything = torch.ones(n, 2, dtype=torch.bool)
    batch = Batch(torch.zeros(n, 2, dtype=torch.long), everything, everything)
    found = draw(diffusion, Bayes(), batch, sampler=sampler, num_steps=100, generator=Generator().manual_seed(0))
    frequencies = (found[:, 0] * 3 + found[:, 1]).bincount(minlength=9) / n
    distance = (frequencies - LAW).abs().sum() / 2
    assert distance < (0.5 if sampler == "renoise" else 0.04)


def test_each_forward_is_reported_and_each_row_once() -> None:
    batch = Batch(IDS, BATCH.attention_mask, GIVEN_ENDS.clone())
    batch.target_mask[2] = False
    seen = []
    draw(process(), denoiser(), batch, rows_at_once=2, on_step=lambda done, x: seen.append((done.tolist(), x.clone())))
    assert [done for done, _ in seen if done] == [[0, 1], [3]]
    assert len(seen) == 2 * (6 + 1)
    assert all(torch.equal(x[2], IDS[2]) for _, x in seen)
    # rows that have not begun hold [MASK]
    assert (seen[0][1][:2][GIVEN_ENDS[:2]] != 19).all() and (seen[0][1][3, 1:8] == 19).all()


@pytest.mark.parametrize("sampler", ["auto", "sde"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("prior", [True, False])
def test_tokens_can_be_forbidden_at_some_positions(sampler: str, guidance: float, prior: bool) -> None:
    """This includes guidance, which subtracts the barred logits of two predictions."""
    diffusion = process(drop_given=0.1, self_conditioning=True, output_prior=prior)
    net, table = denoiser(self_conditioning=True), torch.zeros(2, diffusion.vocab_size)
    allowed = torch.tensor([5, 9, 12])
    table[1] = table[1].index_fill(0, allowed, 1).log()
    columns = torch.tensor([0, 0, 1, 0, 1])
    found = draw(
        diffusion,
        RestrictedDenoiser(net, columns, 9, table, diffusion.support),
        BATCH,
        sampler=sampler,
        guidance=guidance,
    )
    drawn = BATCH.target_mask & torch.zeros(9).bool().index_fill(0, torch.tensor([2, 4]), True)
    assert drawn.any() and torch.isin(found[drawn], allowed).all()
    assert not torch.isin(found[BATCH.target_mask & ~drawn], allowed).all()


def test_levels_fall_equally_or_from_left_to_right() -> None:
    net = denoiser()
    equal = process().levels(net, GIVEN_ENDS, 5)
    assert (equal[:, ~GIVEN_ENDS] == 0).all() and (equal.diff(dim=0)[:, GIVEN_ENDS] < 0).all()
    assert (equal[:, GIVEN_ENDS] == equal[:, GIVEN_ENDS][:, :1]).all()
    assert equal[0].max() == pytest.approx(18.75 * 8**0.5) and equal[-1].max() == 1
    rising = process(level_order="rising", time_warp=False).levels(net, GIVEN_ENDS, 9)[:, 0, 1:8]
    assert (rising.diff(dim=0) <= 0).all() and (rising.diff(dim=1) >= 0).all() and (rising[4, 0] < rising[4, -1])
    assert torch.equal(rising[[0, -1]], equal[[0, -1], 0, 1:8])
    warped = denoiser(time_warp=True)
    warped_levels = process(time_warp=True).levels(warped, GIVEN_ENDS, 5)[:, 0, 1]
    assert warped_levels[[0, -1]].tolist() == pytest.approx(equal[[0, -1], 0, 1].tolist())
    assert not torch.allclose(warped_levels, equal[:, 0, 1], rtol=0.01)


def test_guidance_extrapolates_the_effect_of_given_tokens() -> None:
    diffusion, net = process(drop_given=0.1), denoiser()
    x, sigma = torch.randn(4, 9, 8), (4.0 * GIVEN_ENDS)[..., None]
    estimates = {}
    for g in (0.0, 1.0, 3.0):
        estimates[g] = EmbeddingEstimator(diffusion, net, BATCH, SampleArgs(guidance=g), seeded())(x, sigma)[GIVEN_ENDS]
    assert torch.allclose(estimates[3.0], estimates[0.0] + 3 * (estimates[1.0] - estimates[0.0]), atol=1e-4)
    assert not torch.allclose(estimates[0.0], estimates[1.0], atol=1e-3)
    # given tokens have no influence at guidance 0
    other = Batch(torch.where(GIVEN_ENDS, IDS, 5), BATCH.attention_mask, GIVEN_ENDS)
    without = EmbeddingEstimator(diffusion, net, other, SampleArgs(guidance=0.0), seeded())(x, sigma)[GIVEN_ENDS]
    assert torch.allclose(without, estimates[0.0], atol=1e-5)


def test_guidance_zero_ignores_given_tokens_even_on_a_second_pass() -> None:
    diffusion, net = process(drop_given=0.1), denoiser(self_conditioning=True)
    x, sigma = torch.randn(4, 9, 8), (4.0 * GIVEN_ENDS)[..., None]
    other = Batch(torch.where(GIVEN_ENDS, IDS, 5), BATCH.attention_mask, GIVEN_ENDS)
    for sampler in ("renoise", "sde"):
        found = []
        for batch in (BATCH, other):
            reverse = EmbeddingEstimator(diffusion, net, batch, SampleArgs(guidance=0.0, sampler=sampler), seeded())
            first = reverse(x, sigma)
            found.append(reverse(x, sigma)[GIVEN_ENDS])
            assert torch.equal(first[GIVEN_ENDS], found[-1]) == (sampler == "sde")
        assert torch.allclose(*found, atol=1e-5)


def test_guided_tokens_follow_the_guided_law_under_every_filter() -> None:
    diffusion, net = process(drop_given=0.1, output_prior=False), denoiser()
    x, sigma = torch.randn(4, 9, 8), (4.0 * GIVEN_ENDS)[..., None]
    plain = EmbeddingEstimator(diffusion, net, BATCH, SampleArgs(guidance=2.0), seeded())
    plain(x, sigma)
    decode = net.decode
    for args in (SampleArgs(guidance=2.0, top_k=3), SampleArgs(guidance=2.0, top_p=0.8)):
        for shift in (0.0, -30.0):  # to which a softmax is invariant
            net.decode = lambda hidden, shift=shift: decode(hidden) + shift
            filtered = EmbeddingEstimator(diffusion, net, BATCH, args, seeded())
            filtered(x, sigma)
            assert torch.equal(filtered.guess, plain.guess)
            each, guided = filtered.logits(filtered.hidden)
            assert all(torch.equal(logits.isfinite(), guided.isfinite()) for logits in each)
    cold = EmbeddingEstimator(diffusion, net, BATCH, SampleArgs(guidance=2.0, temperature=0.001), seeded())
    cold(x, sigma)
    assert torch.equal(cold.guess, plain.guess)


def test_sde_runs_the_network_twice_like_the_bound() -> None:
    diffusion, net = process(), denoiser(self_conditioning=True)
    x, sigma = torch.randn(4, 9, 8), 4.0 * GIVEN_ENDS
    found = EmbeddingEstimator(diffusion, net, BATCH, SampleArgs(sampler="sde"), seeded())(x, sigma[..., None])
    support = diffusion.sampling_support
    first, second = None, None
    for _ in range(2):
        hidden = diffusion.encode(net, x, sigma, BATCH, first)[GIVEN_ENDS]
        weights = (diffusion.logits(net, hidden, net.table()) + support).softmax(-1)
        second = torch.zeros_like(x).masked_scatter(GIVEN_ENDS[..., None], weights @ net.table())
        first = second
    assert torch.allclose(found, second, atol=1e-4)


def test_the_next_pass_receives_the_previous_estimate() -> None:
    diffusion, net = process(self_conditioning=True), denoiser(self_conditioning=True)
    reverse = EmbeddingEstimator(diffusion, net, BATCH, SampleArgs(), seeded())
    x, sigma = torch.randn(4, 9, 8), (4.0 * GIVEN_ENDS)[..., None]
    first, second = reverse(x, sigma), reverse(x, sigma)
    assert not torch.allclose(first, second, atol=1e-4)
    hidden = diffusion.encode(net, x, sigma[..., 0], BATCH, first)
    logits = diffusion.logits(net, hidden[GIVEN_ENDS], net.table()) + diffusion.sampling_support
    assert torch.allclose(second[GIVEN_ENDS], logits.softmax(-1) @ net.table(), atol=1e-4)


@torch.no_grad()
def test_temperature_sharpens_the_interpolation() -> None:
    diffusion, net = process(), denoiser()
    x, sigma = torch.randn(4, 9, 8), (9.0 * GIVEN_ENDS)[..., None]
    length = {
        t: EmbeddingEstimator(diffusion, net, BATCH, SampleArgs(temperature=t), seeded())(x, sigma)[GIVEN_ENDS]
        .norm(dim=-1)
        .mean()
        for t in (0.01, 1.0, 100.0)
    }
    assert length[0.01] > length[1.0] > length[100.0]
    assert length[0.01] == pytest.approx(math.sqrt(8), rel=0.05)  # a token, not a mixture
    single = EmbeddingEstimator(diffusion, net, BATCH, SampleArgs(top_k=1), seeded())
    assert torch.allclose(single(x, sigma)[GIVEN_ENDS], net.table()[single.guess], atol=1e-5)
