"""Ordered decoding, and its exact likelihood: the positions to reveal next depend only on visible tokens and network.

A forward pass predicts the masked tokens. An order ranks them, and the first k are revealed, each drawn from its own
prediction. As the choice of positions is deterministic, each text of a given length is reached by one sequence of
partly masked rows, so

    -log p(x0) = sum over the forward passes of the sum over the k revealed positions i of -log p(x0_i | x_t).

Temperature, top-k and top-p are part of this law, and [UNK] is never drawn; an excluded token has an infinite -log p.
The order is that of the predictions before temperature, top-k and top-p. The tokens of a
step are drawn independently of each other given the visible ones, and the likelihood shows what this costs. All tokens
that are not given are scored, [PAD]s of padded rows too, since the sampler draws them. A network with time input gets
the t at which the expected share of masked tokens is that of the row.
Source: DUEL (arXiv 2603.01367).

    confidence      largest probability first
    entropy         least entropy first
    margin          largest difference between the two largest probabilities first
    left-to-right   first position first
    random-fixed    a fixed random order of positions, equal for all rows
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from data.batch import Batch
from diffusion.chunked_logits import MAX_LOGITS
from diffusion.draws import Generators, filter_logits, sample_categorical, uniform
from diffusion.masked.transitions import MaskedTransitions
from diffusion.options import ORDERS, SampleArgs, TokenLaw
from diffusion.process import Bound, Denoiser, StepCallback, encode_at

RANK_UNIT = 1e-4
"""Ranks are rounded to this unit, so that equal predictions tie although the network rounds."""
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
        self.order, self.number = law.order or ORDERS[0], law.tokens_per_step

    def next(self, batch: Batch, xt: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions that are revealed next, bool [B, L], and the log p of their draws, [n, V].

        Args:
            batch: B rows.
            xt: int64 [B, L], their tokens.
            masked: bool [B, L], noised tokens that are not revealed yet.

        Returns:
            bool [B, L], and log p of every token at these positions in row-major order, float64 [n, V].
        """
        width = int(batch.attention_mask.any(0).nonzero().max()) + 1
        share = masked.sum(1).double() / batch.noised.sum(1).clamp(min=1)
        time = self.process.time_input(self.time(share))
        seen, inside = batch.attention_mask[:, :width], masked[:, :width]
        hidden = encode_at(self.denoiser, xt[:, :width], time, seen, inside)
        chosen = torch.zeros_like(masked)
        chosen[:, :width] = first_of(self.ranks(hidden, inside), inside, self.number)
        logits = self.denoiser.decode(hidden[chosen[:, :width]]) + self.process.sampling_support
        return chosen, filter_logits(logits, self.law).double().log_softmax(-1)

    def time(self, share: Tensor) -> Tensor:
        """Return the time at which this share of the tokens is masked, [B]; in discrete time a whole step."""
        t, steps = self.process.schedule.time_at(1 - share), self.process.num_steps
        if t.is_floating_point() and math.isfinite(steps):
            return ((t * steps).round() / steps).clamp(min=1 / steps)
        return t

    def ranks(self, hidden: Tensor, masked: Tensor) -> Tensor:
        """Return the ranks of the masked positions, float64 [B, L]; larger ones are revealed earlier."""
        if self.order not in BY_PREDICTION:
            return ranks_of_positions(self.order, masked.shape[1]).to(masked.device).expand(masked.shape)
        at_once = max(1, MAX_LOGITS // self.process.vocab_size)
        logits = (self.denoiser.decode(part) + self.process.sampling_support for part in hidden[masked].split(at_once))
        found = torch.cat([BY_PREDICTION[self.order](each.softmax(-1)) for each in logits])
        rounded = (found.double() / RANK_UNIT).round()
        return torch.zeros(masked.shape, dtype=torch.float64, device=masked.device).masked_scatter(masked, rounded)


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
    reveal, masked = OrderedReveal(process, denoiser, args), batch.noised.clone()
    xt = batch.input_ids.masked_fill(masked, process.mask_id)
    waiting = masked.any(1).nonzero()[:, 0]
    size, active = rows_at_once or len(waiting), waiting[:0]
    while len(active) or len(waiting):
        started, waiting = waiting.tensor_split([size - len(active)])
        active = torch.cat([active, started])
        chosen, log_p = reveal.next(batch.rows(active), xt[active], masked[active])
        token = sample_categorical(log_p.exp(), uniform(chosen, generator, rows=active)[chosen])
        xt[active] = xt[active].masked_scatter(chosen, token)
        masked[active] &= ~chosen
        left = masked[active].any(1)
        finished, active = active[~left], active[left]
        if on_step is not None:
            on_step(finished, xt)
    return xt


def likelihood(process: MaskedTransitions, denoiser: Denoiser, batch: Batch, law: TokenLaw) -> Bound:
    """Return -log p of the noised tokens under `sample`, and its forward passes; infinite for what it never draws."""
    reveal, masked = OrderedReveal(process, denoiser, law), batch.noised.clone()
    xt = batch.input_ids.masked_fill(masked, process.mask_id)
    nats = torch.zeros(len(xt), dtype=torch.float64, device=xt.device)
    forwards, active = torch.zeros_like(nats), masked.any(1).nonzero()[:, 0]
    while len(active):
        rows = batch.rows(active)
        chosen, log_p = reveal.next(rows, xt[active], masked[active])
        own = -log_p.gather(1, rows.input_ids[chosen][:, None])[:, 0]
        nats.index_add_(0, active[chosen.nonzero()[:, 0]], own)
        forwards[active] += 1
        xt[active] = torch.where(chosen, rows.input_ids, xt[active])
        masked[active] &= ~chosen
        active = active[masked[active].any(1)]
    zero = torch.zeros_like(nats)
    return Bound(zero, nats, zero, forwards)
