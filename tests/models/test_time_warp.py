"""time_warp.py: identity at initialization, distribution function and its inverse, fit to a curve."""

import pytest
import torch

from models.time_warp import BINS, TimeWarp

GRID = torch.linspace(0, 1, 257, dtype=torch.float64)


def scrambled() -> TimeWarp:
    warp = TimeWarp()
    torch.manual_seed(1)
    with torch.no_grad():
        warp.widths.normal_()
        warp.heights.normal_()
    return warp


def test_the_warp_begins_as_the_identity() -> None:
    warp = TimeWarp()
    for found in (warp.quantile(GRID), warp.cdf(GRID), warp.cross_entropy(GRID)):
        assert torch.allclose(found, GRID, atol=1e-6)
    assert torch.allclose(warp.density(GRID), torch.ones_like(GRID))


def test_quantile_inverts_cdf_and_density_is_its_derivative() -> None:
    warp = scrambled()
    v = warp.quantile(GRID)
    assert v[0] == 0 and v[-1] == 1 and (v.diff() > 0).all()
    assert torch.allclose(warp.cdf(v), GRID, atol=1e-12)
    inside = GRID[1:-1] + 1e-5 * 0.37
    numeric = (warp.cdf(inside + 1e-9) - warp.cdf(inside - 1e-9)) / 2e-9
    assert torch.allclose(warp.density(inside), numeric, rtol=1e-4)
    edges = warp.edges()[0]
    mass = (warp.density((edges[1:] + edges[:-1]) / 2) * edges.diff()).sum()
    assert float(mass) == pytest.approx(1)  # uniform r gives v this density


def test_the_warp_learns_where_the_cross_entropy_rises() -> None:
    """Flat, steep, flat curve: after fitting, the cross-entropy is linear in the quantile."""
    warp, generator = TimeWarp(), torch.Generator().manual_seed(0)
    curve = lambda v: 5 * torch.sigmoid((v - 0.3) * 25)  # noqa: E731
    optimizer = torch.optim.AdamW(warp.parameters(), lr=2e-2, weight_decay=0)
    for _ in range(600):
        v = warp.quantile(torch.rand(64, generator=generator, dtype=torch.float64)).detach()
        noise = 0.3 * torch.randn(64, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        warp.fit_loss(v, curve(v) + noise, torch.ones(64, dtype=torch.bool)).backward()
        optimizer.step()
    rise = curve(warp.quantile(GRID)).detach()
    line = GRID * 5
    unexplained = ((rise - line) ** 2).sum() / ((rise - rise.mean()) ** 2).sum()
    assert 1 - unexplained > 0.97
    assert (warp.cross_entropy(GRID) - curve(GRID)).abs().mean() < 0.25
    unexplained_by_identity = ((curve(GRID) - line) ** 2).sum() / ((curve(GRID) - curve(GRID).mean()) ** 2).sum()
    assert unexplained < unexplained_by_identity / 10


def test_the_fit_loss_is_weighted_as_if_v_were_drawn_uniformly() -> None:
    warp = scrambled()
    generator = torch.Generator().manual_seed(0)
    r = torch.rand(200_000, generator=generator, dtype=torch.float64)
    v = warp.quantile(r).detach()
    every = torch.ones(len(v), dtype=torch.bool)
    warped = warp.fit_loss(v, torch.full_like(v, 2.0), every)
    even = 1e-3 * (warp.cross_entropy(GRID) - 2).square().mean()
    assert float(warped) == pytest.approx(float(even), rel=0.05)
    assert float(warp.fit_loss(v, torch.full_like(v, 2.0), ~every)) == 0
    half = every.clone()
    half[::2] = False
    assert float(warp.fit_loss(v, torch.full_like(v, 2.0), half)) == pytest.approx(float(even), rel=0.07)


def test_no_bin_vanishes_at_extreme_parameters() -> None:
    warp = TimeWarp()
    with torch.no_grad():
        warp.widths[0] = 200
        warp.heights[5] = 200
    v = warp.quantile(GRID)
    assert v.isfinite().all() and warp.density(v).isfinite().all() and (v.diff() >= 0).all()
    assert len(warp.edges()[0]) == BINS + 1
