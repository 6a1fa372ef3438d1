"""Sampling the score-based process: a network as what score_samplers.py ask, guided, given some tokens, or none."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from draws import filter_logits, gaussian, sample_categorical, streams_of, uniform
from masked_prediction import in_parts
from noise_levels import ladder, rising_places
from process import Batch, Generators, SampleArgs, ScoreDenoiser, StepCallback
from score_samplers import SAMPLERS

if TYPE_CHECKING:
    from diffusion_score import ScoreDiffusion

STEPS = 128
AUTO = "renoise"


class Reverse:
    """The denoiser of some rows, as a sampler asks it: embeddings [B, L, E], levels [B, L, 1] -> clean embeddings."""

    def __init__(
        self,
        process: "ScoreDiffusion",
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

        Without it means that what is given stands at the highest level, as noise.
        """
        sigma = sigma.expand(*x.shape[:2], 1)[..., 0]
        looks = [(x, sigma)]
        if self.guided:
            hidden_x = torch.where(self.given[..., None], self.hiding, x)
            looks.append((hidden_x, sigma.masked_fill(self.given, self.highest)))
        hidden = [
            self.process.encode(self.denoiser, *look, self.batch, before)
            for look, before in zip(looks, self.before, strict=False)
        ]
        self.hidden = torch.cat(hidden, -1)[self.batch.noised]
        *estimates, self.guess = self.in_parts(self.estimates)
        found = [torch.zeros_like(x).masked_scatter(self.batch.noised[..., None], part) for part in estimates]
        if self.denoiser.self_conditioning:
            self.before[: len(found)] = found
        return torch.lerp(found[1], found[0], self.args.guidance) if self.guided else found[0]

    def in_parts(self, terms: Callable[[Tensor, slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What `terms` makes of the hidden states of the last look, a few rows at a time."""
        return in_parts(terms, self.hidden, self.batch.noised.sum(1), self.process.vocab_size, again=False)

    def logits(self, hidden: Tensor) -> list[Tensor]:
        """Of p(x0 | x_t), filtered, of each branch: [n, V]."""
        return [
            filter_logits(logits + self.process.sampling_support, replace(self.args, temperature=1.0))
            for part in hidden.chunk(1 + self.guided, -1)
            for logits in [self.process.logits(self.denoiser, part, self.table, self.args.temperature)]
        ]

    def estimates(self, hidden: Tensor, _: slice) -> tuple[Tensor, ...]:
        """Mean embeddings [n, E] of each branch, and the likeliest tokens [n]."""
        logits = self.logits(hidden)
        return *(part.softmax(-1) @ self.table for part in logits), self.blend(logits).argmax(-1)

    def blend(self, logits: list[Tensor]) -> Tensor:
        """Guided; what is ruled out with what is given stays so."""
        if not self.guided:
            return logits[0]
        blended = torch.lerp(logits[1].clamp(min=-1e4), logits[0].clamp(min=-1e4), self.args.guidance)
        return torch.where(logits[0].isfinite(), blended, -torch.inf)

    def tokens(self, *, drawn: bool = False) -> Tensor:
        """int64 [B, L]: the likeliest tokens of the last look, or drawn from its prediction."""
        found, noised = self.guess, self.batch.noised
        if drawn:
            place = uniform(noised, self.generator)

            def draw(part: Tensor, rows: slice) -> tuple[Tensor]:
                weights = self.blend(self.logits(part)).softmax(-1)
                return (sample_categorical(weights, place[rows][noised[rows]]),)

            (found,) = self.in_parts(draw)
        return self.batch.input_ids.masked_scatter(noised, found)


def levels_of(process: "ScoreDiffusion", denoiser: ScoreDenoiser, noised: Tensor, num_steps: int) -> list[Tensor]:
    """The levels that a sampler asks at, each float32 [B, L, 1], 0 at what is given."""
    schedule, rungs = process.schedule(denoiser), ladder(num_steps).to(noised.device)
    if process.args.level_order == "rising":
        places = [rising_places(rung.expand(len(noised)), noised) for rung in rungs]
    else:
        places = [place.expand(noised.shape) for place in process.places(denoiser, rungs).detach()]
    return [(schedule(place).float() * noised)[..., None] for place in places]


def sample(
    process: "ScoreDiffusion",
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
        sampler(watch, x, levels_of(process, denoiser, part.noised, int(args.num_steps) or STEPS), draw)
        tokens[rows] = reverse.tokens(drawn=args.sampler == "sde")
        if on_step is not None:
            on_step(rows[part.noised.any(1)], tokens)
    return tokens
