"""Prediction p(x0 | xt) at the masked positions, and the sums over the vocabulary that the bound needs.

The largest tensor of a training step has n masked positions times V entries. To save memory, only the logits and the
probabilities have this shape. All other quantities are one number per position, and the gradient has a closed form.
"""

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from data.batch import Batch


class Prediction:
    """Prediction p(x0 | xt) at the masked targets of a batch, also written pi."""

    def __init__(self, batch: Batch, xt: Tensor, masked: Tensor, logits: Tensor, barred: Tensor) -> None:
        """Take the logits and set the probability of barred tokens to 0.

        Args:
            batch: B sentences.
            xt: int64 [B, L], noised tokens.
            masked: bool [B, L], the n positions that are predicted.
            logits: [n, V], in row-major order of the positions; changed in place.
            barred: int64 [m], tokens that never occur in text.
        """
        self.batch, self.xt, self.masked = batch, xt, masked
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        self.logits = logits.index_fill_(1, barred, -torch.inf)
        """[n, V], float32 or float64."""
        self.x0 = batch.input_ids[masked]
        """int64 [n], the true token of each position."""
        self.row = masked.nonzero()[:, 0]
        """int64 [n], the index of each position's sentence."""

    @cached_property
    def log_total(self) -> Tensor:
        """Log of sum_k exp(logit(k)), [n], detached; computed from `probs` to avoid a second pass of exponentials."""
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
        """Return the expectation of a statistic [V] under pi, [n], detached."""
        return self.probs @ statistic.to(self.probs.dtype)

    def per_row(self, values: Tensor) -> Tensor:
        """Sum values [n, ...] over the positions of each sentence, [B, ...]."""
        return values.new_zeros(len(self.xt), *values.shape[1:]).index_add(0, self.row, values)

    def spindle_terms(self, statistic: Tensor, table: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the terms of the KL under a spindle, each float64 [n] and differentiable in the logits.

        Args:
            statistic: [V].
            table: [B, V], posterior u^(k) of every candidate k in every sentence, a function of the expectations.
            slope: [B, V], derivative of u^(k) with respect to the expectation at one masked position.

        Returns:
            -log pi(x0), sum_k pi(k) u^(k), and u^(x0).
        """
        return _SpindleTerms.apply(self.logits, self, statistic, table, slope)


class _SpindleTerms(torch.autograd.Function):
    """The three terms and their gradient with respect to the logits.

    With g the incoming gradients, E the expectation of the statistic H, and R = sum_k pi(k) u^(k),
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
        # not the logits, whose memory can then be freed
        ctx.save_for_backward(probs, prediction.x0, revealed, *sentences)
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
