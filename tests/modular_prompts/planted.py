"""A world in which the idea of modular prompts holds by construction.

A frozen random network maps rows of random tokens to four logits. Hidden modules are planted in it; a task is a
mixture of them, and its labels are what the network then says. A learner that is given the modules needs the router
alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from transformers import BertConfig, BertModel

from modular_prompts.insertion import prompts_in
from modular_prompts.options import PoolShape
from modular_prompts.pool import PromptPool
from modular_prompts.tuning import Examples, prompt_of

OPTIONS, LENGTH, WIDTH, TEXT = 4, 4, 64, 8
"""Options of a task, P, D, and random tokens of a row."""
CLS, FIRST, LAST, WORDS = 1, 2, 9, 10
"""Ids of [CLS], the first placeholder, the token that is read out, and the first word."""
SHARPNESS = 4.0
"""Factor of the student's logits. The labels are certain, so with a factor of 1 the teacher's mixture does not minimise
the cross-entropy."""


@dataclass
class Task:
    """A task of the planted world."""

    train: Examples
    test: Examples


class PlantedWorld:
    """Network, hidden modules, and tasks that are drawn from them."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.generator = Generator().manual_seed(seed)
        config = BertConfig(
            vocab_size=200,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            initializer_range=0.2,
            hidden_dropout_prob=0,
            attention_probs_dropout_prob=0,
        )
        self.network = BertModel(config).eval().requires_grad_(False)
        self.readout = torch.randn(WIDTH, OPTIONS) * 3 / 8
        self.modules = PromptPool(PoolShape(4, LENGTH, WIDTH, 2), self.generator, scale=1.5)

    def logits(self, ids: Tensor, prompts: Tensor) -> Tensor:
        """Return the network's logits of rows, [n, OPTIONS]."""
        with prompts_in(list(self.network.encoder.layer), prompts):
            hidden = self.network(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return hidden[:, -1] @ self.readout

    def rows(self, number: int) -> Tensor:
        """Return random rows, [number, L]."""
        ids = torch.randint(WORDS, 200, (number, 1 + LENGTH + TEXT + 1), generator=self.generator)
        ids[:, 0], ids[:, -1] = CLS, LAST
        ids[:, 1 : 1 + LENGTH] = torch.arange(FIRST, FIRST + LENGTH)
        return ids

    @torch.no_grad()
    def task(self, number: int, *, shots: int = 0) -> Task:
        """Return a task with `number` training rows, or the first `shots` rows a label of them, and 500 test rows."""
        prompt = prompt_of(self.modules, 3 * torch.randn(1, 4, generator=self.generator))
        mean = self.logits(self.rows(1000), prompt).mean(0)

        def examples(ids: Tensor) -> Examples:
            labels = (self.logits(ids, prompt) - mean).argmax(-1)
            if shots and len(ids) == number:
                picked = torch.cat([(labels == option).nonzero()[:shots, 0] for option in range(OPTIONS)])
                ids, labels = ids[picked], labels[picked]
            return Examples(lambda rows, prompts: SHARPNESS * (self.logits(ids[rows], prompts) - mean), labels)

        return Task(examples(self.rows(number)), examples(self.rows(500)))


def joined(tasks: Sequence[Examples]) -> Examples:
    """Return tasks as one, scored one after the other."""
    sizes = [len(task.labels) for task in tasks]
    ends = torch.tensor(sizes).cumsum(0)

    def scores(rows: Tensor, prompts: Tensor) -> Tensor:
        owners = torch.searchsorted(ends, rows, right=True)
        parts = []
        for owner in owners.unique_consecutive().tolist():
            own = owners == owner
            first = ends[owner] - sizes[owner]
            parts.append(tasks[owner].scores(rows[own] - first, prompts if len(prompts) == 1 else prompts[own]))
        most = max(part.shape[1] for part in parts)
        return torch.cat([nn.functional.pad(p, (0, most - p.shape[1]), value=-torch.inf) for p in parts])

    return Examples(scores, torch.cat([task.labels for task in tasks]), tuple(sizes))
