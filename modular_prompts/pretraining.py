"""Modules and routers of many tasks, trained together on a frozen network."""

import torch
from torch import Generator, Tensor, nn

from diffusion.draws import sentence_seed
from modular_prompts.arguments import PretrainArgs
from modular_prompts.pool import PromptPool, Router
from modular_prompts.tuning import Examples


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
