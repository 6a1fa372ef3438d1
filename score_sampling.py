"""Sampling the score-based process: a network as what score_samplers.py ask, guided, given some tokens, or none."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from draws import filter_logits, gaussian, sample_categorical, streams_of, uniform
from masked_prediction import in_parts
from process import Batch, Generators, SampleArgs, ScoreDenoiser, StepCallback
from score_bound import levels_of
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
        levels = levels_of(process, denoiser, part.noised, int(args.num_steps) or STEPS)
        sampler(watch, x, levels.float()[..., None].unbind(), draw)
        tokens[rows] = reverse.tokens(drawn=args.sampler == "sde")
        if on_step is not None:
            on_step(rows[part.noised.any(1)], tokens)
    return tokens
