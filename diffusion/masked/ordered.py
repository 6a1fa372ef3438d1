"""Ordered decoding, and its exact likelihood: which masked tokens are revealed next depends on the row alone.

A forward pass predicts the masked tokens. An order ranks them, and the first k are revealed, each drawn from its own
prediction. As the choice of positions is deterministic, only one path leads from all masks to a given text, so

    -log p(x0) = sum over the forward passes of the sum over the k revealed positions i of -log p(x0_i | x_t).

Temperature, top-k and top-p are part of this law; an excluded token has an infinite -log p. The order is that of the
predictions before them. With several tokens a step these are drawn independently of each other, and the likelihood
shows what this costs. A network with time input gets the t at which as many tokens are masked on average.
Source: DUEL (arXiv 2603.01367).

    confidence      largest probability first
    entropy         least entropy first
    margin          largest difference between the two largest probabilities first
    left-to-right   first position first
    random-fixed    a fixed random order of positions, equal for all rows
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from data.batch import Batch
from diffusion.chunked_logits import MAX_LOGITS
from diffusion.draws import Generators, filter_logits, sample_categorical, uniform
from diffusion.masked.transitions import MaskedTransitions
from diffusion.options import ORDERS, SampleArgs, TokenLaw
from diffusion.process import Bound, Denoiser, StepCallback

TIES = 1e-4
"""Difference of two ranks below which positions tie, so that the network's rounding does not choose between them."""
ORDER_SEED = 0
"""Seed of random-fixed."""


def confidence(probs: Tensor) -> Tensor:
    """Return the largest probability of each prediction, [n], of probabilities [n, V]."""
    return probs.amax(-1)


def margin(probs: Tensor) -> Tensor:
    """Return the difference between the two largest probabilities, [n]."""
    first, second = probs.topk(2).values.unbind(-1)
    return first - second


def negative_entropy(probs: Tensor) -> Tensor:
    """Return sum p log p, [n]."""
    return torch.special.xlogy(probs, probs).sum(-1)


BY_PREDICTION: dict[str, Callable[[Tensor], Tensor]] = {
    "confidence": confidence,
    "entropy": negative_entropy,
    "margin": margin,
}
"""Ranks of orders that depend on the predictions; larger ones come first."""


def ranks_of_positions(order: str, number: int) -> Tensor:
    """Return the ranks of the first positions of a row in an order that depends on positions only, float64 [number]."""
    if order == "left-to-right":
        return -torch.arange(number, dtype=torch.float64)
    return torch.from_numpy(np.random.default_rng(ORDER_SEED).random(number))


class OrderedReveal:
    """Choice of the next positions, with their predictions."""

    def __init__(self, process: MaskedTransitions, denoiser: Denoiser, law: TokenLaw) -> None:
        """Take process, network, and the order and number of tokens of `law`."""
        self.process, self.denoiser, self.law = process, denoiser, law
        self.order, self.number = law.order or ORDERS[0], law.tokens_per_step or 1
        self.text = process.sampling_support.clone()
        """[V], 0 for tokens of clean text, -inf for others."""
        self.text[list(process.vocabulary.unsampled_ids)] = 0

    def next(self, batch: Batch, xt: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions that are revealed next, bool [B, L], and their logits, [n, V], in row-major order.

        Args:
            batch: B rows.
            xt: int64 [B, L], their tokens.
            targets: bool [B, L], tokens that are masked at first.
        """
        width = int(batch.attention_mask.any(0).nonzero().max()) + 1
        xt, targets, attention = xt[:, :width], targets[:, :width], batch.attention_mask[:, :width]
        masked = xt.eq(self.process.mask_id) & targets
        share = masked.sum(1).double() / targets.sum(1).clamp(min=1)
        time = self.process.time_input(self.process.schedule.time_at(1 - share))
        hidden = self.denoiser.encode(xt, time, attention)
        chosen = first_of(self.ranks(hidden, masked), masked, self.number)
        wide = torch.zeros_like(batch.target_mask)
        wide[:, :width] = chosen
        return wide, self.denoiser.decode(hidden[chosen])

    def ranks(self, hidden: Tensor, masked: Tensor) -> Tensor:
        """Return the ranks of the masked positions, float64 [B, L]; larger ones are revealed earlier."""
        if self.order not in BY_PREDICTION:
            return ranks_of_positions(self.order, masked.shape[1]).to(masked.device).expand(masked.shape)
        at_once = max(1, MAX_LOGITS // self.process.vocab_size)
        logits = (self.denoiser.decode(part) + self.text for part in hidden[masked].split(at_once))
        found = torch.cat([BY_PREDICTION[self.order](each.softmax(-1)) for each in logits])
        steps = (found.double() / TIES).round()
        return torch.zeros(masked.shape, dtype=torch.float64, device=masked.device).masked_scatter(masked, steps)


def first_of(ranks: Tensor, masked: Tensor, number: int) -> Tensor:
    """Return the `number` masked positions with the largest ranks, bool [B, L]; of equal ones the first."""
    places = ranks.masked_fill(~masked, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(1)
    return masked & (places < number)


def sample(
    process: MaskedTransitions,
    denoiser: Denoiser,
    batch: Batch,
    args: SampleArgs,
    rows_at_once: int,
    generator: Generators,
    on_step: StepCallback | None,
) -> Tensor:
    """Draw the targets of all rows, int64 [N, L]; see `Process.sample`. A finished row makes room for another."""
    reveal = OrderedReveal(process, denoiser, args)
    xt = batch.input_ids.masked_fill(batch.target_mask, process.mask_id)
    waiting = batch.target_mask.any(1).nonzero()[:, 0]
    size, active = rows_at_once or len(waiting), waiting[:0]
    while len(active) or len(waiting):
        started, waiting = waiting.tensor_split([size - len(active)])
        active = torch.cat([active, started])
        rows = batch.rows(active)
        chosen, logits = reveal.next(rows, xt[active], rows.target_mask)
        weights = filter_logits(logits + process.sampling_support, args).softmax(-1)
        token = sample_categorical(weights, uniform(chosen, generator, rows=active)[chosen])
        xt[active] = xt[active].masked_scatter(chosen, token)
        left = (xt[active].eq(process.mask_id) & rows.target_mask).any(1)
        finished, active = active[~left], active[left]
        if on_step is not None:
            on_step(finished, xt)
    return xt


def likelihood(process: MaskedTransitions, denoiser: Denoiser, batch: Batch, law: TokenLaw) -> Bound:
    """Return -log p of the targets under `sample`, with its forward passes; infinite where `law` excludes a token.

    [UNK] is scored like other tokens, as in the bound, although it is never sampled. Noised tokens that are not scored
    ([PAD]s of padded rows) are revealed in their turn.
    """
    reveal, noised = OrderedReveal(process, denoiser, law), batch.noised
    xt = batch.input_ids.masked_fill(noised, process.mask_id)
    nats = torch.zeros(len(xt), dtype=torch.float64, device=xt.device)
    forwards, active = torch.zeros_like(nats), noised.any(1).nonzero()[:, 0]
    while len(active):
        rows = batch.rows(active)
        chosen, logits = reveal.next(rows, xt[active], rows.noised)
        log_p = filter_logits(logits + reveal.text, law).double().log_softmax(-1)
        own = -log_p.gather(1, rows.input_ids[chosen][:, None])[:, 0]
        scored = own.where(rows.target_mask[chosen], 0.0)
        nats.index_add_(0, active[chosen.nonzero()[:, 0]], scored)
        forwards[active] += 1
        xt[active] = torch.where(chosen, rows.input_ids, xt[active])
        active = active[(xt[active].eq(process.mask_id) & rows.noised).any(1)]
    zero = torch.zeros_like(nats)
    return Bound(zero, zero, nats, forwards)
