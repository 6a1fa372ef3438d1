"""The prediction p(x0 | xt) at masked positions, and the sums over the vocabulary that the bound needs.

n masked positions times V entries is the largest thing in a training step. Here it exists as logits and as
probabilities; everything else is one number per position, and the gradient is written out by hand.
"""

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from data.batch import Batch


class Prediction:
    """p(x0 | xt) at the masked targets of a batch."""

    def __init__(self, batch: Batch, xt: Tensor, masked: Tensor, logits: Tensor, barred: Tensor) -> None:
        """Take the logits, and give barred tokens probability 0.

        Args:
            batch: of B sentences.
            xt: int64 [B, L].
            masked: bool [B, L], the n positions that are predicted.
            logits: [n, V] row by row; they are changed.
            barred: int64 [m], tokens that no text holds.
        """
        self.batch, self.xt, self.masked = batch, xt, masked
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        self.logits = logits.index_fill_(1, barred, -torch.inf)
        """[n, V], float32 at least."""
        self.x0 = batch.input_ids[masked]
        """int64 [n]."""
        self.row = masked.nonzero()[:, 0]
        """int64 [n], the sentence of each position."""

    @cached_property
    def log_total(self) -> Tensor:
        """Log of the sum of exp(logits), [n], detached; computed from `probs`, since exponentials are expensive."""
        largest, token = self.logits.detach().max(-1)
        return largest - self.probs.gather(-1, token[:, None]).squeeze(-1).log()

    @cached_property
    def probs(self) -> Tensor:
        """pi, [n, V], detached."""
        return self.logits.detach().softmax(-1)

    @cached_property
    def cross_entropy(self) -> Tensor:
        """-log pi(x0), float64 [n]."""
        if self.logits.requires_grad:
            return F.cross_entropy(self.logits, self.x0, reduction="none").double()
        return (self.log_total - self.logits.gather(-1, self.x0[:, None]).squeeze(-1)).double()

    def expectation(self, statistic: Tensor) -> Tensor:
        """Return the mean of a statistic [V] under pi, [n], detached."""
        return self.probs @ statistic.to(self.probs.dtype)

    def per_row(self, values: Tensor) -> Tensor:
        """Sum values [n] over each sentence, [B]."""
        return torch.zeros(len(self.xt), dtype=values.dtype, device=values.device).index_add(0, self.row, values)

    def spindle_terms(self, statistic: Tensor, table: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the KL with a spindle needs, each float64 [n] and differentiable by the logits.

        Args:
            statistic: [V].
            table: [B, V], u^(k) of every candidate in every sentence: a function of the statistic's expectations.
            slope: [B, V], its derivative by the expectation at any one masked position of the sentence.

        Returns:
            -log pi(x0); sum_k pi(k) u^(k); u^(x0) as the table has it.
        """
        return _SpindleTerms.apply(self.logits, self, statistic, table, slope)


class _SpindleTerms(torch.autograd.Function):
    """Three sums over the vocabulary, with their gradient by a logit.

    With g the incoming ones, E the expectation of the statistic H, and R = sum_k pi(k) u^(k),
    d/d logit(k) = pi(k) (g_R u^(k) + e H(k) + g_ce - g_R R - e E) - g_ce [k = x0],
    e = sum over the sentence's positions of g_own slope(x0) + g_R sum_k pi(k) slope(k).
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, logits: Tensor, prediction: Prediction, statistic: Tensor, table: Tensor, slope: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return -log pi(x0), R and u^(x0)."""
        probs = prediction.probs
        narrow, lengths = table.to(probs.dtype), prediction.masked.sum(1).tolist()
        revealed = torch.cat([p @ u for p, u in zip(probs.split(lengths), narrow, strict=True)])
        sentences = (statistic.to(probs.dtype), narrow, slope.to(probs.dtype))
        ctx.lengths = lengths
        ctx.save_for_backward(probs, prediction.x0, revealed, *sentences)  # not the logits: they may go
        cross_entropy = prediction.log_total - prediction.logits.detach().gather(-1, prediction.x0[:, None]).squeeze(-1)
        return cross_entropy.double(), revealed.double(), table[prediction.row, prediction.x0]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        """Apply the formula above."""
        probs, x0, revealed, statistic, table, slope = ctx.saved_tensors
        g_ce, g_revealed, g_own = (g.to(table.dtype) for g in incoming)
        grad = torch.empty_like(probs)
        parts = (part.split(ctx.lengths) for part in (probs, grad, x0, g_ce, g_revealed, g_own, revealed))
        for b, (p, out, x, ce, g, own, r) in enumerate(zip(*parts, strict=True)):
            pull = (own * slope[b, x]).sum() + g @ (p @ slope[b])
            constant = ce - g * r - pull * (p @ statistic)
            factors = torch.stack([g, pull.expand_as(g), constant], 1)
            torch.mm(factors, torch.stack([table[b], statistic, torch.ones_like(statistic)]), out=out)
            out.mul_(p)
        grad.scatter_add_(1, x0[:, None], -g_ce[:, None])
        return grad, None, None, None, None
