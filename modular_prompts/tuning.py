"""A new task from few examples: first the router alone, K numbers, then the prompt that it mixes.

The network and the pool stay as they are. Gates are not drawn here, so that tuning minimises what is evaluated.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from modular_prompts.options import Stage
from modular_prompts.pool import PromptPool, normalised
from utils.errors import UserError

Scores = Callable[[Tensor, Tensor], Tensor]
"""Map numbers of rows, int64 [n], and prompts, [1 or n, layers, P, D], to scores of their options, [n, options]."""


@dataclass(frozen=True)
class Examples:
    """Rows of one or more tasks with their right options."""

    scores: Scores
    labels: Tensor
    """int64 [rows]."""
    sizes: tuple[int, ...] = ()
    """Rows of each task, in order; empty: all rows are of one."""
    balanced: bool = False
    """Whether every label counts the same in the score, however many rows it has."""

    metric = "accuracy"
    """Name of the score."""

    def loss(self, prompts: Tensor, rows: Tensor, generator: Generator | None = None) -> Tensor:
        """Return the mean cross-entropy of the right options; rows without an option have -inf there.

        Args:
            prompts: [1 or n, layers, P, D].
            rows: int64 [n].
            generator: source of the loss's draws, where it has any.
        """
        return nn.functional.cross_entropy(self.scores(rows, prompts), self.labels[rows])

    @torch.no_grad()
    def choices(self, prompts: Tensor, rows_at_once: int = 256) -> Tensor:
        """Return the best option of each row, int64 [rows]."""
        rows = torch.arange(len(self.labels)).split(rows_at_once)
        return torch.cat([self.scores(part, prompts).argmax(-1) for part in rows])

    def score(self, prompts: Tensor) -> float:
        """Return a figure to maximise: here the accuracy, or its mean over the labels if `balanced`."""
        return balanced_accuracy(self.choices(prompts), self.labels) if self.balanced else self.accuracy(prompts)

    def accuracy(self, prompts: Tensor) -> float:
        """Return the share of rows whose best option is right."""
        return float((self.choices(prompts) == self.labels).double().mean())


def balanced_accuracy(choices: Tensor, labels: Tensor) -> float:
    """Return the mean over labels of the share of their rows that are answered rightly; both are int64 [rows]."""
    shares = [(choices[labels == label] == label).double().mean().item() for label in labels.unique()]
    return sum(shares) / len(shares)


def tune_router(
    pool: PromptPool,
    train: Examples,
    stage: Stage,
    generator: Generator,
    develop: Examples | None = None,
    *,
    start: Tensor | None = None,
) -> Tensor:
    """Return router logits of a new task, [1, K].

    Args:
        pool: the modules; unchanged.
        train: its examples.
        stage: settings.
        generator: draws the rows.
        develop: examples by which the best step is chosen.
        start: router logits to start from, [1, K]; default: uniform weights.
    """
    start = torch.zeros(1, pool.shape.num_modules) if start is None else start
    return _fit(start, lambda logits: prompt_of(pool, logits), train, stage, generator, develop)


def tune_prompt(
    start: Tensor, train: Examples, stage: Stage, generator: Generator, develop: Examples | None = None
) -> Tensor:
    """Return a prompt, [1, layers, P, D], tuned from a start; arguments are those of `tune_router`."""
    return _fit(start, lambda prompt: prompt, train, stage, generator, develop)


def prompt_of(pool: PromptPool, logits: Tensor) -> Tensor:
    """Return the prompt, [1, layers, P, D], of router logits [1 or layers, K]."""
    return pool(normalised(torch.sigmoid(logits))[None])


def _fit(
    start: Tensor,
    to_prompt: Callable[[Tensor], Tensor],
    train: Examples,
    stage: Stage,
    generator: Generator,
    develop: Examples | None,
) -> Tensor:
    """Minimise the loss over one tensor by Adam without weight decay."""
    values = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([values], stage.learning_rate)
    number, best, kept = len(train.labels), -1.0, start
    for step in range(stage.steps):
        if develop and stage.check_every and step % stage.check_every == 0:
            best, kept = _better(best, kept, values, develop.score(to_prompt(values.detach())))
        optimizer.param_groups[0]["lr"] = stage.learning_rate * (1 - step / stage.steps)
        rows = torch.randperm(number, generator=generator)[: stage.batch_size or number]
        loss = require_finite(train.loss(to_prompt(values), rows, generator))
        (values.grad,) = torch.autograd.grad(loss, [values])
        optimizer.step()
    values = values.detach()
    if develop and stage.check_every:
        return _better(best, kept, values, develop.score(to_prompt(values)))[1]
    return values


def require_finite(loss: Tensor) -> Tensor:
    """Return a loss.

    Raises:
        UserError: if it is not finite.
    """
    if not loss.isfinite():
        raise UserError(f"the loss of tuning is {loss.item()}; lower the learning rates, or use --precision fp32")
    return loss


def _better(best: float, kept: Tensor, values: Tensor, accuracy: float) -> tuple[float, Tensor]:
    """Return the values of higher accuracy; the later ones if equal."""
    return (accuracy, values.detach().clone()) if accuracy >= best else (best, kept)
