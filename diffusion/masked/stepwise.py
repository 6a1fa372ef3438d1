"""Ancestral sampling step by step: for networks that are told the time, and to compare `row_clocks.py` with.

A step (t, s) leaves a masked token masked with some probability and else draws what it is: two decisions, the first
never drowned in the second's noise, both in float64. What the probabilities are, a process says (`reverse_step`).
`cached`: a network that is not told the time is asked again only of rows that have changed; the law is the same.
"""

from typing import Protocol

import torch
from torch import Tensor

from data.batch import Batch
from diffusion.draws import Generators, filter_logits, sample_categorical, streams_of, uniform
from diffusion.options import SampleArgs
from diffusion.process import Denoiser, StepCallback


class Stepping(Protocol):
    """What the sampler asks of a masked process."""

    mask_id: int
    sampling_support: Tensor
    """[V], added to logits; -inf bars a token."""

    def keep_probability(self, t: Tensor, h: Tensor) -> Tensor:
        """alpha_bar at t; of an average token h is 0."""
        ...

    def windows(self, num_steps: int) -> Tensor:
        """The reverse steps (t, s) from all [MASK] to clean, [n, 2]."""
        ...

    def told(self, t: Tensor) -> Tensor:
        """What a time-conditioned network is told at t."""
        ...

    def reverse_step(self, logits: Tensor, args: SampleArgs, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Of logits [n, V]: the probability to stay masked, float64 [n], and weights of what is revealed, [n, V]."""
        ...


def sample(
    process: Stepping,
    denoiser: Denoiser,
    batch: Batch,
    args: SampleArgs,
    *,
    group_of: "type[Group] | None" = None,
    rows_at_once: int = 0,
    generator: Generators = None,
    on_step: StepCallback | None = None,
) -> Tensor:
    """x_0 ~ p_theta, int64 [N, L]: every target drawn anew, everything else as it was; nothing is left masked.

    Args:
        process, denoiser, batch, args: see `MaskedProcess.sample`.
        group_of: how a step is taken; by default, by the law.
        rows_at_once, generator, on_step: see `MaskedProcess.sample`.
    """
    xt = batch.input_ids.masked_fill(batch.target_mask, process.mask_id)
    windows = process.windows(int(args.num_steps))
    final = windows[-1:, 1].expand(2)  # what a process leaves masked at the end is drawn given the rest
    for rows in torch.arange(len(xt), device=xt.device).split(rows_at_once or max(1, len(xt))):
        kind = group_of or Group
        group = kind(process, denoiser, batch.rows(rows), xt[rows], args, streams_of(generator, rows))
        for window in [*windows, final]:
            moved = group.step(*window.unbind())
            xt[rows] = group.xt
            if moved and on_step is not None:
                over = kind.ends_early or bool(window[1] == windows[-1, 1])
                on_step(rows[group.finish()] if over else rows[:0], xt)
    return xt


class Group:
    """Rows that go through the steps together."""

    ends_early = True
    """Whether a row in which nothing is masked is done."""

    def __init__(
        self, process: Stepping, denoiser: Denoiser, batch: Batch, xt: Tensor, args: SampleArgs, streams: Generators
    ) -> None:
        """All masked; nothing seen by the network."""
        width = int(batch.attention_mask.any(0).nonzero().max()) + 1
        self.process, self.denoiser, self.args, self.streams = process, denoiser, args, streams
        self.xt, self.attention, self.width = xt, batch.attention_mask[:, :width], width
        self.targets, self.hidden = batch.target_mask, None
        self.changed = batch.target_mask.any(1)
        self.going = self.changed.clone()

    def step(self, t: Tensor, s: Tensor) -> bool:
        """From t to s; False if there was nothing left to do. At s = t whatever is masked is revealed."""
        masked = self.xt.eq(self.process.mask_id) & self.targets
        if not masked.any():
            return False
        self.look(masked.any(1), t)
        stay, weights = self.process.reverse_step(
            self.denoiser.decode(self.hidden[masked[:, : self.width]]), self.args, s, t
        )
        first, second = (uniform(masked, self.streams)[masked] for _ in range(2))
        token = sample_categorical(weights, second)
        kept = first < stay if bool(s < t) else torch.zeros_like(first, dtype=torch.bool)
        self.xt[masked] = token.masked_fill(kept, self.process.mask_id)
        self.changed = torch.zeros_like(self.changed).index_fill(0, masked.nonzero()[:, 0][~kept], True)
        return True

    def look(self, needed: Tensor, t: Tensor) -> None:
        """Hidden states of the rows in need, [B, width, D]; of those that have not changed, what they were."""
        if self.hidden is not None and self.args.sampler != "ancestral" and not self.denoiser.time_conditioned:
            needed = needed & self.changed
        rows = needed.nonzero()[:, 0]
        if not len(rows):
            return
        told = self.process.told(t[None]).expand(len(rows))
        found = self.denoiser.encode(self.xt[rows, : self.width], told, self.attention[rows])
        if self.hidden is None:
            self.hidden = found.new_zeros(len(self.xt), *found.shape[1:])
        self.hidden[rows] = found

    def finish(self) -> Tensor:
        """The rows that have nothing masked any more and were not known to, int64 [n]."""
        done = self.going & ~(self.xt.eq(self.process.mask_id) & self.targets).any(1)
        self.going = self.going & ~done
        return done.nonzero()[:, 0]


USUAL_ETA = 0.02


class Confident(Group):
    """sampler=confidence."""

    def step(self, t: Tensor, s: Tensor) -> bool:
        """See Group; the number of masked tokens after it is that of all targets times 1 - alpha_bar(s), rounded up."""
        masked = self.xt.eq(self.process.mask_id) & self.targets
        if not masked.any():
            return False
        self.look(masked.any(1), t)
        logits = self.denoiser.decode(self.hidden[masked[:, : self.width]]) + self.process.sampling_support
        weights = filter_logits(logits, self.args).softmax(-1)
        token = sample_categorical(weights, uniform(masked, self.streams)[masked])
        sure = torch.full(masked.shape, -1.0, dtype=torch.float64, device=masked.device)
        sure[masked] = weights.gather(1, token[:, None])[:, 0].double()
        average = torch.zeros((), dtype=torch.float64, device=masked.device)
        left = torch.ceil((1 - self.process.keep_probability(s, average)) * self.targets.sum(1) - 1e-9)
        rank = (-sure).argsort(dim=1, stable=True).argsort(dim=1)
        reveal = masked & (rank < (masked.sum(1) - left)[:, None])
        if self.args.confidence_threshold:
            reveal |= masked & (sure > self.args.confidence_threshold)
        self.xt[reveal] = token[reveal[masked]]
        self.changed = reveal.any(1)
        return True


def remask_rates(at_s: Tensor, at_t: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """Probabilities that a visible token is masked again and that a masked one is revealed, as alpha_bar rises.

    The former is eta, or less where more would leave too many masked; the latter makes up for it, so that a token that
    was masked with probability 1 - at_t is so with 1 - at_s.
    """
    again = torch.minimum(torch.full_like(at_s, eta), (1 - at_s) / at_t.clamp(min=1e-300))
    return again, ((at_s - (1 - again) * at_t) / (1 - at_t)).clamp(max=1)


class Remasking(Group):
    """sampler=remdm."""

    ends_early = False

    def step(self, t: Tensor, s: Tensor) -> bool:
        """See Group."""
        masked, average = self.xt.eq(self.process.mask_id) & self.targets, torch.zeros_like(t, dtype=torch.float64)
        at_s, at_t = (self.process.keep_probability(time, average) for time in (s, t))
        again, reveal = remask_rates(at_s, at_t, self.args.remask_eta or USUAL_ETA)
        visible = self.targets & ~masked
        drawn = self.xt.clone()
        if masked.any():
            self.look(masked.any(1), t)
            logits = self.denoiser.decode(self.hidden[masked[:, : self.width]]) + self.process.sampling_support
            first, second = (uniform(masked, self.streams)[masked] for _ in range(2))
            token = sample_categorical(filter_logits(logits, self.args).softmax(-1), second)
            drawn[masked] = token.where(first < (reveal if s < t else 1), self.process.mask_id)
        drawn[visible & (uniform(visible, self.streams) < (again if s < t else 0))] = self.process.mask_id
        self.changed = (drawn != self.xt).any(1)
        self.xt = drawn
        return bool((masked if s == t else self.targets).any())
