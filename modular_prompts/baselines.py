"""What modular prompts are compared with: the network alone, a linear probe, and training of the network's weights.

None of them has placeholders in its rows.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from models.denoiser import NetworkDenoiser
from models.lora import ALPHA, inject, linear_maps
from modular_prompts.few_shot import Outcome, Problem
from modular_prompts.options import Stage
from modular_prompts.readouts import Part, Readout, numbered
from modular_prompts.tuning import balanced_accuracy, require_finite
from utils.errors import UserError

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Weights of the probe's squared norm, of which the development rows choose one."""
ITERATIONS = 100
ROWS_AT_ONCE = 64


def no_prompt(problem: Problem) -> Outcome:
    """Leave the frozen network alone: zero-shot."""
    reader = problem.readout.plain()
    return Outcome(0, reader.nothing, test=reader.examples(problem.test))


def linear_probe(problem: Problem) -> Outcome:
    """Fit a linear map of the frozen network's mean hidden state to the labels, by L-BFGS.

    Where the options differ by row, one vector weighs the elementwise product of the hidden states of row and option.

    Raises:
        UserError: for a task without options.
    """
    if not problem.few[1][0].options:
        raise UserError(f"methods=linear-probe: {problem.few[0].name} has no options; leave that method out")
    reader, card = problem.readout.plain(), problem.few[0]
    parts = (problem.few, problem.develop, problem.test)
    pooled = [_pooled(reader, part) for part in parts]
    few, develop, test = (_standardised(part, pooled[0]) for part in pooled)
    if not card.labels:
        few, develop, test = (
            rows[:, None] * options for rows, options in zip((few, develop, test), _options(reader, parts), strict=True)
        )
    few, develop, test = (nn.functional.pad(part, (0, 1), value=1.0) for part in (few, develop, test))
    labels = [torch.tensor([row.label for row in rows]) for _, rows in parts]
    weights, best, chosen = torch.zeros(len(card.labels) or 1, few.shape[-1]), -1.0, None
    for penalty in PENALTIES:
        fitted = _fit_probe(weights, few, labels[0], penalty)
        choices = _probe(fitted, develop).argmax(-1)
        score = balanced_accuracy(choices, labels[1]) if card.labels else float((choices == labels[1]).double().mean())
        if score > best:
            best, chosen = score, _probe(fitted, test).argmax(-1)
    return Outcome(weights.numel(), choices=chosen)


@torch.no_grad()
def _pooled(reader: Readout, part: Part) -> Tensor:
    """Return mean hidden states of rows, [n, D]."""
    pieces = reader.pieces([part])
    rows = [reader.pooled(pieces[i : i + ROWS_AT_ONCE], reader.nothing) for i in range(0, len(pieces), ROWS_AT_ONCE)]
    return torch.cat(rows)


def _options(reader: Readout, parts: Sequence[Part]) -> list[Tensor]:
    """Return hidden states of the options of rows, [n, options, D]; NaN where a row has fewer.

    They are standardised by those of the first part, so that they do not depend on the test rows.
    """
    tokens = [reader.option_tokens([part]) for part in parts]
    vectors = [reader.option_vectors(own) for own in tokens]
    numbers = [numbered([part], own) for part, own in zip(parts, tokens, strict=True)]
    return [
        _standardised(own, vectors[0])[options].masked_fill((options < 0)[..., None], torch.nan)
        for own, options in zip(vectors, numbers, strict=True)
    ]


def _standardised(values: Tensor, known: Tensor) -> Tensor:
    """Return values [n, D] less the mean and over the deviation of known ones."""
    return (values - known.mean(0)) / (known.std(0) + 1e-6)


def _probe(weights: Tensor, features: Tensor) -> Tensor:
    """Return scores: of features [n, D] by weights [labels, D], or of [n, options, D] by [1, D]; -inf for NaN."""
    scores = features.nan_to_num() @ weights.T
    return scores if features.ndim == 2 else scores[..., 0].masked_fill(features[..., 0].isnan(), -torch.inf)


def _fit_probe(start: Tensor, features: Tensor, labels: Tensor, penalty: float) -> Tensor:
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(_probe(weights, features), labels) + penalty * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()


def full_tuning(problem: Problem) -> Outcome:
    """Train all weights of a copy of the network, through the same read-out."""
    return _train_weights(problem, problem.stages.network, lambda denoiser: denoiser.requires_grad_(True))


def lora(problem: Problem) -> Outcome:
    """Train LoRA adapters on a copy of the network, through the same read-out."""

    def change(denoiser: NetworkDenoiser) -> None:
        rank = problem.stages.rank
        inject(denoiser.network, {"r": rank, "lora_alpha": ALPHA * rank, "target_modules": linear_maps(denoiser)})

    return _train_weights(problem, problem.stages.adapter, change)


def _train_weights(problem: Problem, stage: Stage, change: Callable[[NetworkDenoiser], object]) -> Outcome:
    """Train what `change` makes trainable by AdamW without weight decay; the development rows choose the step.

    With readout=cosine, the vectors of the options stay those of the frozen network.
    """
    reader, generator = problem.readout.plain(), problem.generator
    reader.denoiser = copy.deepcopy(reader.denoiser)
    train, develop, test = reader.examples(problem.few), problem.looked_at(reader), reader.examples(problem.test)
    torch.manual_seed(problem.seed)  # adapters start at random
    change(reader.denoiser)
    weights = [p for p in reader.denoiser.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, stage.learning_rate, weight_decay=0)
    best, kept = -1.0, weights
    for step in range(stage.steps + 1):
        if step == stage.steps or (stage.check_every and step % stage.check_every == 0):
            score = develop.score(reader.nothing)
            if score >= best or not stage.check_every:
                best, kept = score, [p.detach().clone() for p in weights]
        if step < stage.steps:
            optimizer.param_groups[0]["lr"] = stage.learning_rate * (1 - step / stage.steps)
            rows = torch.randperm(len(train.labels), generator=generator)[: stage.batch_size or len(train.labels)]
            optimizer.zero_grad()
            require_finite(train.loss(reader.nothing, rows, generator)).backward()
            optimizer.step()
    with torch.no_grad():
        for parameter, value in zip(weights, kept, strict=True):
            parameter.copy_(value)
    used = sum(p.numel() for p in weights)
    return Outcome(used, reader.nothing, test=test)
