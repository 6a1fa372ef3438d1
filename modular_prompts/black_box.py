"""A new task when only the scores of the network can be had: CMA-ES on the router, then on the code of the prompt.

A call scores all training rows once; the number of calls is what a user of a remote network pays. CMA-ES (Hansen and
Ostermeier 2001) is that of the package cma.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modular_prompts.options import Search
from modular_prompts.pool import PromptPool, normalised
from modular_prompts.tuning import Examples, prompt_of
from utils.errors import UserError

BOUND = 5.0
"""Router logits are searched in [-5, 5], as in the released program."""


@dataclass(frozen=True)
class Found:
    """Result of a search."""

    values: Tensor
    """Best values, by the training loss."""
    loss: float
    calls: int
    """Calls made, that of the start included."""


@torch.no_grad()
def search_router(pool: PromptPool, train: Examples, search: Search) -> Found:
    """Return router logits of a new task, [1, K], from uniform weights; K numbers are searched."""
    number = pool.shape.num_modules

    def prompt(values: Tensor) -> Tensor:
        return prompt_of(pool, values[None])

    found = _minimise(np.zeros(number), prompt, train, search, BOUND)
    return Found(found.values[None], found.loss, found.calls)


@torch.no_grad()
def search_code(pool: PromptPool, logits: Tensor, train: Examples, search: Search) -> Found:
    """Return the code of a prompt, [layers, d], from the mixture sum_k w_k z_k of router logits [1, K].

    Its prompt is `prompt_of_code`. All layers are searched at once, layers times d numbers.

    Raises:
        UserError: if the modules have no codes.
    """
    if not pool.shape.intrinsic_size:
        raise UserError(
            "intrinsic_size=0: the modules are free, without codes to search; pre-train with intrinsic_size"
        )
    start = normalised(torch.sigmoid(logits)) @ pool.codes  # [layers, 1, d]
    shape = start[:, 0].shape

    def prompt(values: Tensor) -> Tensor:
        return prompt_of_code(pool, values.view(shape))

    found = _minimise(start.flatten().double().numpy(), prompt, train, search)
    return Found(found.values.view(shape), found.loss, found.calls)


def prompt_of_code(pool: PromptPool, code: Tensor) -> Tensor:
    """Return the prompt x A, [1, layers, P, D], of a code [layers, d]."""
    shape = pool.shape
    return (code[:, None] @ pool.projection).view(1, shape.num_layers, shape.length, shape.hidden_size)


def require_cma() -> None:
    """Require the package cma.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import cma  # noqa: F401
    except ImportError as error:
        raise UserError(f"a black-box search needs the package cma ({error}); pip install cma") from error


def _minimise(
    start: np.ndarray,
    to_prompt: Callable[[Tensor], Tensor],
    train: Examples,
    search: Search,
    bound: float | None = None,
) -> Found:
    """Minimise the training loss; the start counts as a candidate, so the result is never worse.

    Raises:
        UserError: if the package cma is not installed, or the settings allow no generation.
    """
    require_cma()
    from cma import CMAEvolutionStrategy

    if not 2 <= search.population < search.calls:
        raise UserError(
            f"calls={search.calls}, population={search.population}: give at least one generation and the start"
        )
    rows, calls = torch.arange(len(train.labels)), 0

    def loss(values: np.ndarray) -> float:
        nonlocal calls
        calls += 1
        return float(train.loss(to_prompt(torch.tensor(values, dtype=torch.float32)), rows))

    best, least = start, loss(start)
    options = {"popsize": search.population, "seed": search.seed + 1, "verbose": -9}  # a seed of 0 is that of the clock
    options |= {"bounds": [-bound, bound]} if bound else {}
    strategy = CMAEvolutionStrategy(start, search.sigma, options)
    while calls + search.population <= search.calls and not strategy.stop():
        candidates = strategy.ask()
        losses = [loss(candidate) for candidate in candidates]
        strategy.tell(candidates, losses)
        if min(losses) < least:
            best, least = candidates[int(np.argmin(losses))], min(losses)
    return Found(torch.tensor(best, dtype=torch.float32), least, calls)
