"""Modules and routers of many tasks, trained together on a frozen network."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from diffusion.draws import sentence_seed
from modular_prompts.pool import PromptPool, Router
from modular_prompts.tuning import Examples
from utils.errors import UserError, check_ranges

MOST_RATE = 1e3


@dataclass(frozen=True)
class PretrainArgs:
    """Settings of multi-task pre-training."""

    group: ClassVar[str] = "training"

    max_steps: int = field(default=5000, metadata={"help": "optimizer steps"})
    tasks_per_step: int = field(default=4, metadata={"help": "number of tasks in a step; all if there are fewer"})
    rows_per_task: int = field(default=4, metadata={"help": "rows of each task in a step"})
    prompt_rate: float = field(
        default=5e-3, metadata={"help": "learning rate of modules and span head; falls linearly to 0"}
    )
    router_rate: float = field(default=5e-2, metadata={"help": "learning rate of the routers; falls linearly to 0"})
    temperature: float = field(default=1.0, metadata={"help": "temperature of the gates' draws; small: near 0 or 1"})
    seed: int = field(default=0, metadata={"help": "random seed of the modules and of all draws"})

    def __post_init__(self) -> None:
        check_ranges(self, max_steps=(1, 10**9), tasks_per_step=(1, 10**4), rows_per_task=(1, 10**6))
        check_ranges(self, seed=(0, 2**63 - 1))
        for name in ("prompt_rate", "router_rate", "temperature"):
            if not 0 < getattr(self, name) <= MOST_RATE:
                raise UserError(f"{name}={getattr(self, name)} must be above 0, and at most {MOST_RATE:g}")


class Pretraining:
    """Pool and router under training.

    A step takes `tasks_per_step` different tasks, drawn uniformly whatever their size, with one draw of the gates for
    each task, and all their rows in one forward pass. Adam has no weight decay, which would pull the logits to uniform
    weights. The draws of a step follow from the seed and its number, so a run resumes exactly.
    """

    def __init__(
        self, pool: PromptPool, router: Router, tasks: Examples, args: PretrainArgs, head: nn.Module | None = None
    ) -> None:
        """Start with step 1.

        Args:
            pool, router: trained in place.
            tasks: rows of all tasks; `sizes` has those of each.
            args: settings.
            head: head of the read-out, which is trained at the rate of the modules.
        """
        self.pool, self.router, self.tasks, self.args = pool, router, tasks, args
        self.model = nn.ModuleDict({"pool": pool, "router": router, **({"head": head} if head else {})})
        modules = [*pool.parameters(), *(head.parameters() if head else ())]
        groups = [{"params": modules}, {"params": router.parameters()}]
        self.optimizer = torch.optim.Adam(groups)
        self.ends = torch.tensor(tasks.sizes).cumsum(0)

    def step(self, number: int) -> float:
        """Take a step, numbered from 1; return its loss."""
        args, left = self.args, 1 - (number - 1) / self.args.max_steps
        for group, rate in zip(self.optimizer.param_groups, (args.prompt_rate, args.router_rate), strict=True):
            group["lr"] = rate * left
        generator = Generator().manual_seed(sentence_seed(args.seed, number))
        rows, tasks = self.draw(generator)
        prompts = self.pool(self.router(tasks, self.router.draw(generator), args.temperature))
        loss = self.tasks.loss(prompts, rows, generator)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def draw(self, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draw rows, int64 [n], and their tasks. A task with fewer rows than wanted gives all of them."""
        sizes = self.tasks.sizes
        chosen = torch.randperm(len(sizes), generator=generator)[: self.args.tasks_per_step].tolist()
        own = [torch.randperm(sizes[i], generator=generator)[: self.args.rows_per_task] for i in chosen]
        rows = [part + self.ends[i] - sizes[i] for i, part in zip(chosen, own, strict=True)]
        return torch.cat(rows), torch.tensor(chosen).repeat_interleave(torch.tensor([len(part) for part in own]))
