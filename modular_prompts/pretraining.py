"""Modules and routers of many tasks, trained together on a frozen network."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator

from modular_prompts.pool import PromptPool, Router
from modular_prompts.tuning import Examples


@dataclass(frozen=True)
class PretrainArgs:
    """Settings of multi-task pre-training."""

    steps: int
    tasks_per_step: int = 4
    rows_per_task: int = 8
    prompt_rate: float = 5e-3
    """Learning rate of the modules at the first step; both rates fall linearly to 0."""
    router_rate: float = 5e-2
    temperature: float = 1.0


def pretrain(
    pool: PromptPool, router: Router, tasks: Sequence[Examples], args: PretrainArgs, generator: Generator
) -> None:
    """Train pool and router in place.

    A step takes `tasks_per_step` different tasks, drawn uniformly whatever their size, with one draw of the gates for
    each task. Adam has no weight decay, which would pull the logits to uniform weights.
    """
    groups = [
        {"params": pool.parameters(), "lr": args.prompt_rate},
        {"params": router.parameters(), "lr": args.router_rate},
    ]
    optimizer = torch.optim.Adam(groups)
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(args.steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - step / args.steps)
        optimizer.zero_grad()
        chosen = torch.randperm(len(tasks), generator=generator)[: args.tasks_per_step]
        uniform = router.draw(generator)
        for number in chosen.tolist():
            task = tasks[number]
            rows = torch.randperm(len(task.labels), generator=generator)[: args.rows_per_task]
            prompt = pool(router(torch.tensor([number]), uniform, args.temperature))
            (task.loss(prompt, rows) / len(chosen)).backward()
        optimizer.step()
