"""Noise levels of the score-based process, their distribution in training, and the choice of given tokens.

A noise level sigma is the standard deviation of the noise on every coordinate of an embedding. The relative level v is
0 at the lowest sigma and 1 at the highest. (The released code's u is 1 - v.)
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from diffusion.process_options import RISING_STEPS, SIGMA_MAX_PER_SQRT_E


@dataclass(frozen=True)
class RhoSchedule:
    """Noise levels whose rho-th roots are evenly spaced (Karras et al. 2022, Eq. 5)."""

    sigma_min: float
    sigma_max: float
    rho: float

    def __call__(self, v: Tensor) -> Tensor:
        """Return sigma at relative level v in [0, 1], in the shape and type of v."""
        low, high = (level ** (1 / self.rho) for level in (self.sigma_min, self.sigma_max))
        return (low + v * (high - low)) ** self.rho


class NoiseDraw(NamedTuple):
    """The noise of a training batch."""

    sigma: Tensor
    """float32 [B, L], 0 where no noise is added."""
    predicted: Tensor
    """bool [B, L], tokens whose cross-entropy is in the loss."""
    relative_level: Tensor
    """float64 [B], relative level of the sentence; with rising levels, the quantile of its progress."""
    single: Tensor
    """bool [B], True where the whole sentence has one level."""

    def means(self, nats: Tensor) -> tuple[Tensor, Tensor]:
        """Return each sentence's mean of `nats`, and the sentences that can fit the time warp.

        Args:
            nats: [n], cross-entropies of the predicted tokens, row by row.

        Returns:
            Means [B], and bool [B], True for a sentence at a single level with at least one predicted token.
        """
        number = self.predicted.sum(1)
        sums = torch.zeros(len(number), dtype=nats.dtype, device=nats.device)
        sums = sums.index_add(0, self.predicted.nonzero()[:, 0], nats)
        return sums / number.clamp(min=1), self.single & (number > 0)


# ---- scalings, for data of unit variance in every coordinate (Karras et al. 2022, table 1) ---------------------------
# c_skip and c_out belong to networks that estimate embeddings; the networks here predict tokens.


def c_in(sigma: Tensor) -> Tensor:
    """Return the factor that scales noisy embeddings to unit variance per coordinate."""
    return (sigma.square() + 1).rsqrt()


def loss_weight(sigma: Tensor) -> Tensor:
    """Return (sigma^2 + 1) / sigma^2, infinite where sigma is 0."""
    return (sigma.square() + 1) / sigma.square()


# ---- relative levels in training -------------------------------------------------------------------------------------


def position_relative_levels(noised: Tensor, generator: Generator | None = None) -> Tensor:
    """Draw a relative level for every position, stratified over its row; each is uniform on [0, 1), float64 [B, L].

    Args:
        noised: bool [B, L].
        generator: on the CPU, or on the device of `noised`.
    """
    device = noised.device if generator is None else generator.device
    drawn = torch.rand(2, *noised.shape, generator=generator, dtype=torch.float64, device=device).to(noised.device)
    # each position gets a stratum of its own, in random order
    order = drawn[0].masked_fill(~noised, 2).argsort(1).argsort(1)
    return (order + drawn[1]) / noised.sum(1, keepdim=True).clamp(min=1) % 1


def rising_relative_levels(start: Tensor, noised: Tensor, num_levels: int = RISING_STEPS, slope: float = 2.0) -> Tensor:
    """Return AR-Diffusion's relative levels, float64 [B, L]: tokens further left are noised later and revealed earlier.

    The relative levels of a text of N tokens lie on a line from a moving start point to a fixed end point. The start
    point moves from the last token to the first at level 0, then up the level axis. (Wu et al. 2023, arXiv 2305.09515,
    and its released code.)

    Args:
        start: [B] in [0, 1], progress of the start point: 0 for a clean text, 1 for pure noise.
        noised: bool [B, L], the tokens that count towards N.
        num_levels: T; the start point moves N + T - 1 steps in all.
        slope: position of the end point, which is at the highest level, as a multiple of N.
    """
    length, top = noised.sum(1, keepdim=True).double(), num_levels - 1.0
    column = (noised.cumsum(1) - 1).double()
    moved = start.double()[:, None] * (length + top)
    start_column, start_level = (length - 1 - moved).clamp(min=0), (moved - (length - 1)).clamp(min=0)
    ascent = (top - start_level) * (column - start_column)
    line = start_level + ascent / (slope * length - start_column).clamp(min=1e-9)
    return (line / top).clamp(0, 1)


# ---- given tokens in training ----------------------------------------------------------------------------------------


def draw_given(target_mask: Tensor, share: float, kinds: list[str], generator: Generator | None = None) -> Tensor:
    """Draw the targets that are given as context, bool [B, L]; at least one target per sentence stays noisy.

    The number of given targets is uniform from none to all but one.

    Args:
        target_mask: bool [B, L].
        share: probability that a sentence has given targets.
        kinds: one is drawn per sentence, uniformly. prefix: the first targets; span: a contiguous span; infill: any.
        generator: on the CPU, or on the device of `target_mask`.
    """
    device = target_mask.device if generator is None else generator.device
    coins = torch.rand(4, len(target_mask), generator=generator, dtype=torch.float64, device=device)
    scattered = torch.rand(target_mask.shape, generator=generator, dtype=torch.float64, device=device)
    coins, scattered = coins.to(target_mask.device), scattered.to(target_mask.device)
    length = target_mask.sum(1)
    number = (coins[0] * length).long().clamp(max=(length - 1).clamp(min=0))  # 0 .. length - 1
    begin = (coins[1] * (length - number + 1)).long()
    column = target_mask.cumsum(1) - 1
    order = scattered.masked_fill(~target_mask, 2).argsort(1).argsort(1)
    masks = {
        "prefix": column < number[:, None],
        "span": (column >= begin[:, None]) & (column < (begin + number)[:, None]),
        "infill": order < number[:, None],
    }
    which = (coins[2] * len(kinds)).long()
    chosen = torch.stack([masks[kind] for kind in kinds])[which, torch.arange(len(which), device=which.device)]
    return chosen & target_mask & (coins[3] < share)[:, None]


def relative_level_grid(num_steps: int) -> Tensor:
    """Return the relative levels of the reverse steps, from the highest to the lowest, float64 [num_steps]."""
    return torch.linspace(1, 0, num_steps, dtype=torch.float64) if num_steps > 1 else torch.ones(1, dtype=torch.float64)


def default_sigma_max(width: int) -> float:
    """Return the level at which x_t carries at most E / 2 log(1 + 1 / sigma^2) = .0014 nats about a token."""
    return SIGMA_MAX_PER_SQRT_E * math.sqrt(width)


def anisotropy(table: Tensor) -> float:
    """Return the mean cosine between two different embeddings of the table [V, E]; 0 for isotropic directions."""
    direction = torch.nn.functional.normalize(table.detach().double(), dim=-1)
    number = len(direction)
    return float((direction.sum(0).square().sum() - direction.square().sum()) / (number * (number - 1)))
