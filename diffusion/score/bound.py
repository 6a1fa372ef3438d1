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

from data.batch import Batch
from diffusion.draws import Generators, uniform
from diffusion.options import BoundArgs
from diffusion.process import Bound, ScoreDenoiser
from diffusion.score.transitions import ScoreTransitions
from utils.errors import UserError

EVALUATIONS = 16
REPORTED = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
"""Levels at which the cross-entropy is reported, as far as there are such, besides the highest."""


def bound(
    process: ScoreTransitions,
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
        hidden = process.look(denoiser, batch, sigma.float() * noised, table, generator)
        error = (clean - process.estimate(denoiser, hidden, noised, table)).double().square().sum(-1)
        diffusion += (weight * error * batch.target_mask).sum(1)
    hidden = process.look(denoiser, batch, lowest.float() * noised, table, generator)
    forwards = torch.full_like(prior, (1 + denoiser.self_conditioning) * (len(terms) + 1))
    return Bound(prior, diffusion, process.sentence_nats(denoiser, batch, hidden), forwards)


def terms_of(
    process: ScoreTransitions,
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
    process.check_steps(num_steps, limit=True)
    if math.isinf(num_steps):
        if args.estimator == "windows":
            raise UserError("estimator=windows: in the limit there is no end of them; give num_steps, or stratified")
        width = math.log(schedule.sigma_max / schedule.sigma_min)
        level = schedule.sigma_min * torch.exp(spread(len(noised), number, generator).to(noised.device) * width)
        lowest = torch.full_like(level[:, :1], schedule.sigma_min)
        return [(each[:, None], width / number / each[:, None].square()) for each in level.T], lowest
    levels = process.levels(denoiser, noised, int(num_steps)).clamp(min=1e-9)  # of what is given, any
    weights = (levels[1:] ** -2 - levels[:-1] ** -2) / 2
    if args.estimator == "windows" or len(weights) == 0:
        return list(zip(levels[:-1], weights, strict=True)), levels[-1]
    place = spread(len(noised), number, generator).to(noised.device)
    chosen = (place * len(weights)).long().clamp(max=len(weights) - 1).T
    rows = torch.arange(len(noised), device=noised.device)
    return [(levels[each, rows], weights[each, rows] * len(weights) / number) for each in chosen], levels[-1]


def spread(rows: int, number: int, generator: Generators) -> Tensor:
    """Of every sentence, one place in each of so many equal parts of [0, 1): float64 [rows, number]."""
    return (torch.arange(number) + uniform(torch.ones(rows, number, dtype=torch.bool), generator)) / number


def reported(process: ScoreTransitions, denoiser: ScoreDenoiser) -> list[float]:
    """Levels at which the cross-entropy is reported."""
    schedule = process.schedule(denoiser)
    return [*(sigma for sigma in REPORTED if schedule.sigma_min <= sigma < schedule.sigma_max), schedule.sigma_max]


def profile(process: ScoreTransitions, denoiser: ScoreDenoiser, batch: Batch, generator: Generators) -> Tensor:
    """Cross-entropy at some levels, the same for every position: float64 [number of levels, B] in nats."""
    table = denoiser.table()
    looks = (
        process.look(denoiser, batch, sigma * batch.noised, table, generator) for sigma in reported(process, denoiser)
    )
    return torch.stack([process.sentence_nats(denoiser, batch, hidden) for hidden in looks])


if TYPE_CHECKING:
    pass
