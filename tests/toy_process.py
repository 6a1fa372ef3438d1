"""A word-frequency process small enough to enumerate, and its exact distribution in plain Python arithmetic."""

import itertools
import math

import torch
from torch import Tensor

from diffusion.options import step_windows
from diffusion.process import Vocabulary
from diffusion.process_options import WordFreqArgs
from diffusion_word_freq import WordFreqDiffusion
from tests.conftest import TableDenoiser, all_sentences, text_batch

MASK = 3  # not the last index, so that an off-by-one error shows
COUNTS = torch.tensor([40, 7, 1, 0, 15])
TOKENS = [0, 1, 2, 4]
SCHEDULES = ["mutual", "cosine", "linear"]
SPINDLES = ["paper", "released", "none"]


def make(
    num_steps: int = 4,
    spindle: str = "paper",
    lam: float = 0.3,
    schedule: str = "mutual",
    *,
    fused_loss: bool = False,
    **settings,
) -> WordFreqDiffusion:
    args = WordFreqArgs(num_steps=num_steps, schedule=schedule, spindle=spindle, word_freq_lambda=lam, **settings)
    return WordFreqDiffusion(args, COUNTS, Vocabulary(len(COUNTS), MASK), fused_loss=fused_loss)


def steps(n: int, value: int) -> Tensor:
    return torch.full((n,), value)


def every(x: Tensor) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool)


def reverse_probability(
    process: WordFreqDiffusion, denoiser: TableDenoiser, xt: Tensor, xs: Tensor, s: int, t: int
) -> float:
    """Return p_theta(x_s | x_t) of one pair of states, from its definition in plain Python arithmetic."""
    length = len(xt)
    logits = denoiser.encode(xt[None], steps(1, t), every(xt[None]))[0].clone()
    logits[:, MASK] = -math.inf
    pi = logits.softmax(-1)
    mean = (
        sum(
            (pi[i] * process.schedule.statistic).sum() if xt[i] == MASK else process.schedule.statistic[xt[i]]
            for i in range(length)
        )
        / length
    )
    probability = 1.0
    for i in range(length):
        if xt[i] != MASK:
            probability *= float(xs[i] == xt[i])
            continue
        u = [
            process.schedule.reveal_probability(
                torch.tensor(s),
                torch.tensor(t),
                process.schedule.informativeness_of(process.schedule.statistic[k], mean),
            )
            for k in range(5)
        ]
        revealed = [float(pi[i, k] * u[k]) for k in range(5)]
        probability *= 1 - sum(revealed) if xs[i] == MASK else revealed[xs[i]]
    return probability


def true_likelihoods(
    process: WordFreqDiffusion, denoiser: TableDenoiser, length: int, num_windows: int
) -> dict[tuple, float]:
    """Return p_theta(x0) of every sentence, by propagating the distribution over all V ** L states."""
    states = [tuple(s) for s in all_sentences([0, 1, 2, 3, 4], length).tolist()]
    law = {tuple([MASK] * length): 1.0}
    for t, s in step_windows(process.num_steps, num_windows):
        following: dict[tuple, float] = {}
        for xt, mass in law.items():
            for xs in states:
                step = reverse_probability(process, denoiser, torch.tensor(xt), torch.tensor(xs), s, t)
                if step > 1e-12:  # at the last step, 1 - sum is a rounding error
                    following[xs] = following.get(xs, 0.0) + mass * step
        law = following
    return law


def exact_bound(
    process: WordFreqDiffusion, denoiser: TableDenoiser, x0: Tensor, num_windows: int, *, only_last: bool = False
) -> float:
    """Return E over x_t of the public `token_terms`, over every mask pattern at every window, or at the last window."""
    total = 0.0
    length = len(x0)
    for t, s in step_windows(process.num_steps, num_windows):
        if only_last and s > 0:
            continue
        keep = process.alpha_bar(steps(1, t), x0[None], every(x0[None]))[0]
        for pattern in itertools.product([False, True], repeat=length):
            masked = torch.tensor(pattern)
            weight = torch.where(masked, 1 - keep, keep).prod().item()
            if masked.any() and weight > 0:
                batch = text_batch(x0[None])
                xt = x0.masked_fill(masked, MASK)[None]
                kl, _ = process.token_terms(denoiser, batch, xt, steps(1, s), steps(1, t))
                total += weight * kl.sum().item()
    return total
