"""Step-by-step sampling: for networks with time input, for scores, and for samplers that depart from p_theta.

A reverse step (t, s) draws two variables for each masked token: whether it stays masked, and its value if it does not.
Both draws are in float64, which preserves small reveal probabilities. The process gives the probabilities
(`reverse_step`). Row clocks (row_clocks.py) are tested against this file.

ancestral   One forward pass per step.
cached      The same distribution. Without time input, only rows that have changed need a forward pass.
confidence  The number of revealed tokens follows the schedule, and the most probable tokens are revealed first.
remdm       Visible tokens are masked again with a small probability (Wang et al. 2025, arXiv 2503.00307).
"""

import torch
from torch import Tensor

from data.batch import Batch
from diffusion.draws import Generators, filter_logits, sample_categorical, streams_of, uniform
from diffusion.masked.transitions import MaskedTransitions
from diffusion.options import SampleArgs
from diffusion.process import Denoiser, StepCallback, encode_at


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
    """Draw x_0 step by step, int64 [N, L], with one of SAMPLERS; see `Process.sample`."""
    xt = batch.input_ids.masked_fill(batch.target_mask, process.mask_id)
    windows, sampler_class = process.schedule.windows(int(args.num_steps)), SAMPLERS[sampler]
    final = windows[-1:, 1].expand(2)  # an empty window at the end, which reveals the leftover masks
    for rows in torch.arange(len(xt), device=xt.device).split(rows_at_once or max(1, len(xt))):
        group = sampler_class(process, denoiser, batch.rows(rows), xt[rows], args, streams_of(generator, rows))
        for window in [*windows, final]:
            stepped = group.step(*window.unbind())
            xt[rows] = group.xt
            if stepped and on_step is not None:
                may_finish = sampler_class.ends_early or bool(window[1] == windows[-1, 1])
                on_step(rows[group.finish()] if may_finish else rows[:0], xt)
    return xt


class StepSampler:
    """Ancestral sampler of a group of rows that take every step together."""

    ends_early = True
    """True: a row is finished once it has no mask."""
    reuses_hidden = False
    """True: without time input, unchanged rows keep their hidden states."""

    def __init__(
        self,
        process: MaskedTransitions,
        denoiser: Denoiser,
        batch: Batch,
        xt: Tensor,
        args: SampleArgs,
        streams: Generators,
    ) -> None:
        """Take the rows of `batch` and their tokens xt, int64 [b, L], with all targets masked."""
        width = int(batch.attention_mask.any(0).nonzero().max()) + 1
        self.process, self.denoiser, self.args, self.streams = process, denoiser, args, streams
        self.xt, self.attention, self.width = xt, batch.attention_mask[:, :width], width
        self.targets, self.hidden = batch.target_mask, None
        self.changed = batch.target_mask.any(1)
        self.unfinished = self.changed.clone()

    def step(self, t: Tensor, s: Tensor) -> bool:
        """Step from t to s; at s = t reveal every mask. Return False if there was nothing to do."""
        masked = self.xt.eq(self.process.mask_id) & self.targets
        if not masked.any():
            return False
        self.encode(masked.any(1), t)
        stay, weights = self.process.reverse_step(
            self.denoiser.decode(self.hidden[masked[:, : self.width]]), self.args, s, t
        )
        u_stay, u_token = (uniform(masked, self.streams)[masked] for _ in range(2))
        token = sample_categorical(weights, u_token)
        kept = u_stay < stay if bool(s < t) else torch.zeros_like(u_stay, dtype=torch.bool)
        self.xt[masked] = token.masked_fill(kept, self.process.mask_id)
        self.changed = torch.zeros_like(self.changed).index_fill(0, masked.nonzero()[:, 0][~kept], True)
        return True

    def encode(self, needed: Tensor, t: Tensor) -> None:
        """Update the hidden states [b, width, D] of the needed rows, except those that may be reused."""
        if self.hidden is not None and self.reuses_hidden and not self.denoiser.time_conditioned:
            needed = needed & self.changed
        rows = needed.nonzero()[:, 0]
        if not len(rows):
            return
        time_input = self.process.time_input(t[None]).expand(len(rows))
        xt = self.xt[rows, : self.width]
        masked = xt.eq(self.process.mask_id) & self.targets[rows, : self.width]
        found = encode_at(self.denoiser, xt, time_input, self.attention[rows], masked)
        if self.hidden is None:
            self.hidden = found.new_zeros(len(self.xt), *found.shape[1:])
        self.hidden[rows] = found

    def finish(self) -> Tensor:
        """Return the indices of rows that have finished since the last call, int64 [n]."""
        done = self.unfinished & ~(self.xt.eq(self.process.mask_id) & self.targets).any(1)
        self.unfinished = self.unfinished & ~done
        return done.nonzero()[:, 0]


DEFAULT_ETA = 0.02


class CachedSampler(StepSampler):
    """Ancestral sampler that reuses the hidden states of unchanged rows."""

    reuses_hidden = True


class ConfidenceSampler(CachedSampler):
    """Sampler that reveals the most probable tokens first."""

    def step(self, t: Tensor, s: Tensor) -> bool:
        """Reveal the most probable tokens, until the share of masked targets is 1 - alpha_bar(s), rounded up."""
        masked = self.xt.eq(self.process.mask_id) & self.targets
        if not masked.any():
            return False
        self.encode(masked.any(1), t)
        logits = self.denoiser.decode(self.hidden[masked[:, : self.width]]) + self.process.sampling_support
        weights = filter_logits(logits, self.args).softmax(-1)
        token = sample_categorical(weights, uniform(masked, self.streams)[masked])
        confidence = torch.full(masked.shape, -1.0, dtype=torch.float64, device=masked.device)
        confidence[masked] = weights.gather(1, token[:, None])[:, 0].double()
        average = torch.zeros((), dtype=torch.float64, device=masked.device)
        left = torch.ceil((1 - self.process.schedule.alpha_bar(s, average)) * self.targets.sum(1) - 1e-9)
        rank = (-confidence).argsort(dim=1, stable=True).argsort(dim=1)
        reveal = masked & (rank < (masked.sum(1) - left)[:, None])
        if self.args.confidence_threshold:
            reveal |= masked & (confidence > self.args.confidence_threshold)
        self.xt[reveal] = token[reveal[masked]]
        self.changed = reveal.any(1)
        return True


def remask_rates(at_s: Tensor, at_t: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """Return the probabilities of masking a visible token again and of revealing a masked one, from t to s.

    The first is eta, or less where eta would leave too many tokens masked. The second compensates for it: a token that
    is masked with probability 1 - at_t at t is masked with probability 1 - at_s at s.

    Args:
        at_s, at_t: alpha_bar at s and t.
        eta: maximum probability of masking again, in (0, 1).
    """
    remask = torch.minimum(torch.full_like(at_s, eta), (1 - at_s) / at_t.clamp(min=1e-300))
    return remask, ((at_s - (1 - remask) * at_t) / (1 - at_t)).clamp(max=1)


class RemaskingSampler(CachedSampler):
    """Sampler that masks visible tokens again, with probability `remask_eta` per step."""

    ends_early = False

    def step(self, t: Tensor, s: Tensor) -> bool:
        """See StepSampler."""
        masked, average = self.xt.eq(self.process.mask_id) & self.targets, torch.zeros_like(t, dtype=torch.float64)
        at_s, at_t = (self.process.schedule.alpha_bar(time, average) for time in (s, t))
        remask, reveal = remask_rates(at_s, at_t, self.args.remask_eta or DEFAULT_ETA)
        visible = self.targets & ~masked
        drawn = self.xt.clone()
        if masked.any():
            self.encode(masked.any(1), t)
            logits = self.denoiser.decode(self.hidden[masked[:, : self.width]]) + self.process.sampling_support
            u_reveal, u_token = (uniform(masked, self.streams)[masked] for _ in range(2))
            token = sample_categorical(filter_logits(logits, self.args).softmax(-1), u_token)
            drawn[masked] = token.where(u_reveal < (reveal if s < t else 1), self.process.mask_id)
        drawn[visible & (uniform(visible, self.streams) < (remask if s < t else 0))] = self.process.mask_id
        self.changed = (drawn != self.xt).any(1)
        self.xt = drawn
        return bool((masked if s == t else self.targets).any())


SAMPLERS = {
    "ancestral": StepSampler,
    "cached": CachedSampler,
    "confidence": ConfidenceSampler,
    "remdm": RemaskingSampler,
}
"""Samplers by their names in --sampler."""
