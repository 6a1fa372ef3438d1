"""What a network says of the masked tokens, and the sums over the vocabulary that the bound takes of it.

n masked positions times V entries is the largest thing in a training step. Here it exists as logits and as
probabilities; whatever else the loss needs is a number a position, and the gradient is written out by hand.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils.checkpoint import checkpoint

from draws import stratified_uniform, uniform
from process import WHOLE, Batch, Denoiser, Loss, Share

LOGITS_AT_ONCE = 2**24
"""64 MiB of them in float32: so many make up a part, where there are parts."""
SENTENCE = 5
"""Positions that a sentence counts for, masked or not: the spindle's tables of it are float64, and several."""


def in_parts(
    terms: Callable[[Tensor, slice], tuple[Tensor, ...]],
    hidden: Tensor,
    counts: Tensor,
    vocab_size: int,
    *,
    again: bool,
) -> tuple[Tensor, ...]:
    """What `terms` makes of masked positions, a few sentences at a time where that pays.

    Without a gradient it always does. With one, a part's logits are kept for it, or made again: that costs a further
    product with the vocabulary matrix. (torch's own linear_cross_entropy in chunks holds no more, but is of no use
    where the loss is more than the cross-entropy of x0, and on a CPU takes eight times as long as the plain one.)

    Args:
        terms: from the hidden states of some sentences' positions, and which sentences, to tensors [n] of terms.
        hidden: [n, D], row by row.
        counts: int64 [B], positions of each sentence.
        vocab_size: V, logits of a position.
        again: whether logits are made again for the gradient.

    Returns:
        The parts put together, each [n].
    """
    with_gradient = torch.is_grad_enabled()
    sizes = counts.tolist()
    rows = [slice(None)] if with_gradient and not again else cut(sizes, LOGITS_AT_ONCE // vocab_size)
    if len(rows) == 1:
        return terms(hidden, slice(None))
    found, begin = [], 0
    for chosen in rows:
        end = begin + sum(sizes[chosen])
        part, begin = hidden[begin:end], end
        found.append(checkpoint(terms, part, chosen, use_reentrant=False) if with_gradient else terms(part, chosen))
    return tuple(torch.cat(pieces) for pieces in zip(*found, strict=True))


def cut(sizes: list[int], at_once: int) -> list[slice]:
    """Neighbouring sentences whose positions, and they themselves, add up to `at_once` at most; none is ever cut."""
    cuts, held = [0], 0
    for row, size in enumerate(sizes):
        if held and held + size + SENTENCE > at_once:
            cuts.append(row)
            held = 0
        held += size + SENTENCE
    return [slice(*ends) for ends in zip(cuts, [*cuts[1:], len(sizes)], strict=True)]


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


class Masking(Protocol):
    """What a warm start asks of a masked process."""

    mask_id: int
    vocab_size: int

    def time_at(self, level: Tensor) -> Tensor:
        """When alpha_bar of an average token is at `level`."""
        ...

    def told(self, t: Tensor) -> Tensor:
        """What a time-conditioned network is told at t."""
        ...


def masked_lm_loss(
    process: Masking,
    denoiser: Denoiser,
    batch: Batch,
    *,
    rates: tuple[float, float],
    fused: bool = False,
    generator: Generator | None = None,
    share: Share = WHOLE,
) -> Loss:
    """Cross-entropy of tokens masked at a rate drawn per sentence from `rates`: BERT's own task, a warm start.

    Divided by the mean rate, so that a target token weighs one in expectation, as it does in a process's loss.
    """
    low, high = rates
    u = stratified_uniform(len(batch.input_ids), generator, share).to(batch.input_ids.device)
    rate = low + (high - low) * u
    noise = uniform(batch.noised, generator) < rate[:, None]  # never where a token is given
    xt, masked = batch.input_ids.masked_fill(noise, process.mask_id), noise & batch.target_mask

    def terms(hidden: Tensor, rows: slice) -> tuple[Tensor]:
        logits = denoiser.decode(hidden).float()
        return (F.cross_entropy(logits, batch.input_ids[rows][masked[rows]], reduction="none"),)

    hidden = denoiser.encode(xt, process.told(process.time_at(1 - rate)), batch.attention_mask)[masked]
    (cross_entropy,) = in_parts(terms, hidden, masked.sum(1), process.vocab_size, again=fused)
    total = cross_entropy.sum() / ((low + high) / 2)
    return Loss(total, batch.target_mask.sum(), {"cross_entropy": total.detach()})
