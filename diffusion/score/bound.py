"""The score-based process's upper bound of -log p(x0), and its cross-entropy by noise level.

The sampler `sde` is a hierarchy of Gaussians (Kingma et al. 2021, arXiv 2107.00630, Eqs. 11 to 18). p(x_T) is
N(0, sigma_max^2 + 1). p(x_s | x_t) is q(x_s | x_t, x0) with the estimate x0_hat(x_t) in place of the clean embeddings
e(x0). At the lowest level every token is drawn from p(x0 | x_t). The evidence bound, in nats, is a sum over tokens of

    prior            E / 2 log(1 + 1 / sigma_max^2)                                  since |e|^2 = E
    diffusion        sum over steps from t to s of (1 / s^2 - 1 / t^2) |e - x0_hat|^2 / 2; in the limit of ever finer
                     steps the integral of |e - x0_hat|^2 / sigma^3 from sigma_min to sigma_max
    reconstruction   -log p(x0 | x_t) at sigma_min

The bound holds for any estimate that is a function of x_t alone. A self-conditioned network therefore takes two forward
passes per level, here and in `sde`: the second is conditioned on the estimate of the first.
"""

import math

import torch
from torch import Tensor

from data.batch import Batch
from diffusion.draws import Generators, uniform
from diffusion.options import BoundArgs
from diffusion.process import Bound, ScoreDenoiser
from diffusion.score.transitions import ScoreTransitions
from utils.errors import UserError

DEFAULT_EVALUATIONS = 16
REPORTED_LEVELS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
"""Noise levels at which the cross-entropy is reported, besides the highest, if the schedule contains them."""


def bound(
    process: ScoreTransitions,
    denoiser: ScoreDenoiser,
    batch: Batch,
    num_steps: float,
    args: BoundArgs,
    generator: Generators,
) -> Bound:
    """Estimate the bound; see `Process.bound`. Every level has its own noise."""
    schedule, noised, number = process.schedule(denoiser), batch.noised, batch.target_mask.sum(1).double()
    prior = number * denoiser.embedding_size / 2 * math.log1p(schedule.sigma_max**-2)
    terms, lowest = diffusion_terms(process, denoiser, noised, num_steps, args, generator)
    diffusion, clean, table = torch.zeros_like(prior), denoiser.embed(batch.input_ids), denoiser.table()
    for sigma, weight in terms:
        hidden = process.noisy_forward(denoiser, batch, sigma.float() * noised, table, generator)
        error = (clean - process.estimate(denoiser, hidden, noised, table)).double().square().sum(-1)
        diffusion += (weight * error * batch.target_mask).sum(1)
    hidden = process.noisy_forward(denoiser, batch, lowest.float() * noised, table, generator)
    forwards = torch.full_like(prior, (1 + denoiser.self_conditioning) * (len(terms) + 1))
    return Bound(prior, diffusion, process.sentence_nats(denoiser, batch, hidden), forwards)


def diffusion_terms(
    process: ScoreTransitions,
    denoiser: ScoreDenoiser,
    noised: Tensor,
    num_steps: float,
    args: BoundArgs,
    generator: Generators,
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Return the diffusion term as pairs of a level and the weight of |e - x0_hat|^2, and the lowest level.

    windows: every step of the sampler. stratified: a stratified sample of the steps; in the limit, levels stratified
    over log sigma, which estimate the integral of sigma^-2 d log sigma.

    Args:
        process, denoiser: the process and its network.
        noised: bool [B, L], the tokens that have noise.
        num_steps, args, generator: see `Process.bound`.

    Returns:
        Pairs of float64 tensors, [B, L or 1] each, and the lowest level, float64 [B, L or 1].

    Raises:
        UserError: for another estimator, or a number of steps that this process does not have.
    """
    if args.estimator not in ("windows", "stratified"):
        raise UserError(f"estimator={args.estimator} is for masked processes; process=score has windows and stratified")
    schedule, number = process.schedule(denoiser), args.evaluations or DEFAULT_EVALUATIONS
    process.check_steps(num_steps, limit=True)
    if math.isinf(num_steps):
        if args.estimator == "windows":
            raise UserError("estimator=windows: num_steps=inf has infinitely many; give num_steps, or stratified")
        width = math.log(schedule.sigma_max / schedule.sigma_min)
        quantiles = stratified_quantiles(len(noised), number, generator).to(noised.device)
        level = schedule.sigma_min * torch.exp(quantiles * width)
        lowest = torch.full_like(level[:, :1], schedule.sigma_min)
        return [(each[:, None], width / number / each[:, None].square()) for each in level.T], lowest
    # given tokens have level 0, and their weight is never used
    levels = process.levels(denoiser, noised, int(num_steps)).clamp(min=1e-9)
    weights = (levels[1:] ** -2 - levels[:-1] ** -2) / 2
    if args.estimator == "windows" or len(weights) == 0:
        return list(zip(levels[:-1], weights, strict=True)), levels[-1]
    quantiles = stratified_quantiles(len(noised), number, generator).to(noised.device)
    chosen = (quantiles * len(weights)).long().clamp(max=len(weights) - 1).T
    rows = torch.arange(len(noised), device=noised.device)
    return [(levels[each, rows], weights[each, rows] * len(weights) / number) for each in chosen], levels[-1]


def stratified_quantiles(rows: int, number: int, generator: Generators) -> Tensor:
    """Draw one number from each of `number` equal parts of [0, 1), for every sentence, float64 [rows, number]."""
    return (torch.arange(number) + uniform(torch.ones(rows, number, dtype=torch.bool), generator)) / number


def reported_levels(process: ScoreTransitions, denoiser: ScoreDenoiser) -> list[float]:
    """Return the noise levels at which the cross-entropy is reported."""
    schedule = process.schedule(denoiser)
    return [
        *(sigma for sigma in REPORTED_LEVELS if schedule.sigma_min <= sigma < schedule.sigma_max),
        schedule.sigma_max,
    ]


def profile(process: ScoreTransitions, denoiser: ScoreDenoiser, batch: Batch, generator: Generators) -> Tensor:
    """Return the cross-entropy at each reported level, the same for all positions, float64 [levels, B], nats."""
    table = denoiser.table()
    passes = (
        process.noisy_forward(denoiser, batch, sigma * batch.noised, table, generator)
        for sigma in reported_levels(process, denoiser)
    )
    return torch.stack([process.sentence_nats(denoiser, batch, hidden) for hidden in passes])
