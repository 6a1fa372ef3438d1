"""Time warping (CDCD, appendix A): noise levels drawn so that the cross-entropy grows linearly in the quantile.

A piecewise linear curve is fitted to the cross-entropy over v, the relative noise level: 0 for the lowest, 1 for the
highest. The curve divided by its final value is a distribution function, and noise levels are drawn by its inverse. It
is initialized to the identity.
"""

import math

import torch
from torch import Tensor, nn
from transformers import initialization as init  # it leaves loaded tensors unchanged

BINS = 100
MIN_BIN_SHARE = 1e-4
"""Minimum width and height of a bin before normalization, so that the curve and its inverse have finite slopes."""


class TimeWarp(nn.Module):
    """Piecewise linear curve with learned widths and heights of its bins."""

    def __init__(self) -> None:
        super().__init__()
        self.widths, self.heights = (nn.Parameter(torch.zeros(BINS)) for _ in range(2))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Set the curve to the identity."""
        init.zeros_(self.widths)
        init.constant_(self.heights, -math.log(BINS))

    def edges(self) -> tuple[Tensor, Tensor]:
        """Return the bins' edges: v and the distribution function, each float64 [BINS + 1], from 0 to 1."""
        return tuple(_edges(_bin_shares(logits)) for logits in (self.widths, self.heights))

    def quantile(self, r: Tensor) -> Tensor:
        """Return the inverse distribution function at r in [0, 1]; float64, in the shape of r."""
        v, cdf = self.edges()
        return _interpolate(r.double(), cdf, v)

    def cdf(self, v: Tensor) -> Tensor:
        """Return the distribution function at v; the inverse of `quantile`."""
        return _interpolate(v.double(), *self.edges())

    def density(self, v: Tensor) -> Tensor:
        """Return the density of the drawn levels at v."""
        at, cdf = self.edges()
        bin_index = torch.searchsorted(at[1:-1].contiguous(), v.double(), right=True)
        return (cdf.diff() / at.diff())[bin_index]

    def cross_entropy(self, v: Tensor) -> Tensor:
        """Return the curve's estimate of the cross-entropy at v, in nats."""
        total = self.heights.double().exp().sum()
        return total * self.cdf(v)

    def fit_loss(self, v: Tensor, nats: Tensor, counted: Tensor) -> Tensor:
        """Return 1e-3 times the mean squared error of the curve, weighted as if v were drawn uniformly.

        The factor keeps it small beside the denoiser's loss in nats.

        Args:
            v: [B], relative noise levels, drawn by `quantile`.
            nats: [B], measured cross-entropies.
            counted: bool [B], entries that enter the mean.
        """
        weight = counted / self.density(v).detach()
        return 1e-3 * (weight * (self.cross_entropy(v) - nats).square()).sum() / counted.sum().clamp(min=1)


def _bin_shares(logits: Tensor) -> Tensor:
    share = logits.double().softmax(0) + MIN_BIN_SHARE
    return share / share.sum()


def _edges(shares: Tensor) -> Tensor:
    return torch.cat([shares.new_zeros(1), shares.cumsum(0)[:-1], shares.new_ones(1)])


def _interpolate(x: Tensor, at: Tensor, value: Tensor) -> Tensor:
    """Evaluate at x the piecewise linear function with the given values at the points `at`."""
    index = torch.searchsorted(at[1:-1].detach().contiguous(), x.detach(), right=True)
    fraction = (x - at[index]) / (at[index + 1] - at[index])
    return value[index] + fraction * (value[index + 1] - value[index])
