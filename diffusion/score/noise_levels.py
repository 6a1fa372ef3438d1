"""Noise levels of the score-based process: how high, in what steps, drawn how; and which tokens are given in training.

A level sigma is the standard deviation of the noise on every coordinate of an embedding. Its place v is 0 at the lowest
level and 1 at the highest. (The released code's u is 1 - v.)
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

KINDS = ("prefix", "span", "infill")
"""Parts of a text that may be given."""
RISING = 2000
"""Whole steps of levels that rise from left to right: AR-Diffusion's."""
REACH = 18.75
"""sigma_max over the square root of E where none is given: CDCD's 300 at its width of 256."""


@dataclass(frozen=True)
class RhoSchedule:
    """Levels whose rho-th roots are evenly spaced (Karras et al. 2022, Eq. 5)."""

    sigma_min: float
    sigma_max: float
    rho: float

    def __call__(self, v: Tensor) -> Tensor:
        """The level at place v in [0, 1], of v's shape and type."""
        low, high = (level ** (1 / self.rho) for level in (self.sigma_min, self.sigma_max))
        return (low + v * (high - low)) ** self.rho


class Drawn(NamedTuple):
    """The noise of a training batch."""

    sigma: Tensor
    """float32 [B, L], 0 where nothing is noisy."""
    learnt: Tensor
    """bool [B, L], what is to be named."""
    place: Tensor
    """float64 [B], of a sentence's level between the lowest and the highest."""
    single: Tensor
    """bool [B], whether all of the sentence has that level."""

    def means(self, nats: Tensor) -> tuple[Tensor, Tensor]:
        """Of [n] of what is learnt, each sentence's mean, [B]; and whether it is one at a single level, bool [B]."""
        number = self.learnt.sum(1)
        sums = torch.zeros(len(number), dtype=nats.dtype, device=nats.device)
        sums = sums.index_add(0, self.learnt.nonzero()[:, 0], nats)
        return sums / number.clamp(min=1), self.single & (number > 0)


# ---- scalings, for data of unit size in every coordinate (Karras et al. 2022, table 1) -------------------------------
# A network that estimates embeddings has c_skip and c_out, too; those here name tokens.


def c_in(sigma: Tensor) -> Tensor:
    """What noisy embeddings are multiplied by, so that the network sees coordinates of unit size."""
    return (sigma.square() + 1).rsqrt()


def loss_weight(sigma: Tensor) -> Tensor:
    """(sigma^2 + 1) / sigma^2, infinite where nothing is noisy."""
    return (sigma.square() + 1) / sigma.square()


# ---- places, drawn for training --------------------------------------------------------------------------------------


def places_of_positions(noised: Tensor, generator: Generator | None = None) -> Tensor:
    """A place for every position, evenly spread over its row: each is uniform, float64 [B, L].

    Args:
        noised: bool [B, L].
        generator: on the CPU, or on `noised`'s device.
    """
    device = noised.device if generator is None else generator.device
    drawn = torch.rand(2, *noised.shape, generator=generator, dtype=torch.float64, device=device).to(noised.device)
    order = drawn[0].masked_fill(~noised, 2).argsort(1).argsort(1)  # a random slice for each, no two of a row alike
    return (order + drawn[1]) / noised.sum(1, keepdim=True).clamp(min=1) % 1


def rising_places(start: Tensor, noised: Tensor, num_levels: int = RISING, slope: float = 2.0) -> Tensor:
    """AR-Diffusion's places: what is further left is noised later, and written sooner. float64 [B, L].

    The levels of a text of N tokens lie on a line from where the text, or the noise, is left to a fixed far end. It
    begins at the last token and wanders to the first, then upwards. (Wu et al. 2023, arXiv 2305.09515, and its code.)

    Args:
        start: [B] in [0, 1], how far it has wandered: 0 where the whole text is clean, 1 where it is all noise.
        noised: bool [B, L], the tokens that are counted.
        num_levels: T; there are N + T - 1 steps to wander.
        slope: the far end is at the highest level, at so many times the length of the text.
    """
    length, top = noised.sum(1, keepdim=True).double(), num_levels - 1.0
    column = (noised.cumsum(1) - 1).double()
    wandered = start.double()[:, None] * (length + top)
    foot, rise = (length - 1 - wandered).clamp(min=0), (wandered - (length - 1)).clamp(min=0)
    line = rise + (top - rise) * (column - foot) / (slope * length - foot).clamp(min=1e-9)
    return (line / top).clamp(0, 1)


# ---- what is given in training ---------------------------------------------------------------------------------------


def draw_given(target_mask: Tensor, share: float, kinds: list[str], generator: Generator | None = None) -> Tensor:
    """Bool [B, L]: the targets that are given this time, in a share of the sentences; never all of a sentence.

    How many is drawn evenly from none to all but one. prefix: the first; span: neighbours anywhere; infill: any.

    Args:
        target_mask: bool [B, L].
        share: of the sentences.
        kinds: each as likely as the others.
        generator: on the CPU, or on `target_mask`'s device.
    """
    device = target_mask.device if generator is None else generator.device
    words = {"generator": generator, "dtype": torch.float64, "device": device}
    coins = torch.rand(4, len(target_mask), **words).to(target_mask.device)
    scattered = torch.rand(target_mask.shape, **words).to(target_mask.device)
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


def ladder(num_steps: int) -> Tensor:
    """The places that reverse steps look at, from the highest down to the lowest, float64 [num_steps]."""
    return torch.linspace(1, 0, num_steps, dtype=torch.float64) if num_steps > 1 else torch.ones(1, dtype=torch.float64)


def sigma_max_for(width: int) -> float:
    """The level at which nothing is left of a token: it tells E / 2 log(1 + 1 / sigma^2) = .0014 nats at most."""
    return REACH * math.sqrt(width)


def anisotropy(table: Tensor) -> float:
    """Mean cosine of the angle between two different embeddings, [V, E]: 0 where they lie in all directions."""
    direction = torch.nn.functional.normalize(table.double(), dim=-1)
    number = len(direction)
    return float((direction.sum(0).square().sum() - direction.square().sum()) / (number * (number - 1)))
