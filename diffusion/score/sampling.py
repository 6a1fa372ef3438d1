"""Samplers of the score-based process: free functions of one signature, from noise at the highest level to embeddings.

    sampler(denoise, x, levels, noise) -> x0

`denoise(x, sigma)` estimates the clean embeddings, `levels` are those it is asked at, highest first, and after the
last of them nothing noisy is left. A level is a tensor that broadcasts with x: positions may stand at levels of
their own, and those at 0 stay as they are. `noise()` draws standard normal numbers like x.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data.batch import Batch
from diffusion.chunked_logits import in_parts
from diffusion.draws import Generators, filter_logits, gaussian, sample_categorical, streams_of, uniform
from diffusion.options import SampleArgs
from diffusion.process import ScoreDenoiser, StepCallback
from diffusion.score.transitions import ScoreTransitions

Denoise = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[], Tensor]
Levels = Sequence[Tensor]


def steps(levels: Levels) -> list[tuple[Tensor, Tensor]]:
    """The pairs (t, s) of levels, the last of which leads to 0."""
    return list(pairwise([*levels, torch.zeros_like(levels[-1])]))


def slope(x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """Dx / dsigma of the probability flow, (x - x0) / sigma; 0 where sigma is."""
    return torch.where(sigma > 0, (x - x0) / sigma.clamp(min=1e-12), 0.0)


def euler(denoise: Denoise, x: Tensor, levels: Levels, noise: Noise) -> Tensor:
    """The probability flow in straight steps; as many calls as levels, and no further noise."""
    for t, s in steps(levels):
        x = x + (s - t) * slope(x, denoise(x, t), t)
    return x


def heun(denoise: Denoise, x: Tensor, levels: Levels, noise: Noise) -> Tensor:
    """The same with the slope's mean over the step, but for the last: a call less than twice as many."""
    pairs = steps(levels)
    for t, s in pairs[:-1]:
        first = slope(x, denoise(x, t), t)
        there = x + (s - t) * first
        x = x + (s - t) * (first + slope(there, denoise(there, s), s)) / 2
    t, s = pairs[-1]
    return x + (s - t) * slope(x, denoise(x, t), t)


def renoise(denoise: Denoise, x: Tensor, levels: Levels, noise: Noise) -> Tensor:
    """Estimate, and noise the estimate anew to the next level ("iterative"); a level of 0 keeps it."""
    for t, s in steps(levels):
        x0 = denoise(x, t)
        x = torch.where(t > 0, x0 + s * noise(), x) if bool((s > 0).any()) else torch.where(t > 0, x0, x)
    return x


def ancestral(denoise: Denoise, x: Tensor, levels: Levels, noise: Noise) -> Tensor:
    """The reverse SDE in whole steps: x_s from q(x_s | x_t, x0) at the estimate, whose law the bound is of."""
    for t, s in steps(levels):
        kept = (s / t.clamp(min=1e-12)).square()
        drift = kept * x + (1 - kept) * denoise(x, t)
        spread = s * (1 - kept).clamp(min=0).sqrt()
        moved = drift + spread * noise() if bool((spread > 0).any()) else drift
        x = torch.where(t > 0, moved, x)
    return x


SAMPLERS = {"euler": euler, "heun": heun, "renoise": renoise, "sde": ancestral}
"""By the names that --sampler knows."""

STEPS = 128
AUTO = "renoise"


class Reverse:
    """The denoiser of some rows, as a sampler asks it: embeddings [B, L, E], levels [B, L, 1] -> clean embeddings."""

    def __init__(
        self,
        process: ScoreTransitions,
        denoiser: ScoreDenoiser,
        batch: Batch,
        args: SampleArgs,
        generator: Generators,
    ) -> None:
        """Nothing is known yet."""
        self.process, self.denoiser, self.batch, self.args, self.generator = process, denoiser, batch, args, generator
        self.table = denoiser.table()
        self.highest = process.schedule(denoiser).sigma_max
        self.before: list[Tensor | None] = [None, None]
        """Estimates of the look before."""
        self.hidden = torch.empty(0)
        """[n, D] of each branch, of the last look."""
        self.guess = batch.input_ids[batch.noised]
        """int64 [n], the likeliest tokens of the last look."""
        self.guided = args.guidance != 1
        if self.guided:
            self.given = batch.attention_mask & ~batch.noised
            self.hiding = gaussian(self.given, denoiser.embedding_size, generator) * math.sqrt(self.highest**2 + 1)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The estimate [B, L, E]; with guidance g, g times that from what is given, less g - 1 times that without it.

        Without it means that what is given stands at the highest level, as noise. A network that is to know an estimate
        sees that of the look before, or with `sde` one of its own, made for the purpose: so does the bound.
        """
        sigma = sigma.expand(*x.shape[:2], 1)[..., 0]
        looks = [(x, sigma)]
        if self.guided:
            hidden_x = torch.where(self.given[..., None], self.hiding, x)
            looks.append((hidden_x, sigma.masked_fill(self.given, self.highest)))
        if self.denoiser.self_conditioning and self.args.sampler == "sde":
            self.before = [*self.look(looks, [None, None]), None]
        found = self.look(looks, self.before)
        if self.denoiser.self_conditioning:
            self.before = [*found, None]
        return torch.lerp(found[1], found[0], self.args.guidance) if self.guided else found[0]

    def look(self, looks: list[tuple[Tensor, Tensor]], before: list[Tensor | None]) -> list[Tensor]:
        """The estimates [B, L, E] of each branch."""
        hidden = [
            self.process.encode(self.denoiser, *look, self.batch, known)
            for look, known in zip(looks, before, strict=False)
        ]
        self.hidden = torch.cat(hidden, -1)[self.batch.noised]
        *estimates, self.guess = self.in_parts(self.estimates)
        return [torch.zeros_like(looks[0][0]).masked_scatter(self.batch.noised[..., None], part) for part in estimates]

    def in_parts(self, terms: Callable[[Tensor, slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What `terms` makes of the hidden states of the last look, a few rows at a time."""
        return in_parts(terms, self.hidden, self.batch.noised.sum(1), self.process.vocab_size, again=False)

    def logits(self, hidden: Tensor) -> tuple[list[Tensor], Tensor]:
        """Log p(x0 | x_t) of each branch, and guided and filtered, [n, V]; the branches are cut as the last one is."""
        args, support = self.args, self.process.sampling_support
        each = [
            (self.process.logits(self.denoiser, part, self.table, args.temperature) + support).log_softmax(-1)
            for part in hidden.chunk(1 + self.guided, -1)
        ]
        guided = torch.lerp(*each[::-1], args.guidance) if self.guided else each[0]
        guided = guided.masked_fill(each[0] == -torch.inf, -torch.inf)  # the difference of two infinities is none
        kept = filter_logits(guided, replace(args, temperature=1.0))
        return [logits.masked_fill(kept == -torch.inf, -torch.inf) for logits in each], kept

    def estimates(self, hidden: Tensor, _: slice) -> tuple[Tensor, ...]:
        """Mean embeddings [n, E] of each branch, and the likeliest tokens [n]."""
        each, guided = self.logits(hidden)
        return *(logits.softmax(-1) @ self.table for logits in each), guided.argmax(-1)

    def tokens(self, *, drawn: bool = False) -> Tensor:
        """int64 [B, L]: the likeliest tokens of the last look, or drawn from its prediction."""
        found, noised = self.guess, self.batch.noised
        if drawn:
            place = uniform(noised, self.generator)

            def draw(part: Tensor, rows: slice) -> tuple[Tensor]:
                weights = self.logits(part)[1].softmax(-1)
                return (sample_categorical(weights, place[rows][noised[rows]]),)

            (found,) = self.in_parts(draw)
        return self.batch.input_ids.masked_scatter(noised, found)


def sample(
    process: ScoreTransitions,
    denoiser: ScoreDenoiser,
    batch: Batch,
    args: SampleArgs,
    rows_at_once: int,
    generator: Generators,
    on_step: StepCallback | None,
) -> Tensor:
    """See `ScoreDiffusion.sample`."""
    tokens = batch.input_ids.masked_fill(batch.noised, process.mask_id)
    sampler = SAMPLERS[AUTO if args.sampler == "auto" else args.sampler]
    for rows in torch.arange(len(tokens), device=tokens.device).split(rows_at_once or max(1, len(tokens))):
        part, streams = batch.rows(rows), streams_of(generator, rows)
        if not part.noised.any():
            continue
        reverse = Reverse(process, denoiser, part, args, streams)

        def draw(noised: Tensor = part.noised, streams: Generators = streams) -> Tensor:
            return gaussian(noised, denoiser.embedding_size, streams)

        def watch(x: Tensor, sigma: Tensor, reverse: Reverse = reverse, rows: Tensor = rows) -> Tensor:
            found = reverse(x, sigma)
            if on_step is not None:
                tokens[rows] = reverse.tokens()
                on_step(rows[:0], tokens)
            return found

        x = draw() * math.sqrt(reverse.highest**2 + 1)
        levels = process.levels(denoiser, part.noised, int(args.num_steps) or STEPS)
        sampler(watch, x, levels.float()[..., None].unbind(), draw)
        tokens[rows] = reverse.tokens(drawn=args.sampler == "sde")
        if on_step is not None:
            on_step(rows[part.noised.any(1)], tokens)
    return tokens


if TYPE_CHECKING:
    pass
