"""A new task from few examples, by every method: what each of them trains, and what it then answers."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from modular_prompts.black_box import Search, prompt_of_code, search_code, search_router
from modular_prompts.pool import PromptPool
from modular_prompts.readouts import Part, Readout
from modular_prompts.saved import SavedPrompts
from modular_prompts.tuning import Examples, Stage, prompt_of, tune_prompt, tune_router

START = 0.1
"""Standard deviation of a random prompt."""


@dataclass(frozen=True)
class Stages:
    """Settings of the methods."""

    router: Stage = Stage(60, 0.2, 32, 10)
    prompt: Stage = Stage(40, 5e-3, 32, 10)
    network: Stage = Stage(100, 3e-5, 32, 10)
    """For all weights of the network."""
    adapter: Stage = Stage(100, 1e-3, 32, 10)
    """For LoRA adapters."""
    search_router: Search = Search(200)
    search_code: Search = Search(500, sigma=0.1)
    rank: int = 8
    """r of the LoRA adapters."""


@dataclass(frozen=True)
class Problem:
    """A task with the few examples that one seed draws from it."""

    readout: Readout
    saved: SavedPrompts
    few: Part
    """Training rows."""
    develop: Part
    test: Part
    stages: Stages
    seed: int

    @property
    def generator(self) -> Generator:
        """A stream that is the same for every method."""
        return Generator().manual_seed(self.seed)

    def train_and_develop(self) -> tuple[Examples, Examples]:
        """Return the training and the development rows as examples."""
        return self.readout.examples(self.few), self.readout.examples(self.develop)


@dataclass(frozen=True)
class Outcome:
    """What a method learned, and how it answers."""

    trained: int
    """Numbers that were trained."""
    prompt: Tensor | None = None
    """[1, layers, P, D]."""
    router: Tensor | None = None
    """Router logits, [1, K], that the prompt follows or started from."""
    test: Examples | None = None
    """Test rows of another network; None: those of the frozen one."""
    choices: Tensor | None = None
    """int64 [rows], for a method without a prompt."""
    calls: int = 0
    """Passes over the training rows of a black-box search."""


Method = Callable[[Problem], Outcome]


def uniform(problem: Problem) -> Outcome:
    """Take the mean of the modules."""
    return Outcome(0, mixture(problem.saved.pool, _uniform(problem)), _uniform(problem))


def router(problem: Problem) -> Outcome:
    """Tune the router alone."""
    train, develop = problem.train_and_develop()
    logits = tune_router(problem.saved.pool, train, problem.stages.router, problem.generator, develop)
    return Outcome(logits.numel(), mixture(problem.saved.pool, logits), logits)


def router_then_prompts(problem: Problem) -> Outcome:
    """Tune the router, then the prompt that it mixes; the better of the two by the development rows."""
    first, (train, develop) = router(problem), problem.train_and_develop()
    prompt = tune_prompt(first.prompt, train, problem.stages.prompt, problem.generator, develop)
    return Outcome(first.trained + prompt.numel(), prompt, first.router)


def prompts(problem: Problem) -> Outcome:
    """Tune a prompt from the mean of the modules."""
    train, develop = problem.train_and_develop()
    start = mixture(problem.saved.pool, _uniform(problem))
    prompt = tune_prompt(start, train, problem.stages.prompt, problem.generator, develop)
    return Outcome(prompt.numel(), prompt, _uniform(problem))


def random_prompt(problem: Problem) -> Outcome:
    """Tune a random prompt, with the steps of both stages: as many passes as the modules get."""
    train, develop = problem.train_and_develop()
    start = START * torch.randn(mixture(problem.saved.pool, _uniform(problem)).shape, generator=problem.generator)
    stage = problem.stages.prompt.longer(problem.stages.router.steps)
    prompt = tune_prompt(start, train, stage, problem.generator, develop)
    return Outcome(prompt.numel(), prompt)


def searched_router(problem: Problem) -> Outcome:
    """Search the router by the scores alone."""
    train = problem.readout.examples(problem.few)
    found = search_router(problem.saved.pool, train, replace(problem.stages.search_router, seed=problem.seed))
    return Outcome(found.values.numel(), mixture(problem.saved.pool, found.values), found.values, calls=found.calls)


def searched_router_then_code(problem: Problem) -> Outcome:
    """Search the router, then the code of the prompt."""
    first, train = searched_router(problem), problem.readout.examples(problem.few)
    search = replace(problem.stages.search_code, seed=problem.seed)
    found = search_code(problem.saved.pool, first.router, train, search)
    prompt = prompt_of_code(problem.saved.pool, found.values)
    return Outcome(first.trained + found.values.numel(), prompt, first.router, calls=first.calls + found.calls)


def _uniform(problem: Problem) -> Tensor:
    return torch.zeros(1, problem.saved.pool.shape.num_modules)


@torch.no_grad()
def mixture(pool: PromptPool, logits: Tensor) -> Tensor:
    """Return the prompt of router logits, [1, layers, P, D], without a gradient."""
    return prompt_of(pool, logits)
