"""tuning.py: what each stage changes; planted modules are recovered from few examples by the router alone."""

import statistics

import pytest
import torch
from torch import Generator, Tensor

from modular_prompts.options import PoolShape, Stage
from modular_prompts.pool import PromptPool
from modular_prompts.tuning import Examples, prompt_of, tune_prompt, tune_router
from tests.modular_prompts.planted import LENGTH, WIDTH, PlantedWorld

FEW, PLENTY, PROMPT = Stage(80, 0.3), Stage(200, 0.3, batch_size=64), Stage(140, 3e-2)


def toy(labels: list[int]) -> Examples:
    """Return examples in which option 0 scores the first entry of the prompt, and option 1 nothing."""

    def scores(rows: Tensor, prompts: Tensor) -> Tensor:
        first = prompts[:, 0, 0, 0].expand(len(rows))
        return torch.stack([first, torch.zeros_like(first)], -1)

    return Examples(scores, torch.tensor(labels))


def test_the_router_is_tuned_alone_and_then_the_prompt_alone() -> None:
    pool, generator = PromptPool(PoolShape(3, 2, 4), Generator().manual_seed(0)), Generator().manual_seed(1)
    before = pool.free.detach().clone()
    logits = tune_router(pool, toy([0] * 8), Stage(20, 0.1), generator)
    best = pool.free[0, :, 0].argmax()
    assert logits.shape == (1, 3) and logits[0].argmax() == best and torch.equal(pool.free, before)
    start = prompt_of(pool, logits).detach()
    prompt = tune_prompt(start, toy([0] * 8), Stage(20, 0.1), generator)
    changed = (prompt != start).nonzero()
    assert changed.tolist() == [[0, 0, 0, 0]] and prompt[0, 0, 0, 0] > start[0, 0, 0, 0]


def test_the_best_step_by_the_development_rows_is_kept() -> None:
    """Training wants option 1 and development option 0, so the start is the best."""
    start = torch.full((1, 1, 2, 4), 0.05)
    stage = Stage(20, 0.1, check_every=1)
    kept = tune_prompt(start, toy([1] * 4), stage, Generator().manual_seed(0), develop=toy([0] * 4))
    assert torch.equal(kept, start)
    last = tune_prompt(start, toy([1] * 4), stage, Generator().manual_seed(0))
    assert last[0, 0, 0, 0] < 0


def test_equal_seeds_draw_equal_rows() -> None:
    results = [
        tune_prompt(torch.zeros(1, 1, 2, 4), toy([0, 1, 0]), Stage(5, 0.1, 1), Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_a_row_with_fewer_options_never_chooses_a_missing_one() -> None:
    def scores(rows: Tensor, prompts: Tensor) -> Tensor:
        return torch.tensor([[-5.0, -torch.inf], [-5.0, 0.0]])[rows]

    examples = Examples(scores, torch.tensor([0, 1]))
    assert examples.choices(torch.zeros(1, 1, 1, 1)).tolist() == [0, 1]
    assert examples.loss(torch.zeros(1, 1, 1, 1), torch.arange(2)).isfinite()


@pytest.mark.slow
def test_planted_modules_are_recovered_by_the_router_from_16_shots_a_label() -> None:
    router, random = [], []
    for seed in range(3):
        world = PlantedWorld(seed)
        frozen = [parameter.clone() for parameter in world.network.parameters()]
        for number in range(4):
            task = world.task(1000, shots=16)
            logits = tune_router(world.modules, task.train, FEW, world.generator)
            router.append(task.test.accuracy(prompt_of(world.modules, logits)))
            if number < 2:  # it takes three times as long
                start = 0.1 * torch.randn(1, 2, LENGTH, WIDTH, generator=world.generator)
                random.append(task.test.accuracy(tune_prompt(start, task.train, PROMPT, world.generator)))
        for parameter, before in zip(world.network.parameters(), frozen, strict=True):
            assert torch.equal(parameter, before) and parameter.grad is None
    assert statistics.mean(router) > 0.85 and statistics.mean(random) < statistics.mean(router) - 0.25


@pytest.mark.slow
def test_planted_modules_are_recovered_by_the_router_from_plenty_of_rows() -> None:
    world = PlantedWorld(0)
    tasks = [world.task(2000) for _ in range(3)]
    found = [
        task.test.accuracy(prompt_of(world.modules, tune_router(world.modules, task.train, PLENTY, world.generator)))
        for task in tasks
    ]
    assert statistics.mean(found) > 0.95
