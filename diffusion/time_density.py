"""Density of the training times: uniform, or a bell that trains more on some mask rates.

Times are relative, t/T in [0, 1]; for mutual and loglinear schedules the relative time is the mask rate of an average
token. A loss with the weights of the bound is divided by the density, so that it stays an unbiased estimate of the
bound. (A narrow density makes some weights so large that no finite training shows this; main.py refuses it.) A loss
with uniform weights is not: its expectation weighs the mask rates by the density.
Bell-shaped densities: Hong et al. 2026, "Understanding and Accelerating the Training of Masked Diffusion Language
Models", arXiv 2605.13026.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MIDPOINTS = 4096
"""Points of equal probability by which a mean over continuous time is computed."""


@dataclass(frozen=True)
class TimeDensity:
    """Gaussian density of the relative time, truncated to [0, 1]; uniform if its width is infinite."""

    centre: float = 0.5
    """Relative time of the maximum."""
    width: float = math.inf
    """Standard deviation before truncation."""

    @property
    def is_uniform(self) -> bool:
        """Whether all times are equally likely."""
        return math.isinf(self.width)

    def _score(self, time: Tensor) -> Tensor:
        return (time.double() - self.centre) / self.width

    @property
    def _ends(self) -> tuple[float, float]:
        first, last = torch.special.ndtr(self._score(torch.tensor([0.0, 1.0]))).tolist()
        return first, last

    def time_at(self, share: Tensor) -> Tensor:
        """Return the relative time below which a `share` in [0, 1] of all times lies, float64."""
        if self.is_uniform:
            return share
        first, last = self._ends
        z = torch.special.ndtri(first + (last - first) * share.double())
        return (self.centre + self.width * z).clamp(0, 1)

    def probability(self, low: Tensor, high: Tensor) -> Tensor:
        """Return the probability of a relative time between `low` and `high`, float64."""
        if self.is_uniform:
            return high - low
        first, last = self._ends
        low, high = self._score(low) / math.sqrt(2), self._score(high) / math.sqrt(2)
        low, high = torch.where(low > 0, low, -high), torch.where(low > 0, high, -low)  # no difference of tails near 1
        return (torch.special.erfc(low) - torch.special.erfc(high)) / (2 * (last - first))

    def weight(self, time: Tensor) -> Tensor:
        """Return 1 / density at relative times, float64: its mean over drawn times is 1."""
        if self.is_uniform:
            return torch.ones_like(time, dtype=torch.float64)
        first, last = self._ends
        z = self._score(time)
        return (last - first) * self.width * math.sqrt(2 * math.pi) * (z * z / 2).exp()

    @property
    def largest_weight(self) -> float:
        """Largest 1 / density, at one of the ends."""
        return self.weight(torch.tensor([0.0, 1.0])).max().item()

    def step_weight(self, step: Tensor, num_steps: int) -> Tensor:
        """Return 1 / (T times the probability of a step), float64, for steps in 1..T."""
        if self.is_uniform:
            return torch.ones_like(step, dtype=torch.float64)
        step = step.double()
        return 1 / (num_steps * self.probability((step - 1) / num_steps, step / num_steps))

    def step_mean(self, values: Tensor) -> Tensor:
        """Return the expectation of a value per step 1..T, float64 [T], at a drawn step."""
        if self.is_uniform:
            return values.mean()
        edges = torch.arange(len(values) + 1, dtype=torch.float64, device=values.device) / len(values)
        return self.probability(edges[:-1], edges[1:]) @ values

    def midpoints(self) -> Tensor:
        """Return MIDPOINTS relative times of equal probability, over which a mean over all times is taken."""
        return self.time_at((torch.arange(MIDPOINTS, dtype=torch.float64) + 0.5) / MIDPOINTS)


UNIFORM = TimeDensity()
"""All times equally likely."""
