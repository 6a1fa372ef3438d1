"""Noise schedules of MDLM, D3PM and SEDD: total noise sigma(t) for t in [0, 1].

A token is unmasked at t with probability alpha_bar(t) = exp(-sigma(t)). The released code calls 1 - alpha_bar the move
chance; here it is the mask rate. The published schedules do not reach both ends: alpha_bar(1) is 0.001, or alpha_bar(0)
is below 1. A bound needs alpha_bar(1) = 0, since a token that is visible at t = 1 has an infinite prior KL. `closed`
rescales alpha_bar linearly to run from 1 to 0; for loglinear this gives exactly 1 - t.
Source: Sahoo et al. 2024 (MDLM), arXiv 2406.07524; Lou et al. 2023 (SEDD), arXiv 2310.16834; their released code.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from diffusion.options import step_windows
from diffusion.time_density import UNIFORM, TimeDensity

EPSILON = 1e-3
"""alpha_bar(1) of loglinear and both cosines."""


@dataclass(frozen=True)
class NoiseSchedule:
    """A noise schedule, given by three functions of float64 tensors."""

    alpha_bar: Callable[[Tensor], Tensor]
    """alpha_bar(t)."""
    slope: Callable[[Tensor], Tensor]
    """-d alpha_bar / dt at t."""
    time: Callable[[Tensor], Tensor]
    """Inverse of alpha_bar: the t at which it has a given value."""

    def sigma(self, t: Tensor) -> Tensor:
        """Return the total noise, -log alpha_bar(t)."""
        return -self.alpha_bar(t.double()).log()

    def rate(self, t: Tensor) -> Tensor:
        """Return the noise rate, d sigma / dt."""
        return self.slope(t.double()) / self.alpha_bar(t.double())

    def weight(self, t: Tensor) -> Tensor:
        """Return the weight of a masked token's cross-entropy: rate / (exp(sigma) - 1) = slope / (1 - alpha_bar)."""
        return self.slope(t.double()) / (1 - self.alpha_bar(t.double()))

    def closed_weight(self, t: Tensor) -> Tensor:
        """Return the weight under `closed`, which makes the loss unbiased; it equals `weight` if alpha_bar(0) = 1."""
        first, _ = self.ends
        return self.slope(t.double()) / (first - self.alpha_bar(t.double()))

    @cached_property
    def ends(self) -> tuple[float, float]:
        """Values alpha_bar(0) and alpha_bar(1)."""
        first, last = self.alpha_bar(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        return first, last

    def closed(self, t: Tensor) -> Tensor:
        """Return alpha_bar rescaled to be exactly 1 at t = 0 and 0 at t = 1, float64."""
        first, last = self.ends
        inside = (self.alpha_bar(t.double()) - last) / (first - last)
        return torch.where(t <= 0, 1.0, torch.where(t >= 1, 0.0, inside.clamp(0, 1)))

    def mean_mask_rate(self, density: TimeDensity = UNIFORM) -> float:
        """Return the mean of 1 - `closed` over t in [0, 1], drawn from a density."""
        return _mean_mask_rate(self, density)

    def time_at(self, level: Tensor) -> Tensor:
        """Return the t at which `closed` equals `level`."""
        first, last = self.ends
        return self.time(last + (first - last) * level.double()).clamp(0, 1)


@cache
def _mean_mask_rate(schedule: NoiseSchedule, density: TimeDensity) -> float:
    grid = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    return 1 - schedule.closed(grid if density.is_uniform else density.midpoints()).mean().item()


def _scaled(alpha_bar: Tensor) -> Tensor:
    return ((alpha_bar - EPSILON) / (1 - EPSILON)).clamp(0, 1)


def _from_sigma(sigma: Callable, rate: Callable, time: Callable) -> NoiseSchedule:
    def alpha_bar(t: Tensor) -> Tensor:
        return torch.exp(-sigma(t))

    return NoiseSchedule(alpha_bar, lambda t: rate(t) * alpha_bar(t), lambda a: time(-a.log()))


def linear(least: float = 0.0, most: float = 10.0) -> NoiseSchedule:
    """Return the schedule sigma(t) = least + t (most - least)."""
    span = most - least
    return _from_sigma(lambda t: least + t * span, lambda t: torch.full_like(t, span), lambda s: (s - least) / span)


def geometric(least: float = 1e-4, most: float = 20.0) -> NoiseSchedule:
    """Return the schedule of SEDD, sigma(t) = least^(1-t) most^t."""
    ratio = math.log(most / least)

    def sigma(t: Tensor) -> Tensor:
        return least * torch.exp(ratio * t)

    return _from_sigma(sigma, lambda t: ratio * sigma(t), lambda s: (s / least).log() / ratio)


SCHEDULES: dict[str, NoiseSchedule] = {
    "loglinear": NoiseSchedule(
        lambda t: 1 - (1 - EPSILON) * t,
        lambda t: torch.full_like(t, 1 - EPSILON),
        lambda a: (1 - a) / (1 - EPSILON),
    ),
    "cosine": NoiseSchedule(
        lambda t: EPSILON + (1 - EPSILON) * torch.cos(math.pi / 2 * t),
        lambda t: (1 - EPSILON) * math.pi / 2 * torch.sin(math.pi / 2 * t),
        lambda a: torch.acos(_scaled(a)) * 2 / math.pi,
    ),
    "cosinesqr": NoiseSchedule(
        lambda t: EPSILON + (1 - EPSILON) * torch.cos(math.pi / 2 * t) ** 2,
        lambda t: (1 - EPSILON) * math.pi / 2 * torch.sin(math.pi * t),
        lambda a: torch.acos(_scaled(a).sqrt()) * 2 / math.pi,
    ),
    "linear": linear(),
    "geometric": geometric(),
}
"""Schedules by their names in the released code. Under loglinear the mask rate is linear in t."""


def log_uniform_time(schedule: NoiseSchedule, u: Tensor) -> Tensor:
    """Return t for importance sampling: the log mask rate is uniform, so that all cross-entropies have equal weight.

    With u in [0, 1], the log mask rate is u f_1 + (1 - u) f_0, where f_0 and f_1 are its values at the ends.
    """
    f_0, f_1 = log_mask_rates(schedule)
    return schedule.time(1 - torch.exp(u.double() * f_1 + (1 - u.double()) * f_0))


def log_mask_rates(schedule: NoiseSchedule) -> tuple[float, float]:
    """Return the log mask rates at sigma_min = sigma(0) + EPSILON and at sigma_max = sigma(1), as released."""
    first, last = schedule.ends
    return math.log(-math.expm1(math.log(first) - EPSILON)), math.log(1 - last)


class ContinuousSchedule:
    """A `transitions.Schedule` of t in [0, 1], float64, whose alpha_bar is `NoiseSchedule.closed`.

    In continuous time (`num_steps` infinite) windows are of equal length; otherwise they lie on multiples of 1/T.
    """

    token_dependent = False

    def __init__(self, noise: NoiseSchedule, num_steps: float = math.inf, *, log_rate_input: bool = False) -> None:
        """Take a noise schedule.

        Args:
            noise: the noise schedule.
            num_steps: T; infinite in continuous time.
            log_rate_input: use the log mask rate, scaled to [0, 1], as time input instead of sigma.
        """
        self.noise, self.num_steps, self.log_rate_input = noise, num_steps, log_rate_input
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> "ContinuousSchedule":
        """Set the device of later windows; return self."""
        self.device = device
        return self

    def windows(self, num_steps: int) -> Tensor:
        """See Schedule; float64 [n, 2]. num_steps=0 means 128, or T if that is less."""
        if math.isfinite(self.num_steps):
            steps = torch.tensor(step_windows(int(self.num_steps), num_steps), device=self.device)
            return steps.double() / self.num_steps
        grid = torch.arange(num_steps or 128, -1, -1, dtype=torch.float64, device=self.device)
        return torch.stack([grid[:-1], grid[1:]], 1) / grid[0]

    def informativeness(self, x0: Tensor, target_mask: Tensor) -> Tensor:
        """Return zeros, float64 [B, L]: alpha_bar does not depend on the token."""
        return torch.zeros(x0.shape, dtype=torch.float64, device=x0.device)

    def alpha_bar(self, t: Tensor, h: Tensor) -> Tensor:
        """See Schedule."""
        return self.noise.closed(t) + torch.zeros_like(h)

    def token_alpha_bar(self, t: Tensor, x0: Tensor, target_mask: Tensor) -> Tensor:
        """See Schedule."""
        return self.alpha_bar(t[:, None], self.informativeness(x0, target_mask))

    def reveal_probability(self, s: Tensor, t: Tensor, h: Tensor) -> Tensor:
        """See Schedule."""
        at_t = self.alpha_bar(t, h)
        return (self.alpha_bar(s, h) - at_t) / (1 - at_t)

    def time_at(self, level: Tensor) -> Tensor:
        """See Schedule."""
        return self.noise.time_at(level)

    def time_input(self, t: Tensor) -> Tensor:
        """Return sigma(t) or the scaled log mask rate, float32 [B]."""
        if not self.log_rate_input:
            return self.noise.sigma(t.double()).float()
        low, high = log_mask_rates(self.noise)
        rate = 1 - self.noise.alpha_bar(t.double())
        return ((rate.log() - low) / (high - low)).clamp(0, 1).float()
