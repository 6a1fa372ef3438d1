"""A new task from few examples, by every method: what each of them trains, and what it then answers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Generator, Tensor

from modular_prompts.black_box import Found, prompt_of_code, search_code, search_router
from modular_prompts.options import Stage, Stages
from modular_prompts.pool import PromptPool
from modular_prompts.readouts import Part, Readout
from modular_prompts.saved import SavedPrompts
from modular_prompts.tuning import Examples, prompt_of, tune_prompt, tune_router

START = 0.1
"""Standard deviation of a random prompt."""
COMPARED = 256
"""Training rows, at most, by which the first router is chosen."""


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

    @cached_property
    def train(self) -> Examples:
        """The training rows as examples."""
        return self.readout.examples(self.few)

    @cached_property
    def development(self) -> Examples:
        """The development rows as examples."""
        return self.looked_at(self.readout)

    @cached_property
    def first_router(self) -> Tensor:
        """Router logits of the seen task, or uniform ones, whose mixture has the least loss on the training rows."""
        seen = [logits for task, logits in self.saved.routers.items() if task != self.few[0].name]
        starts = [_uniform(self), *(seen if self.stages.from_seen else [])]
        number = len(self.train.labels)
        rows = torch.arange(number)
        if number > COMPARED:  # drawn, since the rows stand in the order of their labels
            rows = torch.randperm(number, generator=self.generator)[:COMPARED]
        with torch.no_grad():
            losses = [self.train.loss(mixture(self.saved.pool, start), rows).item() for start in starts]
        return starts[min(range(len(starts)), key=losses.__getitem__)]

    @cached_property
    def tuned_router(self) -> Tensor:
        """Router logits, [1, K], with which several methods begin."""
        pool, stage = self.saved.pool, self.stages.router
        return tune_router(pool, self.train, stage, self.generator, self.development, start=self.first_router)

    @cached_property
    def searched_router(self) -> Found:
        """Router logits that a search finds."""
        search = replace(self.stages.search_router, seed=self.seed)
        return search_router(self.saved.pool, self.train, search)

    @cached_property
    def score_alone(self) -> float:
        """Score of the development rows without a prompt."""
        reader = self.readout.plain()
        return self.looked_at(reader).score(reader.nothing)

    def looked_at(self, reader: Readout) -> Examples:
        """Return the development rows as examples of a read-out; a label with fewer rows counts as the others."""
        return replace(reader.examples(self.develop), balanced=bool(self.develop[0].labels))

    def tuned(self, start: Tensor, stage: Stage) -> Tensor:
        """Return a prompt, [1, layers, P, D], tuned from a start."""
        return tune_prompt(start, self.train, stage, self.generator, self.development)


@dataclass(frozen=True)
class Outcome:
    """What a method learned, and how it answers."""

    trained: int
    """Numbers that were trained."""
    prompt: Tensor | None = None
    """[1, layers, P, D], or without tokens [1, 1, 0, D]."""
    router: Tensor | None = None
    """Router logits, [1, K], that the prompt follows or started from."""
    test: Examples | None = None
    """Test rows of another network; None: those of the frozen one."""
    choices: Tensor | None = None
    """int64 [rows], for a method without a prompt."""
    calls: int = 0
    """Passes over the training rows of a black-box search."""
    rejected: Tensor | None = None
    """A learned prompt that was dropped, [1, layers, P, D]."""


Method = Callable[[Problem], Outcome]


def unless_worse_than_none(problem: Problem, outcome: Outcome) -> Outcome:
    """Return an outcome, whose learned prompt is dropped if the network alone answers the development rows better.

    Other methods stay: where full tuning and LoRA choose a step, the frozen network is the first choice anyway.
    """
    learned = outcome.trained and outcome.prompt is not None and outcome.test is None
    if not (learned and problem.stages.drop_worse):
        return outcome
    if problem.development.score(outcome.prompt) >= problem.score_alone:
        return outcome
    alone = problem.readout.plain()
    return replace(outcome, prompt=alone.nothing, test=alone.examples(problem.test), rejected=outcome.prompt)


def uniform(problem: Problem) -> Outcome:
    """Take the mean of the modules."""
    return Outcome(0, mixture(problem.saved.pool, _uniform(problem)), _uniform(problem))


def router(problem: Problem) -> Outcome:
    """Tune the router alone."""
    logits = problem.tuned_router
    return Outcome(logits.numel(), mixture(problem.saved.pool, logits), logits)


def router_then_prompts(problem: Problem) -> Outcome:
    """Tune the router, then the prompt that it mixes; the better of the two by the development rows."""
    first = router(problem)
    prompt = problem.tuned(first.prompt, problem.stages.prompt)
    return Outcome(first.trained + prompt.numel(), prompt, first.router)


def prompts(problem: Problem) -> Outcome:
    """Tune a prompt from the mean of the modules."""
    prompt = problem.tuned(uniform(problem).prompt, problem.stages.prompt)
    return Outcome(prompt.numel(), prompt, _uniform(problem))


def random_prompt(problem: Problem) -> Outcome:
    """Tune a random prompt, with as many steps as other prompts."""
    prompt = problem.tuned(_random(problem), problem.stages.prompt)
    return Outcome(prompt.numel(), prompt)


def random_prompt_longer(problem: Problem) -> Outcome:
    """Tune a random prompt, with the steps of both stages."""
    prompt = problem.tuned(_random(problem), problem.stages.prompt.longer(problem.stages.router.steps))
    return Outcome(prompt.numel(), prompt)


def searched_router(problem: Problem) -> Outcome:
    """Search the router by the scores alone."""
    found = problem.searched_router
    return Outcome(found.values.numel(), mixture(problem.saved.pool, found.values), found.values, calls=found.calls)


def searched_router_then_code(problem: Problem) -> Outcome:
    """Search the router, then the code of the prompt."""
    first = searched_router(problem)
    search = replace(problem.stages.search_code, seed=problem.seed)
    found = search_code(problem.saved.pool, first.router, problem.train, search)
    prompt = prompt_of_code(problem.saved.pool, found.values)
    return Outcome(first.trained + found.values.numel(), prompt, first.router, calls=first.calls + found.calls)


def _random(problem: Problem) -> Tensor:
    return START * torch.randn(uniform(problem).prompt.shape, generator=problem.generator)


def _uniform(problem: Problem) -> Tensor:
    return torch.zeros(1, problem.saved.pool.shape.num_modules)


@torch.no_grad()
def mixture(pool: PromptPool, logits: Tensor) -> Tensor:
    """Return the prompt of router logits, [1, layers, P, D], without a gradient."""
    return prompt_of(pool, logits)
