"""What a network says of the masked tokens, and the sums over the vocabulary that the bound takes of it.

n masked positions times V entries is the largest thing in a training step. Here it exists as logits and as
probabilities; whatever else the loss needs is a number a position, and the gradient is written out by hand.
"""

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from data.batch import Batch


class Prediction:
    """p(x0 | xt) at the masked targets of a batch."""

    def __init__(self, batch: Batch, xt: Tensor, masked: Tensor, logits: Tensor) -> None:
        """Keep the logits.

        Args:
            batch: of B sentences.
            xt: int64 [B, L].
            masked: bool [B, L], the n positions that are predicted.
            logits: [n, V] row by row, float32 at least; -inf where nothing may be predicted.
        """
        self.batch, self.xt, self.masked, self.logits = batch, xt, masked, logits
        self.x0 = batch.input_ids[masked]
        """int64 [n]."""
        self.row = masked.nonzero()[:, 0]
        """int64 [n], the sentence of each position."""

    @cached_property
    def log_total(self) -> Tensor:
        """Log of the sum of exp(logits), [n], cut off from the graph; by way of `probs`, as exponentials are dear."""
        largest, place = self.logits.detach().max(-1)
        return largest - self.probs.gather(-1, place[:, None]).squeeze(-1).log()

    @cached_property
    def probs(self) -> Tensor:
        """Pi, [n, V], cut off from the graph."""
        return self.logits.detach().softmax(-1)

    @cached_property
    def cross_entropy(self) -> Tensor:
        """-log pi(x0), float64 [n]."""
        if self.logits.requires_grad:
            return F.cross_entropy(self.logits, self.x0, reduction="none").double()
        return (self.log_total - self.logits.gather(-1, self.x0[:, None]).squeeze(-1)).double()

    def expectation(self, statistic: Tensor) -> Tensor:
        """Mean of a statistic [V] under pi, [n], cut off from the graph."""
        return self.probs @ statistic.to(self.probs.dtype)

    def per_row(self, values: Tensor) -> Tensor:
        """Sums over each sentence, [B], of values [n]."""
        return torch.zeros(len(self.xt), dtype=values.dtype, device=values.device).index_add(0, self.row, values)

    def spindle_terms(self, statistic: Tensor, table: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the KL with a spindle needs, each float64 [n] and on the graph of the logits.

        Args:
            statistic: [V].
            table: [B, V], u^(k) of every candidate in every sentence: a function of the statistic's expectations.
            slope: [B, V], its derivative by the expectation at any one masked position of the sentence.

        Returns:
            -log pi(x0); sum_k pi(k) u^(k); u^(x0) as the table has it.
        """
        return _SpindleTerms.apply(self.logits, self, statistic, table, slope)


class _SpindleTerms(torch.autograd.Function):
    """The gradient by a logit.

    With g the incoming ones, E the expectation of the statistic H, and R = sum_k pi(k) u^(k),
    d/d logit(k) = pi(k) (g_R u^(k) + e H(k) + g_ce - g_R R - e E) - g_ce [k = x0],
    e = sum over the sentence's positions of g_own slope(x0) + g_R sum_k pi(k) slope(k).
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, logits: Tensor, prediction: Prediction, statistic: Tensor, table: Tensor, slope: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Three sums over the vocabulary."""
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
        """See the class."""
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
