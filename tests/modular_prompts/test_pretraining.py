"""pretraining.py: modules learned from many tasks serve a new one by the router alone."""

import statistics

import pytest
import torch
from torch import Generator, Tensor

from modular_prompts.arguments import PretrainArgs
from modular_prompts.options import PoolShape
from modular_prompts.pool import PromptPool, Router
from modular_prompts.pretraining import Pretraining
from modular_prompts.tuning import Examples, prompt_of, tune_prompt, tune_router
from tests.modular_prompts.planted import LENGTH, WIDTH, PlantedWorld, joined
from tests.modular_prompts.test_tuning import FEW, PROMPT


def counted(number: int, rows: int, seen: list[int]) -> Examples:
    """Return a task that notes its number whenever it is scored."""

    def scores(chosen: Tensor, prompts: Tensor) -> Tensor:
        seen.append(number)
        return prompts.sum().expand(len(chosen), 2) * torch.tensor([1.0, 0.5])

    return Examples(scores, torch.zeros(rows, dtype=torch.long))


def train(pool: PromptPool, router: Router, tasks: list[Examples], args: PretrainArgs) -> None:
    """Take all steps."""
    training = Pretraining(pool, router, joined(tasks), args)
    for step in range(1, args.max_steps + 1):
        training.step(step)


def test_tasks_are_drawn_uniformly_whatever_their_size_and_differ_within_a_step() -> None:
    seen: list[int] = []
    tasks = [counted(i, rows, seen) for i, rows in enumerate((1000, 10, 3, 1))]
    pool, router = PromptPool(PoolShape(2, 1, 3)), Router(4, 2)
    train(pool, router, tasks, PretrainArgs(400, tasks_per_step=2))
    assert all(first != second for first, second in zip(seen[::2], seen[1::2], strict=True))
    counts = torch.bincount(torch.tensor(seen))
    assert ((counts - 200).abs() < 4 * (800 * 3 / 16) ** 0.5).all()


def test_equal_seeds_give_equal_modules_and_routers() -> None:
    found = []
    for seed in (0, 0, 1):
        generator, seen = Generator().manual_seed(seed), []
        pool, router = PromptPool(PoolShape(2, 1, 3), generator), Router(2, 2, generator=generator)
        train(pool, router, [counted(i, 9, seen) for i in range(2)], PretrainArgs(5, seed=seed))
        found.append((pool.free.detach(), router.logits.detach()))
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(found[0], found[2], strict=True))


@pytest.mark.slow
def test_learned_modules_serve_a_new_task_by_the_router_alone() -> None:
    """Better than the mean of the modules, and than a random prompt tuned on the same rows."""
    world = PlantedWorld(0)
    seen, new = [world.task(400) for _ in range(16)], [world.task(1000, shots=16) for _ in range(4)]
    pool, router = PromptPool(PoolShape(8, LENGTH, WIDTH, 2), world.generator), Router(16, 8, generator=world.generator)
    args = PretrainArgs(500, tasks_per_step=8, rows_per_task=8, prompt_rate=2e-2)
    train(pool, router, [task.train for task in seen], args)
    uniform = torch.zeros(1, 8)

    def mean(tasks: list, logits: list) -> float:
        return statistics.mean(
            task.test.accuracy(prompt_of(pool, own)) for task, own in zip(tasks, logits, strict=True)
        )

    own = mean(seen, list(router.logits.detach()))
    assert own > mean(seen, [uniform] * 16) + 0.06
    tuned = mean(new, [tune_router(pool, task.train, FEW, world.generator) for task in new])
    starts = [0.1 * torch.randn(1, 2, LENGTH, WIDTH, generator=world.generator) for _ in new]
    random = statistics.mean(
        task.test.accuracy(tune_prompt(start, task.train, PROMPT, world.generator))
        for task, start in zip(new, starts, strict=True)
    )
    assert tuned > mean(new, [uniform] * 4) + 0.03 and tuned > random
