"""The moving parts of a training step that are not the process: learning rate, optimizers, averaged weights."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from utils.errors import UserError, check_choices


@dataclass(frozen=True)
class OptimArgs:
    """How the weights move."""

    optimizer: str = field(
        default="adamw", metadata={"choices": ["adamw", "muon"], "help": "muon: for the matrices, AdamW for the rest"}
    )
    learning_rate: float = field(default=5e-5, metadata={"aliases": ["--lr"], "help": "peak learning rate"})
    lr_schedule: str = field(
        default="cosine",
        metadata={
            "choices": ["constant", "cosine", "linear", "inverse_sqrt", "late_cosine"],
            "help": "after the warm-up; inverse_sqrt is the released one; late_cosine begins at its end (thorinf's)",
        },
    )
    warmup_steps: int = field(default=0, metadata={"help": "steps of linear warm-up; 0: a hundredth of the training"})
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW's decay of the mean gradient"})
    adam_beta2: float = field(
        default=0.98, metadata={"help": "AdamW's decay of the mean squared gradient (released: 0.999)"}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "on matrices only"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "clip the gradient's norm; 0: do not"})
    max_grad_value: float = field(default=0.0, metadata={"help": "clip each gradient (released: 5); 0: do not"})
    ema_decay: float = field(default=0.0, metadata={"help": "average of the weights that is scored and saved; 0: none"})

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 < self.learning_rate <= 1e3:
            raise UserError(f"learning_rate={self.learning_rate} must be above 0, and at most 1000")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay={self.ema_decay} must lie in [0, 1); 0.999 is usual, 0 switches it off")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must lie in [0, 1); 0.9 and 0.98 are the defaults")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm", "max_grad_value"):
            if not 0 <= getattr(self, name) <= 1e12:
                raise UserError(f"{name}={getattr(self, name)} must lie in 0..1e12")


def warmth(args: OptimArgs, step: int, progress: float, warmup_steps: int) -> float:
    """The share of the warm-up that is done at `step` (from 1); 1 and more: all of it.

    A warm-up that was not given in steps is a hundredth of the training, and so ends with a hundredth of its time, too:
    by the clock (max_minutes), max_steps may be many times what there will be. late_cosine counts steps alone.
    """
    by_steps_alone = args.warmup_steps or args.lr_schedule == "late_cosine"
    return max(step / warmup_steps, 0.0 if by_steps_alone else 100 * progress)


def learning_rate(args: OptimArgs, step: int, progress: float, warmup_steps: int, warmed: float = 0.0) -> float:
    """The rate at `step` (from 1).

    cosine and linear fall from the peak at the end of the warm-up to 0.02 of it at the end of the training.
    inverse_sqrt is the released schedule, scaled so that its peak is args.learning_rate: (step / warmup + 1e-3) up to
    the end of the warm-up, then sqrt(warmup / step). late_cosine, with n steps in all, is
    (1 + cos(pi (step - warmup) / n)) / 2, and ends a little above zero.

    Args:
        args: the peak and the schedule's name.
        step: from 1.
        progress: share of the training that is done before it, in [0, 1].
        warmup_steps: at least 1.
        warmed: the progress at which the warm-up ended, from which on the rate falls.
    """
    if args.lr_schedule == "inverse_sqrt":
        factor = step / warmup_steps + 1e-3 if step < warmup_steps else math.sqrt(warmup_steps / step)
        return args.learning_rate * factor
    if warmth(args, step, progress, warmup_steps) < 1:
        by_time = warmth(args, 0, progress, warmup_steps)
        return max(args.learning_rate * step / warmup_steps, args.learning_rate * by_time)
    if args.lr_schedule == "late_cosine":
        late = progress * (step - warmup_steps) / max(1, step - 1)  # steps after the warm-up, over all steps
        return args.learning_rate * (1 + math.cos(math.pi * min(late, 1))) / 2
    fallen = min(1.0, max(0.0, progress - warmed) / (1 - warmed)) if warmed < 1 else 0.0
    if args.lr_schedule == "cosine":
        return args.learning_rate * (0.02 + 0.98 * (1 + math.cos(math.pi * fallen)) / 2)
    if args.lr_schedule == "linear":
        return args.learning_rate * max(1 - fallen, 0.02)
    return args.learning_rate


def make_optimizers(args: OptimArgs, model: nn.Module, tables: list[nn.Module]) -> list[torch.optim.Optimizer]:
    """AdamW alone, or Muon for the weights of linear maps and AdamW for everything else.

    Muon makes every update of a matrix a near-orthogonal one; embeddings and the vocabulary head (`tables`) hold
    rows, are no maps, and stay with AdamW. match_rms_adamw scales Muon's steps so that one learning rate serves both.
    """
    fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    table = {id(parameter) for module in tables for parameter in module.parameters()}
    table |= {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim == 2 and id(p) not in table]
    matrix_ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in matrix_ids]
    tables = [p for p in others if p.ndim >= 2]
    vectors = [p for p in others if p.ndim < 2]
    muon = args.optimizer == "muon"
    groups = [
        {"params": tables if muon else matrices + tables, "weight_decay": args.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas = (args.adam_beta1, args.adam_beta2)
    adamw = torch.optim.AdamW(groups, lr=args.learning_rate, betas=betas, fused=fused)
    if not muon or not matrices:
        return [adamw]
    extra = {"lr": args.learning_rate, "weight_decay": args.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
    return [torch.optim.Muon(matrices, **extra), adamw]


class AveragedWeights:
    """An exponential moving average of the weights, with a warm-up: decay_n = min(decay, (1 + n) / (10 + n))."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Starts at the current weights; decay 0 means the weights themselves."""
        self.decay = decay
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.shadow = [p.detach().clone() for p in self.parameters] if decay else []
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights as they are now."""
        if self.decay:
            self.updates += 1
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(self.shadow, self.parameters, 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block, the model holds the average."""
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
