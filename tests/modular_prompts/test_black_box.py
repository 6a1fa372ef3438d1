"""black_box.py: CMA-ES with a counted number of calls, without gradients, and never worse than its start."""

import sys

import pytest
import torch
from torch import Generator, Tensor

from modular_prompts.black_box import prompt_of_code, search_code, search_router
from modular_prompts.options import PoolShape, Search
from modular_prompts.pool import PromptPool
from modular_prompts.tuning import Examples, prompt_of
from tests.modular_prompts.planted import PlantedWorld
from utils.errors import UserError

pytest.importorskip("cma")


class Counted:
    """Two options; the first one's score is the negative distance of the prompt from a target."""

    def __init__(self, target: Tensor) -> None:
        self.target, self.calls = target, 0

    def examples(self) -> Examples:
        def scores(rows: Tensor, prompts: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            self.calls += 1
            first = -(prompts - self.target).square().sum().expand(len(rows))
            return torch.stack([first, torch.zeros_like(first)], -1)

        return Examples(scores, torch.zeros(6, dtype=torch.long))


@pytest.fixture
def pool() -> PromptPool:
    generator = Generator().manual_seed(0)
    pool = PromptPool(PoolShape(4, 2, 3, 2, 3), generator)
    with torch.no_grad():
        pool.codes.normal_(generator=generator)
        pool.projection.normal_(generator=generator)
    return pool


def test_the_router_of_a_mixture_is_found_within_the_calls(pool: PromptPool) -> None:
    truth = torch.tensor([[4.0, -4.0, 1.0, -4.0]])
    task = Counted(prompt_of(pool, truth).detach())
    found = search_router(pool, task.examples(), Search(300))
    assert found.calls == task.calls <= 300 and found.values.shape == (1, 4) and found.values.abs().max() <= 5
    assert torch.allclose(prompt_of(pool, found.values), prompt_of(pool, truth), atol=0.05)


def test_the_code_starts_at_the_mixture_and_leaves_the_span_of_the_modules(pool: PromptPool) -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.0]])
    mixture = prompt_of(pool, logits).detach()
    at_start = search_code(pool, logits, Counted(mixture).examples(), Search(11))
    assert torch.allclose(prompt_of_code(pool, at_start.values), mixture, atol=1e-5)  # nothing is better
    target = prompt_of_code(pool, torch.randn(2, 3, generator=Generator().manual_seed(1)))
    task = Counted(target.detach())
    found = search_code(pool, logits, task.examples(), Search(800, sigma=0.3))
    assert found.calls == task.calls <= 800
    assert torch.allclose(prompt_of_code(pool, found.values), target, atol=0.05)


def test_equal_seeds_make_equal_searches(pool: PromptPool) -> None:
    task = Counted(torch.ones(1, 2, 2, 3)).examples()
    results = [search_router(pool, task, Search(60, seed=seed)).values for seed in (0, 0, 1)]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_impossible_searches_are_refused(pool: PromptPool, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Counted(torch.ones(1, 2, 2, 3)).examples()
    with pytest.raises(UserError, match="calls=5, population=10: give at least one generation and the start"):
        search_router(pool, task, Search(5))
    with pytest.raises(UserError, match="intrinsic_size=0: the modules are free"):
        search_code(pool.freed(), torch.zeros(1, 4), task, Search(60))
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(UserError, match="needs the package cma .*; pip install cma"):
        search_router(pool, task, Search(60))


@pytest.mark.slow
def test_planted_modules_are_recovered_from_scores_alone() -> None:
    world = PlantedWorld(0)
    task = world.task(1000, shots=16)
    found = search_router(world.modules, task.train, Search(200))
    assert task.test.accuracy(prompt_of(world.modules, found.values)) > 0.85 and found.calls <= 200
