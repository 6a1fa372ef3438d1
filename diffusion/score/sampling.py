"""Samplers of the score-based process: free functions of one signature, from noise at the highest level to embeddings.

    sampler(denoise, x, levels, noise) -> x0

`denoise(x, sigma)` estimates the clean embeddings, `levels` are those it is asked at, highest first, and after the
last of them nothing noisy is left. A level is a tensor that broadcasts with x: positions may stand at levels of
their own, and those at 0 stay as they are. `noise()` draws standard normal numbers like x.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[], Tensor]
Levels = Sequence[Tensor]


def steps(levels: Levels) -> list[tuple[Tensor, Tensor]]:
    """The pairs (t, s) of levels, the last of which leads to 0."""
    return list(pairwise([*levels, torch.zeros_like(levels[-1])]))


def slope(x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """Dx / dsigma of the probability flow, (x - x0) / sigma; 0 where sigma is."""
    return torch.where(sigma > 0, (x - x0) / sigma.clamp(min=1e-12), 0.0)


def euler(denoise: Denoise, x: Tensor, levels: Levels, noise: Noise) -> Tensor:
    """The probability flow in straight steps; as many calls as levels, and no further noise."""
    for t, s in steps(levels):
        x = x + (s - t) * slope(x, denoise(x, t), t)
    return x


def heun(denoise: Denoise, x: Tensor, levels: Levels, noise: Noise) -> Tensor:
    """The same with the slope's mean over the step, but for the last: a call less than twice as many."""
    pairs = steps(levels)
    for t, s in pairs[:-1]:
        first = slope(x, denoise(x, t), t)
        there = x + (s - t) * first
        x = x + (s - t) * (first + slope(there, denoise(there, s), s)) / 2
    t, s = pairs[-1]
    return x + (s - t) * slope(x, denoise(x, t), t)


def renoise(denoise: Denoise, x: Tensor, levels: Levels, noise: Noise) -> Tensor:
    """Estimate, and noise the estimate anew to the next level ("iterative"); a level of 0 keeps it."""
    for t, s in steps(levels):
        x0 = denoise(x, t)
        x = torch.where(t > 0, x0 + s * noise(), x) if bool((s > 0).any()) else torch.where(t > 0, x0, x)
    return x


def ancestral(denoise: Denoise, x: Tensor, levels: Levels, noise: Noise) -> Tensor:
    """The reverse SDE in whole steps: x_s from q(x_s | x_t, x0) at the estimate, whose law the bound is of."""
    for t, s in steps(levels):
        kept = (s / t.clamp(min=1e-12)).square()
        drift = kept * x + (1 - kept) * denoise(x, t)
        spread = s * (1 - kept).clamp(min=0).sqrt()
        moved = drift + spread * noise() if bool((spread > 0).any()) else drift
        x = torch.where(t > 0, moved, x)
    return x


SAMPLERS = {"euler": euler, "heun": heun, "renoise": renoise, "sde": ancestral}
"""By the names that --sampler knows."""
