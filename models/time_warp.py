"""Time warping (CDCD, appendix A): noise levels drawn so that the cross-entropy rises evenly from one to the next.

A piecewise linear curve is fitted to the cross-entropy over v, the place of a level between the lowest (0) and the
highest (1). Divided by its end it is a distribution function, by whose inverse levels are drawn. Before it has learnt
anything it is the identity.
"""

import math

import torch
from torch import Tensor, nn
from transformers import initialization as init  # which leaves alone what was loaded

BINS = 100
LEAST = 1e-4
"""Of a bin's share in either direction, so that both the curve and its inverse have a slope everywhere."""


class TimeWarp(nn.Module):
    """The curve; widths and heights of its pieces are learnt."""

    def __init__(self) -> None:
        """The identity."""
        super().__init__()
        self.widths, self.heights = (nn.Parameter(torch.zeros(BINS)) for _ in range(2))
        self.straighten()

    @torch.no_grad()
    def straighten(self) -> None:
        """Equal widths and heights, that rise to 1."""
        init.zeros_(self.widths)
        init.constant_(self.heights, -math.log(BINS))

    def edges(self) -> tuple[Tensor, Tensor]:
        """Where the pieces begin and end: v, and the share of the whole rise, each float64 [BINS + 1], from 0 to 1."""
        return tuple(_edges(_shares(logits)) for logits in (self.widths, self.heights))

    def places(self, r: Tensor) -> Tensor:
        """The v at which the curve has risen to a share r of its height: float64, of the shape of r in [0, 1]."""
        v, rise = self.edges()
        return _interpolate(r.double(), rise, v)

    def shares(self, v: Tensor) -> Tensor:
        """The inverse of `places`."""
        return _interpolate(v.double(), *self.edges())

    def slopes(self, v: Tensor) -> Tensor:
        """d(share) / dv: the density of the levels drawn, at v."""
        at, rise = self.edges()
        piece = torch.searchsorted(at[1:-1].contiguous(), v.double(), right=True)
        return (rise.diff() / at.diff())[piece]

    def heights_at(self, v: Tensor) -> Tensor:
        """The curve itself, in nats."""
        whole = self.heights.double().exp().sum()
        return whole * self.shares(v)

    def misfit(self, v: Tensor, nats: Tensor, counted: Tensor) -> Tensor:
        """Mean square error of the curve, as if places were drawn evenly; small beside a loss in nats.

        Args:
            v: [B], where.
            nats: [B], how high it is there.
            counted: bool [B].
        """
        weight = counted / self.slopes(v).detach()
        return 1e-3 * (weight * (self.heights_at(v) - nats).square()).sum() / counted.sum().clamp(min=1)


def _shares(logits: Tensor) -> Tensor:
    share = logits.double().softmax(0) + LEAST
    return share / share.sum()


def _edges(shares: Tensor) -> Tensor:
    return torch.cat([shares.new_zeros(1), shares.cumsum(0)[:-1], shares.new_ones(1)])


def _interpolate(x: Tensor, at: Tensor, value: Tensor) -> Tensor:
    piece = torch.searchsorted(at[1:-1].detach().contiguous(), x.detach(), right=True)
    part = (x - at[piece]) / (at[piece + 1] - at[piece])
    return value[piece] + part * (value[piece + 1] - value[piece])
