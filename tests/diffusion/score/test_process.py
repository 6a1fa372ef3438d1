"""process.py: levels and given tokens of a step, the loss against its formula, and invariances of the loss."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from data.batch import Batch
from diffusion.draws import Share
from diffusion.process import Vocabulary
from diffusion.process_options import ScoreArgs
from diffusion.score import noise_levels
from diffusion.score.process import ScoreDiffusion
from models.score_denoiser import ScoreDenoiser
from tests.conftest import text_batch
from tests.models.test_score_lm import network

V, MASK, UNK = 20, 19, 18
COUNTS = torch.ones(V, dtype=torch.long)
IDS = torch.randint(3, 18, (4, 9), generator=Generator().manual_seed(0))
GIVEN_ENDS = torch.ones(4, 9, dtype=torch.bool).index_fill(1, torch.tensor([0, 8]), False)
BATCH = Batch(IDS, torch.ones(4, 9, dtype=torch.bool), GIVEN_ENDS)


def process(*, fused_loss: bool = False, **settings: object) -> ScoreDiffusion:
    vocabulary = Vocabulary(len(COUNTS), MASK, excluded_ids=(0, 1, 2), unsampled_ids=(UNK,))
    return ScoreDiffusion(ScoreArgs(**settings), vocabulary, fused_loss=fused_loss)


def denoiser(seed: int = 0, **changes: object) -> ScoreDenoiser:
    return ScoreDenoiser(network(seed, **changes)).eval()


def seeded(seed: int = 7) -> Generator:
    return Generator().manual_seed(seed)


def many(rows: int = 10_000, length: int = 6) -> Batch:
    return text_batch(torch.full((rows, length), 3))


# ---- levels ----------------------------------------------------------------------------------------------------------


def test_given_tokens_have_no_noise_and_are_not_predicted() -> None:
    drawn = process(given_share=1.0).draw(denoiser(), BATCH, seeded(), Share())
    assert not (drawn.predicted & ~GIVEN_ENDS).any() and (GIVEN_ENDS & ~drawn.predicted).any()
    assert torch.equal(drawn.sigma > 0, drawn.predicted)
    assert (drawn.sigma[drawn.predicted] >= 1).all() and drawn.sigma.max() <= noise_levels.default_sigma_max(8)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_a_share_of_the_sentences_has_a_level_for_every_position(share: float) -> None:
    diffusion = process(position_levels=share, given_share=0.0)
    drawn = diffusion.draw(denoiser(), many(), seeded(), Share())
    alone = (drawn.sigma != drawn.sigma[:, :1]).any(1)
    assert torch.equal(alone, ~drawn.single)
    assert alone.float().mean() == pytest.approx(share, abs=0.01)


def test_levels_of_a_step_are_stratified_in_the_quantile_of_the_schedule() -> None:
    diffusion, parts = process(position_levels=0.0), 4
    found = [diffusion.draw(denoiser(), many(8), seeded(i), Share(i, parts, 5)).sigma.amax(1) for i in range(parts)]
    edges = diffusion.schedule(denoiser())(torch.arange(33, dtype=torch.float64) / 32)
    assert torch.equal(torch.bucketize(torch.cat(found).double().sort().values, edges, right=True), torch.arange(1, 33))


def test_rising_levels_are_those_of_ar_diffusion() -> None:
    diffusion = process(level_order="rising", time_warp=False, position_levels=0.0, given_share=0.0)
    drawn = diffusion.draw(denoiser(), many(50), seeded(), Share())
    assert (drawn.sigma.diff(dim=1) >= 0).all() and (drawn.sigma.diff(dim=1) > 0).any()
    expected = diffusion.schedule(denoiser())(
        noise_levels.rising_relative_levels(drawn.relative_level, torch.ones(50, 6).bool())
    )
    assert torch.allclose(drawn.sigma, expected.float())


def test_the_time_warp_changes_the_drawn_levels() -> None:
    diffusion, warped = process(time_warp=True, position_levels=0.0), denoiser(time_warp=True)
    drawn, even = (diffusion.draw(each, many(64), seeded(), Share()).relative_level for each in (warped, denoiser()))
    assert torch.allclose(drawn, warped.warp.quantile(even)) and not torch.allclose(drawn, even, atol=0.01)
    warped.warp.reset()
    assert torch.allclose(diffusion.draw(warped, many(64), seeded(), Share()).relative_level, even, atol=1e-6)


def test_given_tokens_may_be_hidden_at_the_highest_level() -> None:
    diffusion = process(drop_given=0.25, given_share=0.0)
    batch = replace(many(4000), target_mask=torch.ones(4000, 6).bool().index_fill(1, torch.tensor([0]), False))
    sigma = diffusion.draw(denoiser(), batch, seeded(), Share()).sigma[:, 0]
    assert set(sigma.tolist()) == {0, float(torch.tensor(diffusion.schedule(denoiser()).sigma_max))}
    assert (sigma > 0).float().mean() == pytest.approx(0.25, abs=0.02)


# ---- loss ------------------------------------------------------------------------------------------------------------


def by_hand(diffusion: ScoreDiffusion, network: ScoreDenoiser, batch: Batch, seed: int = 7) -> tuple[Tensor, Tensor]:
    """Return cross-entropies and noise levels of the predicted tokens, [n], computed from the formulas."""
    generator = seeded(seed)
    drawn = diffusion.draw(network, batch, generator, Share())
    e = F.normalize(network.network.embedding.weight, dim=-1) * 8**0.5
    z = torch.randn(*batch.input_ids.shape, 8, generator=generator)
    xt = e[batch.input_ids] + drawn.sigma[..., None] * z
    hidden = network.encode(xt / (drawn.sigma[..., None] ** 2 + 1).sqrt(), drawn.sigma, batch.attention_mask)
    logits = network.network.head(hidden)
    if diffusion.args.output_prior:
        logits = logits + xt @ e.T / drawn.sigma.clamp(min=1e-6)[..., None] ** 2
    logits[..., [0, 1, 2, MASK]] = -torch.inf
    nats = -logits.log_softmax(-1).gather(-1, batch.input_ids[..., None])[..., 0]
    return nats[drawn.predicted], drawn.sigma[drawn.predicted]


@pytest.mark.parametrize("prior", [True, False])
@pytest.mark.parametrize("weighting", ["uniform", "edm"])
def test_the_loss_is_the_mean_noisy_cross_entropy_times_the_target_count(weighting: str, prior: bool) -> None:
    diffusion, net = process(loss_weighting=weighting, output_prior=prior, position_levels=0.5), denoiser()
    nats, sigma = by_hand(diffusion, net, BATCH)
    weight = (sigma**2 + 1) / sigma**2 if weighting == "edm" else 1
    found = diffusion.loss(net, BATCH, generator=seeded())
    assert found.total.item() == pytest.approx((nats * weight).mean().item() * 28, rel=1e-5)
    assert found.terms["cross_entropy"].item() == pytest.approx(nats.mean().item() * 28, rel=1e-5)
    assert found.num_tokens == 28


def test_the_error_of_the_warp_is_added_and_trains_the_warp_alone() -> None:
    diffusion, net = process(time_warp=True, position_levels=0.5), denoiser(time_warp=True)
    drawn = diffusion.draw(net, BATCH, seeded(), Share())
    assert drawn.single.any() and not drawn.single.all()
    nats = by_hand(diffusion, net, BATCH)[0].detach().double().split(drawn.predicted.sum(1).tolist())
    warp, rows = net.warp, [i for i in range(4) if drawn.single[i] and len(nats[i])]
    errors = [
        (warp.cross_entropy(v) - nats[i].mean()) ** 2 / warp.density(v) for i in rows for v in [drawn.relative_level[i]]
    ]
    found = diffusion.loss(net, BATCH, generator=seeded())
    own = found.total - found.terms["cross_entropy"]
    assert own.item() == pytest.approx(28 * 1e-3 * sum(errors).item() / len(rows), rel=1e-4)

    warp.reset()
    head, heads = net.network.head.weight, []
    for each in (diffusion, process(position_levels=0.5, time_warp=False)):
        each.relative_levels = lambda denoiser, r: r
        heads.append(torch.autograd.grad(each.loss(net, BATCH, generator=seeded()).total, head)[0])
    assert torch.allclose(*heads, atol=1e-6)


def test_a_fused_loss_has_the_same_gradient() -> None:
    grads = []
    for fused in (False, True):
        diffusion, net = process(fused_loss=fused), denoiser()
        diffusion.loss(net, BATCH, generator=seeded()).total.backward()
        grads.append([p.grad for p in net.parameters()])
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(*grads, strict=True))


def test_every_weight_has_a_gradient() -> None:
    diffusion = process(self_conditioning=True, time_warp=True, drop_given=0.3)
    net = denoiser(self_conditioning=True, time_warp=True)
    diffusion.loss(net, BATCH, generator=seeded()).total.backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    assert net.network.embedding.weight.grad[IDS.unique()].abs().sum(1).all()


def test_packed_and_unpacked_losses_are_equal_with_their_gradients() -> None:
    lengths = torch.tensor([9, 4, 4, 6])
    attended = torch.arange(9) < lengths[:, None]
    batch = Batch(IDS, attended, attended & GIVEN_ENDS)
    found = []
    for capacity in (0, 12):
        diffusion, net = process(position_levels=0.5), denoiser()
        net.pack_rows(capacity)
        loss = diffusion.loss(net, batch, generator=seeded())
        loss.total.backward()
        found.append((loss.total.item(), [p.grad for p in net.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(found[0][1], found[1][1], strict=True))


def test_a_batch_of_given_tokens_costs_nothing() -> None:
    diffusion, net = process(), denoiser()
    batch = replace(BATCH, target_mask=torch.zeros_like(GIVEN_ENDS))
    loss = diffusion.loss(net, batch, generator=seeded())
    assert loss.total.item() == 0 and loss.num_tokens == 0
    loss.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


# ---- given tokens ----------------------------------------------------------------------------------------------------


def test_given_targets_are_not_part_of_the_loss() -> None:
    """Given targets enter only through their embeddings, so tokens with equal embeddings are interchangeable."""
    diffusion, net = process(given_share=1.0, output_prior=False), denoiser()
    with torch.no_grad():
        net.network.embedding.weight[4] = net.network.embedding.weight[5]
    predicted = diffusion.draw(net, BATCH, seeded(), Share()).predicted
    one, other = (replace(BATCH, input_ids=torch.where(predicted, IDS, token)) for token in (4, 5))
    assert diffusion.loss(net, one, generator=seeded()).total == diffusion.loss(net, other, generator=seeded()).total


def test_self_conditioning_without_an_estimate_is_the_plain_network() -> None:
    plain, conditioned = denoiser(), denoiser(self_conditioning=True)
    conditioned.network.load_state_dict(plain.network.state_dict(), strict=False)
    for args in ({}, {"position_levels": 1.0}):
        diffusion = process(**args)
        hidden = [
            diffusion.encode(net, diffusion.noisy(net, BATCH, 2.0 * GIVEN_ENDS, seeded()), 2.0 * GIVEN_ENDS, BATCH)
            for net in (plain, conditioned)
        ]
        assert torch.equal(*hidden)


def test_half_of_the_sentences_receive_their_own_estimate() -> None:
    diffusion, net = process(self_conditioning=True, given_share=1.0), denoiser(self_conditioning=True)
    batch = Batch(*(tensor.repeat(100, 1) for tensor in (IDS, BATCH.attention_mask, GIVEN_ENDS)))
    generator = seeded()
    drawn = diffusion.draw(net, batch, generator, Share())
    x = diffusion.noisy(net, batch, drawn.sigma, generator)
    before = diffusion.self_conditioning_estimate(net, batch, x, drawn, generator)
    seen = before.abs().sum(-1) > 0
    assert seen.any(1).float().mean() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(seen[seen.any(1)], drawn.predicted[seen.any(1)]) and not before.requires_grad
    hidden = diffusion.encode(net, x, drawn.sigma, batch)
    weights = diffusion.within_support(diffusion.logits(net, hidden[drawn.predicted], net.table())).softmax(-1)
    expected = torch.zeros_like(x).masked_scatter(drawn.predicted[..., None], weights @ net.table())
    assert torch.allclose(before[seen.any(1)], expected[seen.any(1)], atol=1e-5)


def test_the_number_of_forward_passes_does_not_depend_on_the_draws() -> None:
    """Otherwise processes that hold shares of the weights (FSDP) would wait for each other."""
    diffusion, net, calls = process(self_conditioning=True), denoiser(self_conditioning=True), []
    encode = net.encode
    net.encode = lambda *arguments: calls.append(len(arguments[0])) or encode(*arguments)
    batch = BATCH.rows(slice(0, 1))
    for seed in range(8):
        drawn = diffusion.draw(net, batch, seeded(seed), Share())
        x = diffusion.noisy(net, batch, drawn.sigma, seeded(seed))
        seen = diffusion.self_conditioning_estimate(net, batch, x, drawn, seeded(seed)).any()
        assert seen == (torch.rand(1, generator=seeded(seed), dtype=torch.float64) < 0.5)
    assert calls == [1] * 8
