"""Pool of prompt modules that tasks share, and the router that mixes them (MP2, Sun et al. 2023, arXiv 2210.07565).

A task's prompt is p = sum_k w_k m_k. The modules m_k, [P, D] in each layer, are free, or products z_k A of a code z_k
of d numbers and a projection A that all modules share. The weights w come from K router logits l of the task:
w_k = g_k / sum_j g_j, where g_k = sigmoid(l_k). In training g is drawn from the relaxed Bernoulli distribution with
these logits.
"""

import math
from dataclasses import replace

import torch
from torch import Generator, Tensor, nn

from modular_prompts.options import PoolShape

LEAST = 1e-12
"""Added to the sum of the gates, so that gates that all vanish divide to 0."""


class PromptPool(nn.Module):
    """K prompts for each layer."""

    def __init__(self, shape: PoolShape, generator: Generator | None = None, *, scale: float = 0.1) -> None:
        """Start with free modules from N(0, scale^2), or codes and projection as in the released program."""
        super().__init__()
        self.shape = shape
        layers, size = shape.num_layers, shape.length * shape.hidden_size
        if shape.intrinsic_size:
            codes = torch.empty(layers, shape.num_modules, shape.intrinsic_size)
            self.codes = nn.Parameter(codes.uniform_(-1e-3, 1e-3, generator=generator))
            bound, projection = 1 / math.sqrt(size), torch.empty(layers, shape.intrinsic_size, size)
            self.projection = nn.Parameter(projection.uniform_(-bound, bound, generator=generator))
        else:
            free = torch.empty(layers, shape.num_modules, size)
            self.free = nn.Parameter(free.normal_(0, scale, generator=generator))

    def forward(self, weights: Tensor) -> Tensor:
        """Return prompts.

        Args:
            weights: [B, 1 or layers, K], weights of the modules for each row, shared by the layers or not.

        Returns:
            [B, layers, P, D].
        """
        shape = self.shape
        each = weights.expand(-1, shape.num_layers, -1).transpose(0, 1)  # [layers, B, K]
        mixed = each @ self.codes @ self.projection if shape.intrinsic_size else each @ self.free
        return mixed.transpose(0, 1).reshape(-1, shape.num_layers, shape.length, shape.hidden_size)

    @torch.no_grad()
    def freed(self) -> "PromptPool":
        """Return a pool of the same modules, each of them free."""
        pool = PromptPool(replace(self.shape, intrinsic_size=0))
        pool.free.copy_(self.codes @ self.projection if self.shape.intrinsic_size else self.free)
        return pool


class Router(nn.Module):
    """Logits of the modules for each task."""

    def __init__(
        self, num_tasks: int, num_modules: int, num_layers: int = 1, generator: Generator | None = None
    ) -> None:
        """Start near uniform weights; one set of logits for all layers, unless `num_layers` is more than 1."""
        super().__init__()
        logits = torch.empty(num_tasks, num_layers, num_modules)
        self.logits = nn.Parameter(logits.uniform_(-1e-3, 1e-3, generator=generator))

    def forward(self, tasks: Tensor, uniform: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Return the weights of the modules.

        Args:
            tasks: int64 [B], task of each row.
            uniform: numbers in (0, 1) for the draw, [tasks in all, num_layers, K]; all rows of a task share theirs.
                None: no draw, as in evaluation.
            temperature: of the draw; a small one draws gates near 0 or 1.

        Returns:
            [B, num_layers, K], summing to 1.
        """
        drawn = torch.sigmoid(self.logits) if uniform is None else relaxed_gates(self.logits, uniform, temperature)
        return normalised(drawn)[tasks]

    def draw(self, generator: Generator) -> Tensor:
        """Return uniform numbers for `forward`."""
        return torch.rand(self.logits.shape, generator=generator).to(self.logits.device)


def relaxed_gates(logits: Tensor, uniform: Tensor, temperature: float = 1.0) -> Tensor:
    """Return draws from the relaxed Bernoulli distribution (Maddison et al. 2017, arXiv 1611.00712), differentiable.

    g = sigmoid((log u - log(1 - u) + l) / temperature), so P(g > 1/2) = sigmoid(l) at every temperature.
    """
    least = torch.finfo(logits.dtype).eps
    u = uniform.to(logits.dtype).clamp(least, 1 - least)
    return torch.sigmoid((u.log() - torch.log1p(-u) + logits) / temperature)


def normalised(gates: Tensor) -> Tensor:
    """Return weights in proportion to the gates, [..., K], summing to 1."""
    return gates / (gates.sum(-1, keepdim=True) + LEAST)
