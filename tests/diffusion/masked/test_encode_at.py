"""The masked processes use hidden states only at the positions that they ask for."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from data.batch import Batch
from diffusion.masked.warm_start import masked_lm_loss
from diffusion.options import ORDERS, BoundArgs, SampleArgs
from diffusion.process import encode_at
from tests.conftest import TableDenoiser
from tests.toy_family import PROCESSES, Timed, V, sedd
from tests.toy_process import make

FAMILY = {**PROCESSES, "word_freq, spindle": lambda: make(12, "paper"), "sedd": sedd}
BATCH = Batch(
    torch.tensor([[0, 2, 1, 4, 4], [4, 1, 0, 0, 0], [1, 1, 2, 0, 4]]),
    torch.tensor([[True] * 5, [True] * 4 + [False], [True] * 5]),
    torch.tensor([[True, False, True, True, True], [True, True, True, False, False], [True] * 5]),
)


CALLS: list[int] = []
"""Positions that each call asks for."""


class Sparse(TableDenoiser):
    """Denoiser whose hidden states are unknown where they are not asked for."""

    def encode_at(self, xt: Tensor, t: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """See `diffusion.process.encode_at`."""
        CALLS.append(int(positions.sum()))
        return self.encode(xt, t, attention_mask).masked_fill(~positions[..., None], torch.nan)


class SparseTimed(Sparse, Timed):
    """The same with time input."""


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def same(run: Callable[[TableDenoiser], Tensor], *, timed: bool) -> bool:
    """Return whether `run` gives the same finite numbers if the other hidden states are unknown."""
    whole = run(Timed(V) if timed else TableDenoiser(V))
    CALLS.clear()
    sparse = run(SparseTimed(V) if timed else Sparse(V))
    assert any(CALLS)
    return torch.equal(whole, sparse) and bool(whole.isfinite().all())


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("name", FAMILY)
def test_a_loss_needs_the_masked_targets_only(name: str, timed: bool) -> None:
    process = FAMILY[name]()
    assert same(lambda denoiser: process.loss(denoiser, BATCH, generator=seeded()).total, timed=timed)
    assert same(
        lambda denoiser: masked_lm_loss(process, denoiser, BATCH, rates=(0.1, 0.4), generator=seeded()).total,
        timed=timed,
    )


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *[
            (name, {"sampler": each, "num_steps": 6})
            for name, make_ in FAMILY.items()
            for each in make_().samplers[:-1]
        ],
        *[(name, {"num_steps": math.inf}) for name, make_ in FAMILY.items() if make_().limit_samplers],
        *[(name, {"sampler": "ordered", "order": order}) for name in FAMILY for order in ORDERS],
    ],
)
def test_a_sampler_needs_the_masked_targets_only(name: str, settings: dict) -> None:
    process, args = FAMILY[name](), SampleArgs(**settings)
    for timed, rows in itertools.product((False, True), (0, 1)):

        def run(denoiser: TableDenoiser, rows: int = rows) -> Tensor:
            return process.sample(denoiser, BATCH, args, rows_at_once=rows, generator=seeded())

        assert same(run, timed=timed)


@pytest.mark.parametrize(
    ("name", "estimator", "num_steps"),
    [
        (name, estimator, num_steps)
        for name, make_ in FAMILY.items()
        for estimators, num_steps in ((make_().estimators, 6), (make_().limit_estimators, math.inf))
        for estimator in estimators
    ],
)
def test_a_bound_needs_the_masked_targets_only(name: str, estimator: str, num_steps: float) -> None:
    process, args = FAMILY[name](), BoundArgs(estimator=estimator)

    def run(denoiser: TableDenoiser) -> Tensor:
        return process.bound(denoiser, BATCH, num_steps, args, generator=seeded()).total

    assert same(run, timed=estimator in ("windows", "stratified"))


def test_a_wrapper_without_the_method_computes_all_positions() -> None:
    """A wrapper may pass unknown names on to what it wraps, as those of infilling and of the film do."""

    class Wrapper:
        def __init__(self, inner: Sparse) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

        def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
            return self.inner.encode(xt, t, attention_mask) + 1

    xt, seen = BATCH.input_ids, BATCH.attention_mask
    hidden = encode_at(Wrapper(Sparse(V)), xt, torch.ones(3), seen, torch.zeros_like(seen))
    assert torch.equal(hidden, TableDenoiser(V).encode(xt, torch.ones(3), seen) + 1)
