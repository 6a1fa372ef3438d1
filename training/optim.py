"""Learning rate schedules, optimizers and the moving average of the weights."""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from training.arguments import OptimArgs
from training.muon import Muon


def warm_up_share(args: OptimArgs, step: int, progress: float, warmup_steps: int) -> float:
    """Return the share of the warm-up done at `step` (from 1); the warm-up is over from 1 on.

    Without --warmup_steps the warm-up also ends after a hundredth of max_minutes, because a training limited by time
    may take far fewer steps than max_steps. late_cosine counts steps only.
    """
    steps_only = args.warmup_steps or args.lr_schedule == "late_cosine"
    return max(step / warmup_steps, 0.0 if steps_only else 100 * progress)


def learning_rate(args: OptimArgs, step: int, progress: float, warmup_steps: int, warmed: float = 0.0) -> float:
    """Return the learning rate at `step` (from 1).

    cosine and linear fall from the peak at the end of the warm-up to 0.02 of it at the end of the training.
    inverse_sqrt is the released schedule, scaled to the peak args.learning_rate: (step / warmup + 1e-3) during the
    warm-up, then sqrt(warmup / step). late_cosine is (1 + cos(pi (step - warmup) / n)) / 2 for a training of n steps,
    and ends slightly above zero.

    Args:
        args: peak and name of the schedule.
        step: from 1.
        progress: share of the training done before this step, in [0, 1].
        warmup_steps: at least 1.
        warmed: progress at the end of the warm-up, where the decay begins.
    """
    if args.lr_schedule == "inverse_sqrt":
        factor = step / warmup_steps + 1e-3 if step < warmup_steps else math.sqrt(warmup_steps / step)
        return args.learning_rate * factor
    if warm_up_share(args, step, progress, warmup_steps) < 1:
        share_by_time = warm_up_share(args, 0, progress, warmup_steps)
        return max(args.learning_rate * step / warmup_steps, args.learning_rate * share_by_time)
    if args.lr_schedule == "late_cosine":
        late = progress * (step - warmup_steps) / max(1, step - 1)  # steps after the warm-up, over all steps
        return args.learning_rate * (1 + math.cos(math.pi * min(late, 1))) / 2
    decayed = min(1.0, max(0.0, progress - warmed) / (1 - warmed)) if warmed < 1 else 0.0
    if args.lr_schedule == "cosine":
        return args.learning_rate * (0.02 + 0.98 * (1 + math.cos(math.pi * decayed)) / 2)
    if args.lr_schedule == "linear":
        return args.learning_rate * max(1 - decayed, 0.02)
    return args.learning_rate


def make_optimizers(
    args: OptimArgs, model: nn.Module, tables: list[nn.Module], head: Sequence[nn.Parameter] = ()
) -> list[torch.optim.Optimizer]:
    """Return AdamW, or Muon for the weights of linear maps and AdamW for all other weights.

    Muon orthogonalises the update of a matrix. Embeddings and the vocabulary head (`tables`) are lookup tables, not
    maps, and use AdamW. match_rms_adamw scales Muon's steps so that both optimizers share one learning rate. If the
    settings treat the `head` separately, its weights form groups of their own, with "of_head" set.
    """
    fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    table = {id(parameter) for module in tables for parameter in module.parameters()}
    table |= {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    learning = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in learning if p.ndim == 2 and id(p) not in table]
    matrix_ids = {id(p) for p in matrices}
    tables = [p for p in learning if p.ndim >= 2 and id(p) not in matrix_ids]
    vectors = [p for p in learning if p.ndim < 2]
    muon = args.optimizer == "muon" and bool(matrices)
    apart = {id(p) for p in head} if args.separate_head else set()

    def groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict]:
        found = []
        for of_head in (False, True):
            share = [p for p in parameters if (id(p) in apart) == of_head]
            found += [{"params": share, "weight_decay": weight_decay, "of_head": of_head}] if share else []
        return found

    betas = (args.adam_beta1, args.adam_beta2)
    slow = groups(tables if muon else matrices + tables, args.weight_decay) + groups(vectors, 0.0)
    adamw = [torch.optim.AdamW(slow, lr=args.learning_rate, betas=betas, fused=fused)] if slow else []
    return [Muon(groups(matrices, args.weight_decay), args.learning_rate), *adamw] if muon else adamw


class AveragedWeights:
    """Exponential moving average of the weights, with a warm-up: decay_n = min(decay, (1 + n) / (10 + n))."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start at the current weights; with decay 0 there is no average."""
        self.decay = decay
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.shadow = [p.detach().clone() for p in self.parameters] if decay else []
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current weights."""
        if self.decay:
            self.updates += 1
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(self.shadow, self.parameters, 1 - decay)

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Replace the model's weights by their average for the duration of a block."""
        if not self.decay:
            yield
            return
        current = [p.detach().clone() for p in self.parameters]
        self._load(self.shadow)
        try:
            yield
        finally:
            self._load(current)

    @torch.no_grad()
    def _load(self, tensors: list[torch.Tensor]) -> None:
        for parameter, tensor in zip(self.parameters, tensors, strict=True):
            parameter.copy_(tensor)
