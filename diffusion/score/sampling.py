"""Samplers of the score-based process, as functions from noise at the highest level to clean embeddings.

    sampler(denoise, x, levels, noise) -> x0

`denoise(x, sigma)` estimates the clean embeddings. `levels` are the noise levels of its calls, highest first; the last
step leads to level 0. A level is a tensor that broadcasts with x, so positions may have different levels; positions at
level 0 stay unchanged. `noise()` draws standard normal numbers in the shape of x.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from data.batch import Batch
from diffusion.chunked_logits import in_chunks
from diffusion.draws import Generators, filter_logits, gaussian, sample_categorical, uniform
from diffusion.options import SampleArgs
from diffusion.process import ScoreDenoiser, StepCallback
from diffusion.score.transitions import ScoreTransitions

Denoise = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[], Tensor]
Levels = Sequence[Tensor]


def steps(levels: Levels) -> list[tuple[Tensor, Tensor]]:
    """Return the pairs (t, s) of successive levels; the last leads to 0."""
    return list(pairwise([*levels, torch.zeros_like(levels[-1])]))


def slope(x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """Return dx / dsigma of the probability flow, (x - x0) / sigma; 0 where sigma is 0."""
    return torch.where(sigma > 0, (x - x0) / sigma.clamp(min=1e-12), 0.0)


def euler(denoise: Denoise, x: Tensor, levels: Levels, noise: Noise) -> Tensor:
    """Integrate the probability flow by Euler's method: one call per level, no added noise."""
    for t, s in steps(levels):
        x = x + (s - t) * slope(x, denoise(x, t), t)
    return x


def heun(denoise: Denoise, x: Tensor, levels: Levels, noise: Noise) -> Tensor:
    """Integrate the probability flow by Heun's method, the last step by Euler's: 2 n - 1 calls for n levels."""
    pairs = steps(levels)
    for t, s in pairs[:-1]:
        first = slope(x, denoise(x, t), t)
        there = x + (s - t) * first
        x = x + (s - t) * (first + slope(there, denoise(there, s), s)) / 2
    t, s = pairs[-1]
    return x + (s - t) * slope(x, denoise(x, t), t)


def renoise(denoise: Denoise, x: Tensor, levels: Levels, noise: Noise) -> Tensor:
    """Estimate x0 and add fresh noise at the next level ("iterative"); positions at level 0 stay unchanged."""
    for t, s in steps(levels):
        x0 = denoise(x, t)
        x = torch.where(t > 0, x0 + s * noise(), x) if bool((s > 0).any()) else torch.where(t > 0, x0, x)
    return x


def ancestral(denoise: Denoise, x: Tensor, levels: Levels, noise: Noise) -> Tensor:
    """Sample x_s from q(x_s | x_t, x0) at the estimate of x0: the reverse process whose likelihood bound.py bounds."""
    for t, s in steps(levels):
        kept = (s / t.clamp(min=1e-12)).square()
        drift = kept * x + (1 - kept) * denoise(x, t)
        spread = s * (1 - kept).clamp(min=0).sqrt()
        moved = drift + spread * noise() if bool((spread > 0).any()) else drift
        x = torch.where(t > 0, moved, x)
    return x


SAMPLERS = {"euler": euler, "heun": heun, "renoise": renoise, "sde": ancestral}
"""Samplers by the names that --sampler accepts."""

STEPS = 128
AUTO = "renoise"


class EmbeddingEstimator:
    """Estimator of the clean embeddings of some rows, for the samplers: x [B, L, E], sigma [B, L, 1] -> [B, L, E]."""

    def __init__(
        self,
        process: ScoreTransitions,
        denoiser: ScoreDenoiser,
        batch: Batch,
        args: SampleArgs,
        generator: Generators,
    ) -> None:
        """Start without an estimate; with guidance, draw the noise that replaces the given tokens."""
        self.process, self.denoiser, self.batch, self.args, self.generator = process, denoiser, batch, args, generator
        self.table = denoiser.table()
        self.highest = process.schedule(denoiser).sigma_max
        self.before: list[Tensor | None] = [None, None]
        """Each branch's estimate from the previous forward pass."""
        self.hidden = torch.empty(0)
        """[n, D] of each branch, from the last forward pass."""
        self.guess = batch.input_ids[batch.noised]
        """int64 [n], likeliest tokens of the last forward pass."""
        self.guided = args.guidance != 1
        if self.guided:
            self.given = batch.attention_mask & ~batch.noised
            self.hiding = gaussian(self.given, denoiser.embedding_size, generator) * math.sqrt(self.highest**2 + 1)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the estimate [B, L, E]; guidance g: g times the conditional less g - 1 times the unconditional one.

        The unconditional branch has noise of the highest level at the given tokens. A self-conditioned network
        receives the estimate of the previous call. With `sde` it receives one from an extra forward pass at the same
        level, as in the bound.
        """
        sigma = sigma.expand(*x.shape[:2], 1)[..., 0]
        inputs = [(x, sigma)]
        if self.guided:
            hidden_x = torch.where(self.given[..., None], self.hiding, x)
            inputs.append((hidden_x, sigma.masked_fill(self.given, self.highest)))
        if self.denoiser.self_conditioning and self.args.sampler == "sde":
            self.before = [*self.forward(inputs, [None, None]), None]
        found = self.forward(inputs, self.before)
        if self.denoiser.self_conditioning:
            self.before = [*found, None]
        return torch.lerp(found[1], found[0], self.args.guidance) if self.guided else found[0]

    def forward(self, inputs: list[tuple[Tensor, Tensor]], before: list[Tensor | None]) -> list[Tensor]:
        """Run the network once per branch and return the estimates, [B, L, E] each."""
        hidden = [
            self.process.encode(self.denoiser, *branch, self.batch, previous)
            for branch, previous in zip(inputs, before, strict=False)
        ]
        self.hidden = torch.cat(hidden, -1)[self.batch.noised]
        *estimates, self.guess = self.in_chunks(self.estimates)
        return [torch.zeros_like(inputs[0][0]).masked_scatter(self.batch.noised[..., None], part) for part in estimates]

    def in_chunks(self, terms: Callable[[Tensor, slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Apply `terms` to the hidden states of the last forward pass, a few rows at a time."""
        return in_chunks(terms, self.hidden, self.batch.noised.sum(1), self.process.vocab_size, recompute=False)

    def logits(self, hidden: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return log p(x0 | x_t) of each branch, and guided and filtered logits, [n, V].

        Tokens that the filters remove from the guided prediction are removed from every branch.
        """
        args, support = self.args, self.process.sampling_support
        each = [
            (self.process.logits(self.denoiser, part, self.table, args.temperature) + support).log_softmax(-1)
            for part in hidden.chunk(1 + self.guided, -1)
        ]
        guided = torch.lerp(*each[::-1], args.guidance) if self.guided else each[0]
        guided = guided.masked_fill(each[0] == -torch.inf, -torch.inf)  # -inf minus -inf would be NaN
        kept = filter_logits(guided, replace(args, temperature=1.0))
        return [logits.masked_fill(kept == -torch.inf, -torch.inf) for logits in each], kept

    def estimates(self, hidden: Tensor, _: slice) -> tuple[Tensor, ...]:
        """Return the mean embeddings [n, E] of each branch, and the likeliest tokens [n]."""
        each, guided = self.logits(hidden)
        return *(logits.softmax(-1) @ self.table for logits in each), guided.argmax(-1)

    def tokens(self, *, drawn: bool = False) -> Tensor:
        """Return the likeliest tokens of the last forward pass, int64 [B, L], or a draw from its prediction."""
        found, noised = self.guess, self.batch.noised
        if drawn:
            u = uniform(noised, self.generator)

            def draw(part: Tensor, rows: slice) -> tuple[Tensor]:
                weights = self.logits(part)[1].softmax(-1)
                return (sample_categorical(weights, u[rows][noised[rows]]),)

            (found,) = self.in_chunks(draw)
        return self.batch.input_ids.masked_scatter(noised, found)


def sample_rows(reverse: EmbeddingEstimator, rows: Tensor, tokens: Tensor, on_step: StepCallback | None = None) -> None:
    """Sample the rows of `reverse` from noise, and write their tokens.

    Args:
        reverse: estimator of the embeddings of these rows.
        rows: int64 [n], indices of these rows among all.
        tokens: int64 [N, L], all rows; changed in place.
        on_step: see `Process.sample`.
    """
    process, denoiser, args, noised = reverse.process, reverse.denoiser, reverse.args, reverse.batch.noised

    def draw() -> Tensor:
        return gaussian(noised, denoiser.embedding_size, reverse.generator)

    def watch(x: Tensor, sigma: Tensor) -> Tensor:
        found = reverse(x, sigma)
        if on_step is not None:
            tokens[rows] = reverse.tokens()
            on_step(rows[:0], tokens)
        return found

    x = draw() * math.sqrt(reverse.highest**2 + 1)
    levels = process.levels(denoiser, noised, int(args.num_steps) or STEPS)
    SAMPLERS[AUTO if args.sampler == "auto" else args.sampler](watch, x, levels.float()[..., None].unbind(), draw)
    tokens[rows] = reverse.tokens(drawn=args.sampler == "sde")
    if on_step is not None:
        on_step(rows[noised.any(1)], tokens)
