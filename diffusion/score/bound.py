"""The score-based process's bound of -log p(x0), and its cross-entropy by noise level.

The sampler `sde` is a hierarchy of Gaussians (Kingma et al. 2021, arXiv 2107.00630, Eqs. 11 to 18): p(x_T) is
N(0, sigma_max^2 + 1), p(x_s | x_t) is q(x_s | x_t, x0) at the estimate x0_hat(x_t) of the clean embeddings e(x0), and
at the lowest level every token is drawn from p(x0 | x_t). Its evidence bound, in nats, is the sum over tokens of

    prior            E / 2 log(1 + 1 / sigma_max^2)                                  since |e|^2 = E
    diffusion        sum over steps from t to s of (1 / s^2 - 1 / t^2) |e - x0_hat|^2 / 2; in the limit of ever finer
                     ones the integral of |e - x0_hat|^2 / sigma^3 from sigma_min to sigma_max
    reconstruction   -log p(x0 | x_t) at sigma_min

which holds for any estimate that is a function of x_t alone. A network that is to know an estimate is therefore asked
twice at every level, here and by `sde`, the second time with the estimate of the first.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from draws import uniform
from noise_levels import ladder, rising_places
from process import Batch, Bound, BoundArgs, Generators, ScoreDenoiser, UserError

if TYPE_CHECKING:
    from diffusion_score import ScoreDiffusion

EVALUATIONS, MOST_STEPS = 16, 10_000
REPORTED = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
"""Levels at which the cross-entropy is reported, as far as there are such, besides the highest."""


def bound(
    process: "ScoreDiffusion",
    denoiser: ScoreDenoiser,
    batch: Batch,
    num_steps: float,
    args: BoundArgs,
    generator: Generators,
) -> Bound:
    """See `ScoreDiffusion.bound`; every level has noise of its own."""
    schedule, noised, number = process.schedule(denoiser), batch.noised, batch.target_mask.sum(1).double()
    prior = number * denoiser.embedding_size / 2 * math.log1p(schedule.sigma_max**-2)
    terms, lowest = terms_of(process, denoiser, batch, num_steps, args, generator)
    diffusion, clean, table = torch.zeros_like(prior), denoiser.embed(batch.input_ids), denoiser.table()
    for sigma, weight in terms:
        hidden = look(process, denoiser, batch, sigma.float() * noised, table, generator)
        error = (clean - process.estimate(denoiser, hidden, noised, table)).double().square().sum(-1)
        diffusion += (weight * error * batch.target_mask).sum(1)
    hidden = look(process, denoiser, batch, lowest.float() * noised, table, generator)
    forwards = torch.full_like(prior, (1 + denoiser.self_conditioning) * (len(terms) + 1))
    return Bound(prior, diffusion, nats_of(process, denoiser, batch, hidden), forwards)


def terms_of(
    process: "ScoreDiffusion",
    denoiser: ScoreDenoiser,
    batch: Batch,
    num_steps: float,
    args: BoundArgs,
    generator: Generators,
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """The levels of the diffusion term and what |e - x0_hat|^2 weighs at each; and the lowest: float64 [B, L or 1].

    windows: every step of the sampler, from each level to the next. stratified: some of them, or, in the limit, places
    spread evenly over log sigma, by which the integral of sigma^-2 d log sigma is estimated.

    Raises:
        UserError: for another estimator, or steps that this process does not have.
    """
    if args.estimator not in ("windows", "stratified"):
        raise UserError(f"estimator={args.estimator} is for masked processes; process=score has windows and stratified")
    schedule, noised, number = process.schedule(denoiser), batch.noised, args.evaluations or EVALUATIONS
    check_steps(process, num_steps, limit=True)
    if math.isinf(num_steps):
        if args.estimator == "windows":
            raise UserError("estimator=windows: in the limit there is no end of them; give num_steps, or stratified")
        width = math.log(schedule.sigma_max / schedule.sigma_min)
        level = schedule.sigma_min * torch.exp(spread(len(noised), number, generator).to(noised.device) * width)
        lowest = torch.full_like(level[:, :1], schedule.sigma_min)
        return [(each[:, None], width / number / each[:, None].square()) for each in level.T], lowest
    levels = levels_of(process, denoiser, noised, int(num_steps)).clamp(min=1e-9)  # of what is given, any
    weights = (levels[1:] ** -2 - levels[:-1] ** -2) / 2
    if args.estimator == "windows" or len(weights) == 0:
        return list(zip(levels[:-1], weights, strict=True)), levels[-1]
    place = spread(len(noised), number, generator).to(noised.device)
    chosen = (place * len(weights)).long().clamp(max=len(weights) - 1).T
    rows = torch.arange(len(noised), device=noised.device)
    return [(levels[each, rows], weights[each, rows] * len(weights) / number) for each in chosen], levels[-1]


def check_steps(process: "ScoreDiffusion", num_steps: float, *, limit: bool = False) -> None:
    """Refuses a number of steps that there cannot be.

    Args:
        process: whose time may be continuous.
        num_steps: of a sample or bound.
        limit: whether there may be no end of them, if it is.

    Raises:
        UserError: with the bound.
    """
    most = int(min(MOST_STEPS, process.num_steps))
    if num_steps > most and not (math.isinf(num_steps) and limit and math.isinf(process.num_steps)):
        raise UserError(f"num_steps={num_steps:g}: this takes whole steps, {most:,} at most; give fewer")


def levels_of(process: "ScoreDiffusion", denoiser: ScoreDenoiser, noised: Tensor, num_steps: int) -> Tensor:
    """The levels that a sampler asks at, highest first, float64 [num_steps, B, L], 0 at what is given."""
    schedule, rungs = process.schedule(denoiser), ladder(num_steps).to(noised.device)
    if process.args.level_order == "rising":
        places = torch.stack([rising_places(rung.expand(len(noised)), noised) for rung in rungs])
    else:
        places = process.places(denoiser, rungs).detach()[:, None, None].expand(-1, *noised.shape)
    return schedule(places) * noised


def spread(rows: int, number: int, generator: Generators) -> Tensor:
    """Of every sentence, one place in each of so many equal parts of [0, 1): float64 [rows, number]."""
    return (torch.arange(number) + uniform(torch.ones(rows, number, dtype=torch.bool), generator)) / number


def look(
    process: "ScoreDiffusion",
    denoiser: ScoreDenoiser,
    batch: Batch,
    sigma: Tensor,
    table: Tensor,
    generator: Generators,
) -> Tensor:
    """Hidden states of a batch noised to levels [B, L]; a network that is to know an estimate before is asked twice."""
    x = process.noisy(denoiser, batch, sigma, generator)
    hidden = process.encode(denoiser, x, sigma, batch)
    if not denoiser.self_conditioning:
        return hidden
    before = process.estimate(denoiser, hidden, sigma > 0, table)
    return process.encode(denoiser, x, sigma, batch, before)


def nats_of(process: "ScoreDiffusion", denoiser: ScoreDenoiser, batch: Batch, hidden: Tensor) -> Tensor:
    """-log p(x0 | x_t) of every sentence's targets, float64 [B]."""
    where = batch.target_mask
    nats = process.cross_entropy(denoiser, batch, hidden, where)
    sums = torch.zeros(len(where), dtype=torch.float64, device=where.device)
    return sums.index_add(0, where.nonzero()[:, 0], nats)


def reported(process: "ScoreDiffusion", denoiser: ScoreDenoiser) -> list[float]:
    """Levels at which the cross-entropy is reported."""
    schedule = process.schedule(denoiser)
    return [*(sigma for sigma in REPORTED if schedule.sigma_min <= sigma < schedule.sigma_max), schedule.sigma_max]


def profile(process: "ScoreDiffusion", denoiser: ScoreDenoiser, batch: Batch, generator: Generators) -> Tensor:
    """Cross-entropy at some levels, the same for every position: float64 [number of levels, B] in nats."""
    table = denoiser.table()
    looks = (
        look(process, denoiser, batch, sigma * batch.noised, table, generator) for sigma in reported(process, denoiser)
    )
    return torch.stack([nats_of(process, denoiser, batch, hidden) for hidden in looks])
