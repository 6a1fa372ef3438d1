"""time_warp.py: the identity before it learns, a distribution function and its inverse, a fitted curve."""

import pytest
import torch

from models.time_warp import BINS, TimeWarp

EVENLY = torch.linspace(0, 1, 257, dtype=torch.float64)


def scrambled() -> TimeWarp:
    warp = TimeWarp()
    torch.manual_seed(1)
    with torch.no_grad():
        warp.widths.normal_()
        warp.heights.normal_()
    return warp


def test_it_begins_as_the_identity() -> None:
    warp = TimeWarp()
    for found in (warp.places(EVENLY), warp.shares(EVENLY), warp.heights_at(EVENLY)):
        assert torch.allclose(found, EVENLY, atol=1e-6)
    assert torch.allclose(warp.slopes(EVENLY), torch.ones_like(EVENLY))


def test_places_invert_shares_and_slopes_are_their_density() -> None:
    warp = scrambled()
    v = warp.places(EVENLY)
    assert v[0] == 0 and v[-1] == 1 and (v.diff() > 0).all()
    assert torch.allclose(warp.shares(v), EVENLY, atol=1e-12)
    inside = EVENLY[1:-1] + 1e-5 * 0.37
    numeric = (warp.shares(inside + 1e-9) - warp.shares(inside - 1e-9)) / 2e-9
    assert torch.allclose(warp.slopes(inside), numeric, rtol=1e-4)
    edges = warp.edges()[0]
    mass = (warp.slopes((edges[1:] + edges[:-1]) / 2) * edges.diff()).sum()
    assert float(mass) == pytest.approx(1)  # drawn evenly, r falls into v with this density


def test_it_learns_where_the_cross_entropy_rises() -> None:
    """Of a curve that is flat, then steep, then flat: after fitting, what is drawn evenly rises evenly."""
    warp, generator = TimeWarp(), torch.Generator().manual_seed(0)
    curve = lambda v: 5 * torch.sigmoid((v - 0.3) * 25)  # noqa: E731
    optimizer = torch.optim.AdamW(warp.parameters(), lr=2e-2, weight_decay=0)
    for _ in range(600):
        v = warp.places(torch.rand(64, generator=generator, dtype=torch.float64)).detach()
        noise = 0.3 * torch.randn(64, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        warp.misfit(v, curve(v) + noise, torch.ones(64, dtype=torch.bool)).backward()
        optimizer.step()
    rise = curve(warp.places(EVENLY)).detach()
    line = EVENLY * 5
    left = ((rise - line) ** 2).sum() / ((rise - rise.mean()) ** 2).sum()
    assert 1 - left > 0.97
    assert (warp.heights_at(EVENLY) - curve(EVENLY)).abs().mean() < 0.25
    straight = ((curve(EVENLY) - line) ** 2).sum() / ((curve(EVENLY) - curve(EVENLY).mean()) ** 2).sum()
    assert left < straight / 10


def test_the_misfit_is_weighed_as_if_places_were_drawn_evenly() -> None:
    warp = scrambled()
    generator = torch.Generator().manual_seed(0)
    r = torch.rand(200_000, generator=generator, dtype=torch.float64)
    v = warp.places(r).detach()
    every = torch.ones(len(v), dtype=torch.bool)
    warped = warp.misfit(v, torch.full_like(v, 2.0), every)
    even = 1e-3 * (warp.heights_at(EVENLY) - 2).square().mean()
    assert float(warped) == pytest.approx(float(even), rel=0.05)
    assert float(warp.misfit(v, torch.full_like(v, 2.0), ~every)) == 0
    half = every.clone()
    half[::2] = False
    assert float(warp.misfit(v, torch.full_like(v, 2.0), half)) == pytest.approx(float(even), rel=0.07)


def test_no_piece_ever_vanishes() -> None:
    warp = TimeWarp()
    with torch.no_grad():
        warp.widths[0] = 200
        warp.heights[5] = 200
    v = warp.places(EVENLY)
    assert v.isfinite().all() and warp.slopes(v).isfinite().all() and (v.diff() >= 0).all()
    assert len(warp.edges()[0]) == BINS + 1
