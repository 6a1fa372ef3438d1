"""sampling.py: what is given stays, rows do not depend on each other, guidance, levels from left to right."""

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


def draw(made: ScoreDiffusion, net: ScoreDenoiser, batch: Batch, **words: object) -> Tensor:
    args = {name: words.pop(name) for name in list(words) if name in SampleArgs.__dataclass_fields__}
    streams = words.pop("generator", [seeded(i) for i in range(len(batch.input_ids))])
    return made.sample(net, batch, SampleArgs(**{"num_steps": 6, **args}), generator=streams, **words)


@pytest.mark.parametrize("sampler", ["auto", *SAMPLERS])
@pytest.mark.parametrize("gaps", [torch.arange(1, 8), GAPS, torch.arange(4, 9), torch.tensor([], dtype=torch.long)])
def test_what_is_given_is_exactly_what_was_given(sampler: str, gaps: Tensor) -> None:
    batch = Batch(IDS, BATCH.attention_mask, torch.zeros(4, 9).bool().index_fill(1, gaps, True))
    found = draw(process(), denoiser(), batch, sampler=sampler)
    assert torch.equal(found[~batch.target_mask], IDS[~batch.target_mask])
    assert not torch.isin(found[batch.target_mask], torch.tensor([0, 1, 2, UNK, 19])).any()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("more", [{}, {"guidance": 2.0}, {"top_k": 3}])
def test_a_row_is_the_same_in_any_batch(sampler: str, more: dict) -> None:
    made, net = process(drop_given=0.1, self_conditioning=True), denoiser(self_conditioning=True)
    whole = draw(made, net, BATCH, sampler=sampler, **more)
    assert torch.equal(draw(made, net, BATCH, sampler=sampler, rows_at_once=3, **more), whole)
    order = torch.tensor([3, 1])
    some = draw(made, net, BATCH.rows(order), sampler=sampler, generator=[seeded(3), seeded(1)], **more)
    assert torch.equal(some, whole[order])
    other = draw(made, net, BATCH, sampler=sampler, generator=[seeded(i + 9) for i in range(4)], **more)
    assert not torch.equal(other, whole)


@pytest.mark.parametrize("sampler", ["renoise", "sde", "euler", "heun"])
@pytest.mark.slow
def test_samples_follow_the_law_if_the_network_knows_it(sampler: str) -> None:
    """From the exact posterior of nine sentences; renoise, which is another law, at least says nothing impossible."""
    n, made = 6000, tiny(sigma_max=30.0)
    everything = torch.ones(n, 2, dtype=torch.bool)
    batch = Batch(torch.zeros(n, 2, dtype=torch.long), everything, everything)
    found = draw(made, Bayes(), batch, sampler=sampler, num_steps=100, generator=Generator().manual_seed(0))
    often = (found[:, 0] * 3 + found[:, 1]).bincount(minlength=9) / n
    distance = (often - LAW).abs().sum() / 2
    assert distance < (0.5 if sampler == "renoise" else 0.04)


def test_each_forward_is_reported_and_each_row_once() -> None:
    batch = Batch(IDS, BATCH.attention_mask, GIVEN_ENDS.clone())
    batch.target_mask[2] = False
    seen = []
    draw(process(), denoiser(), batch, rows_at_once=2, on_step=lambda done, x: seen.append((done.tolist(), x.clone())))
    assert [done for done, _ in seen if done] == [[0, 1], [3]]
    assert len(seen) == 2 * (6 + 1)
    assert all(torch.equal(x[2], IDS[2]) for _, x in seen)
    assert (seen[0][1][:2][GIVEN_ENDS[:2]] != 19).all() and (seen[0][1][3, 1:8] == 19).all()  # not begun: [MASK]s


@pytest.mark.parametrize("sampler", ["auto", "sde"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("prior", [True, False])
def test_tokens_can_be_left_out_at_some_positions(sampler: str, guidance: float, prior: bool) -> None:
    """With guidance, too, where the barred ones of two predictions are subtracted from each other."""
    made = process(drop_given=0.1, self_conditioning=True, output_prior=prior)
    net, table = denoiser(self_conditioning=True), torch.zeros(2, made.vocab_size)
    allowed = torch.tensor([5, 9, 12])
    table[1] = table[1].index_fill(0, allowed, 1).log()
    columns = torch.tensor([0, 0, 1, 0, 1])
    found = draw(
        made, RestrictedDenoiser(net, columns, 9, table, made.support), BATCH, sampler=sampler, guidance=guidance
    )
    drawn = BATCH.target_mask & torch.zeros(9).bool().index_fill(0, torch.tensor([2, 4]), True)
    assert drawn.any() and torch.isin(found[drawn], allowed).all()
    assert not torch.isin(found[BATCH.target_mask & ~drawn], allowed).all()


def test_levels_fall_for_all_alike_or_from_left_to_right() -> None:
    net = denoiser()
    alike = process().levels(net, GIVEN_ENDS, 5)
    assert (alike[:, ~GIVEN_ENDS] == 0).all() and (alike.diff(dim=0)[:, GIVEN_ENDS] < 0).all()
    assert (alike[:, GIVEN_ENDS] == alike[:, GIVEN_ENDS][:, :1]).all()
    assert alike[0].max() == pytest.approx(18.75 * 8**0.5) and alike[-1].max() == 1
    rising = process(level_order="rising", time_warp=False).levels(net, GIVEN_ENDS, 9)[:, 0, 1:8]
    assert (rising.diff(dim=0) <= 0).all() and (rising.diff(dim=1) >= 0).all() and (rising[4, 0] < rising[4, -1])
    assert torch.equal(rising[[0, -1]], alike[[0, -1], 0, 1:8])
    warped = denoiser(time_warp=True)
    bent = process(time_warp=True).levels(warped, GIVEN_ENDS, 5)[:, 0, 1]
    assert bent[[0, -1]].tolist() == pytest.approx(alike[[0, -1], 0, 1].tolist())
    assert not torch.allclose(bent, alike[:, 0, 1], rtol=0.01)


def test_guidance_moves_the_estimate_along_what_is_given_makes_of_it() -> None:
    made, net = process(drop_given=0.1), denoiser()
    x, sigma = torch.randn(4, 9, 8), (4.0 * GIVEN_ENDS)[..., None]
    estimates = {}
    for g in (0.0, 1.0, 3.0):
        estimates[g] = EmbeddingEstimator(made, net, BATCH, SampleArgs(guidance=g), seeded())(x, sigma)[GIVEN_ENDS]
    assert torch.allclose(estimates[3.0], estimates[0.0] + 3 * (estimates[1.0] - estimates[0.0]), atol=1e-4)
    assert not torch.allclose(estimates[0.0], estimates[1.0], atol=1e-3)
    other = Batch(torch.where(GIVEN_ENDS, IDS, 5), BATCH.attention_mask, GIVEN_ENDS)  # without it, it does not count
    without = EmbeddingEstimator(made, net, other, SampleArgs(guidance=0.0), seeded())(x, sigma)[GIVEN_ENDS]
    assert torch.allclose(without, estimates[0.0], atol=1e-5)


def test_without_what_is_given_nothing_of_it_is_known_even_on_a_second_pass() -> None:
    made, net = process(drop_given=0.1), denoiser(self_conditioning=True)
    x, sigma = torch.randn(4, 9, 8), (4.0 * GIVEN_ENDS)[..., None]
    other = Batch(torch.where(GIVEN_ENDS, IDS, 5), BATCH.attention_mask, GIVEN_ENDS)
    for sampler in ("renoise", "sde"):
        found = []
        for batch in (BATCH, other):
            reverse = EmbeddingEstimator(made, net, batch, SampleArgs(guidance=0.0, sampler=sampler), seeded())
            first = reverse(x, sigma)
            found.append(reverse(x, sigma)[GIVEN_ENDS])
            assert torch.equal(first[GIVEN_ENDS], found[-1]) == (sampler == "sde")
        assert torch.allclose(*found, atol=1e-5)


def test_guided_tokens_are_those_of_the_guided_law_however_it_is_filtered() -> None:
    made, net = process(drop_given=0.1, output_prior=False), denoiser()
    x, sigma = torch.randn(4, 9, 8), (4.0 * GIVEN_ENDS)[..., None]
    plain = EmbeddingEstimator(made, net, BATCH, SampleArgs(guidance=2.0), seeded())
    plain(x, sigma)
    decode = net.decode
    for args in (SampleArgs(guidance=2.0, top_k=3), SampleArgs(guidance=2.0, top_p=0.8)):
        for shift in (0.0, -30.0):  # which no softmax sees
            net.decode = lambda hidden, shift=shift: decode(hidden) + shift
            filtered = EmbeddingEstimator(made, net, BATCH, args, seeded())
            filtered(x, sigma)
            assert torch.equal(filtered.guess, plain.guess)
            each, guided = filtered.logits(filtered.hidden)
            assert all(torch.equal(logits.isfinite(), guided.isfinite()) for logits in each)
    cold = EmbeddingEstimator(made, net, BATCH, SampleArgs(guidance=2.0, temperature=0.001), seeded())
    cold(x, sigma)
    assert torch.equal(cold.guess, plain.guess)


def test_sde_looks_twice_as_the_bound_does() -> None:
    made, net = process(), denoiser(self_conditioning=True)
    x, sigma = torch.randn(4, 9, 8), 4.0 * GIVEN_ENDS
    found = EmbeddingEstimator(made, net, BATCH, SampleArgs(sampler="sde"), seeded())(x, sigma[..., None])
    support = made.sampling_support
    first, second = None, None
    for _ in range(2):
        hidden = made.encode(net, x, sigma, BATCH, first)[GIVEN_ENDS]
        weights = (made.logits(net, hidden, net.table()) + support).softmax(-1)
        second = torch.zeros_like(x).masked_scatter(GIVEN_ENDS[..., None], weights @ net.table())
        first = second
    assert torch.allclose(found, second, atol=1e-4)


def test_the_next_pass_receives_the_estimate_before() -> None:
    made, net = process(self_conditioning=True), denoiser(self_conditioning=True)
    reverse = EmbeddingEstimator(made, net, BATCH, SampleArgs(), seeded())
    x, sigma = torch.randn(4, 9, 8), (4.0 * GIVEN_ENDS)[..., None]
    first, second = reverse(x, sigma), reverse(x, sigma)
    assert not torch.allclose(first, second, atol=1e-4)
    hidden = made.encode(net, x, sigma[..., 0], BATCH, first)
    logits = made.logits(net, hidden[GIVEN_ENDS], net.table()) + made.sampling_support
    assert torch.allclose(second[GIVEN_ENDS], logits.softmax(-1) @ net.table(), atol=1e-4)


@torch.no_grad()
def test_temperature_sharpens_the_interpolation() -> None:
    made, net = process(), denoiser()
    x, sigma = torch.randn(4, 9, 8), (9.0 * GIVEN_ENDS)[..., None]
    length = {
        t: EmbeddingEstimator(made, net, BATCH, SampleArgs(temperature=t), seeded())(x, sigma)[GIVEN_ENDS]
        .norm(dim=-1)
        .mean()
        for t in (0.01, 1.0, 100.0)
    }
    assert length[0.01] > length[1.0] > length[100.0]
    assert length[0.01] == pytest.approx(math.sqrt(8), rel=0.05)  # a token, not a mixture
    single = EmbeddingEstimator(made, net, BATCH, SampleArgs(top_k=1), seeded())
    assert torch.allclose(single(x, sigma)[GIVEN_ENDS], net.table()[single.guess], atol=1e-5)
