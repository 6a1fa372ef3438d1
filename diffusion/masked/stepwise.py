"""Ancestral sampling step by step: for networks that are told the time, and to compare `row_clocks.py` with.

A step (t, s) leaves a masked token masked with some probability and else draws what it is: two decisions, the first
never drowned in the second's noise, both in float64. What the probabilities are, a process says (`reverse_step`).
`cached`: a network that is not told the time is asked again only of rows that have changed; the law is the same.
"""

from typing import Protocol

import torch
from torch import Tensor

from draws import sample_categorical, streams_of, uniform
from process import Batch, Denoiser, Generators, SampleArgs, StepCallback


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
