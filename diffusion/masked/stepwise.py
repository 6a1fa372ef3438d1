"""Sampling step by step: for networks with time input, for other laws, and as the reference of row_clocks.py.

A step (t, s) decides for each masked token whether it stays masked, and draws its value otherwise: two decisions in
float64, so that small reveal probabilities are kept. The process gives the probabilities (`reverse_step`).
`cached`: without time input only rows that have changed need a forward pass; the law is the same.
"""

import torch
from torch import Tensor

from data.batch import Batch
from diffusion.draws import Generators, filter_logits, sample_categorical, streams_of, uniform
from diffusion.masked.transitions import MaskedTransitions
from diffusion.options import SampleArgs
from diffusion.process import Denoiser, StepCallback


def sample(
    process: MaskedTransitions,
    denoiser: Denoiser,
    batch: Batch,
    args: SampleArgs,
    sampler: str,
    rows_at_once: int,
    generator: Generators,
    on_step: StepCallback | None,
) -> Tensor:
    """Draw x_0 step by step, int64 [N, L]; see `Process.sample`. `sampler` is one of SAMPLERS."""
    xt = batch.input_ids.masked_fill(batch.target_mask, process.mask_id)
    windows, kind = process.schedule.windows(int(args.num_steps)), SAMPLERS[sampler]
    final = windows[-1:, 1].expand(2)  # what a process leaves masked at the end is drawn given the rest
    for rows in torch.arange(len(xt), device=xt.device).split(rows_at_once or max(1, len(xt))):
        group = kind(process, denoiser, batch.rows(rows), xt[rows], args, streams_of(generator, rows))
        for window in [*windows, final]:
            moved = group.step(*window.unbind())
            xt[rows] = group.xt
            if moved and on_step is not None:
                over = kind.ends_early or bool(window[1] == windows[-1, 1])
                on_step(rows[group.finish()] if over else rows[:0], xt)
    return xt


class StepSampler:
    """Rows that go through the steps together, by ancestral sampling."""

    ends_early = True
    """Whether a row without masks is finished."""
    reuses_hidden = False
    """Whether unchanged rows keep their hidden states, if the network has no time input."""

    def __init__(
        self,
        process: MaskedTransitions,
        denoiser: Denoiser,
        batch: Batch,
        xt: Tensor,
        args: SampleArgs,
        streams: Generators,
    ) -> None:
        """Start with all targets masked and no hidden states."""
        width = int(batch.attention_mask.any(0).nonzero().max()) + 1
        self.process, self.denoiser, self.args, self.streams = process, denoiser, args, streams
        self.xt, self.attention, self.width = xt, batch.attention_mask[:, :width], width
        self.targets, self.hidden = batch.target_mask, None
        self.changed = batch.target_mask.any(1)
        self.going = self.changed.clone()

    def step(self, t: Tensor, s: Tensor) -> bool:
        """Go from t to s; return False if nothing is masked. At s = t every mask is revealed."""
        masked = self.xt.eq(self.process.mask_id) & self.targets
        if not masked.any():
            return False
        self.encode(masked.any(1), t)
        stay, weights = self.process.reverse_step(
            self.denoiser.decode(self.hidden[masked[:, : self.width]]), self.args, s, t
        )
        first, second = (uniform(masked, self.streams)[masked] for _ in range(2))
        token = sample_categorical(weights, second)
        kept = first < stay if bool(s < t) else torch.zeros_like(first, dtype=torch.bool)
        self.xt[masked] = token.masked_fill(kept, self.process.mask_id)
        self.changed = torch.zeros_like(self.changed).index_fill(0, masked.nonzero()[:, 0][~kept], True)
        return True

    def encode(self, needed: Tensor, t: Tensor) -> None:
        """Update the hidden states [B, width, D] of the needed rows; unchanged rows may keep theirs."""
        if self.hidden is not None and self.reuses_hidden and not self.denoiser.time_conditioned:
            needed = needed & self.changed
        rows = needed.nonzero()[:, 0]
        if not len(rows):
            return
        time_input = self.process.time_input(t[None]).expand(len(rows))
        found = self.denoiser.encode(self.xt[rows, : self.width], time_input, self.attention[rows])
        if self.hidden is None:
            self.hidden = found.new_zeros(len(self.xt), *found.shape[1:])
        self.hidden[rows] = found

    def finish(self) -> Tensor:
        """Return the rows that have become free of masks, int64 [n]."""
        done = self.going & ~(self.xt.eq(self.process.mask_id) & self.targets).any(1)
        self.going = self.going & ~done
        return done.nonzero()[:, 0]


USUAL_ETA = 0.02


class Cached(StepSampler):
    """sampler=cached."""

    reuses_hidden = True


class Confident(Cached):
    """sampler=confidence."""

    def step(self, t: Tensor, s: Tensor) -> bool:
        """Leave as many targets masked as 1 - alpha_bar(s) of them, rounded up; reveal the most probable tokens."""
        masked = self.xt.eq(self.process.mask_id) & self.targets
        if not masked.any():
            return False
        self.encode(masked.any(1), t)
        logits = self.denoiser.decode(self.hidden[masked[:, : self.width]]) + self.process.sampling_support
        weights = filter_logits(logits, self.args).softmax(-1)
        token = sample_categorical(weights, uniform(masked, self.streams)[masked])
        sure = torch.full(masked.shape, -1.0, dtype=torch.float64, device=masked.device)
        sure[masked] = weights.gather(1, token[:, None])[:, 0].double()
        average = torch.zeros((), dtype=torch.float64, device=masked.device)
        left = torch.ceil((1 - self.process.schedule.alpha_bar(s, average)) * self.targets.sum(1) - 1e-9)
        rank = (-sure).argsort(dim=1, stable=True).argsort(dim=1)
        reveal = masked & (rank < (masked.sum(1) - left)[:, None])
        if self.args.confidence_threshold:
            reveal |= masked & (sure > self.args.confidence_threshold)
        self.xt[reveal] = token[reveal[masked]]
        self.changed = reveal.any(1)
        return True


def remask_rates(at_s: Tensor, at_t: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """Return the probabilities that a visible token is masked again, and that a masked one is revealed.

    The former is eta, or less where more would leave too many masked; the latter makes up for it, so that a token that
    was masked with probability 1 - at_t is so with 1 - at_s.
    """
    again = torch.minimum(torch.full_like(at_s, eta), (1 - at_s) / at_t.clamp(min=1e-300))
    return again, ((at_s - (1 - again) * at_t) / (1 - at_t)).clamp(max=1)


class Remasking(Cached):
    """sampler=remdm."""

    ends_early = False

    def step(self, t: Tensor, s: Tensor) -> bool:
        """See StepSampler."""
        masked, average = self.xt.eq(self.process.mask_id) & self.targets, torch.zeros_like(t, dtype=torch.float64)
        at_s, at_t = (self.process.schedule.alpha_bar(time, average) for time in (s, t))
        again, reveal = remask_rates(at_s, at_t, self.args.remask_eta or USUAL_ETA)
        visible = self.targets & ~masked
        drawn = self.xt.clone()
        if masked.any():
            self.encode(masked.any(1), t)
            logits = self.denoiser.decode(self.hidden[masked[:, : self.width]]) + self.process.sampling_support
            first, second = (uniform(masked, self.streams)[masked] for _ in range(2))
            token = sample_categorical(filter_logits(logits, self.args).softmax(-1), second)
            drawn[masked] = token.where(first < (reveal if s < t else 1), self.process.mask_id)
        drawn[visible & (uniform(visible, self.streams) < (again if s < t else 0))] = self.process.mask_id
        self.changed = (drawn != self.xt).any(1)
        self.xt = drawn
        return bool((masked if s == t else self.targets).any())


SAMPLERS = {"ancestral": StepSampler, "cached": Cached, "confidence": Confident, "remdm": Remasking}
"""By the names that --sampler knows."""
