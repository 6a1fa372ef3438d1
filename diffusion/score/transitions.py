"""The score-based process step by step: noise levels, x_t, p(x0 | x_t), and the estimate of the clean embeddings.

    x_t = e(x0) + sigma z,   |e| = sqrt(E)                    noise; a given token has sigma 0
    x0_hat = sum_k p(k | x_t) e(k)                            score interpolation: score = (x0_hat - x_t) / sigma^2

Loss, bound and samplers (process.py, bound.py, sampling.py) are written in these terms.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from data.batch import Batch
from diffusion.chunked_logits import in_chunks
from diffusion.draws import Generators, gaussian
from diffusion.process import Process, ScoreDenoiser, Vocabulary
from diffusion.process_options import ScoreArgs
from diffusion.score import noise_levels
from diffusion.score.noise_levels import RhoSchedule
from utils.errors import UserError

MAX_STEPS = 10_000


class ScoreTransitions(Process):
    """Noising, prediction and estimation at one noise level; the network is a `ScoreDenoiser`."""

    def __init__(self, args: ScoreArgs, vocabulary: Vocabulary, *, fused_loss: bool = False) -> None:
        """Set up the process; for vocabulary and fused_loss see `Process`."""
        super().__init__(vocabulary, fused_loss=fused_loss)
        self.args, self.num_steps = args, args.num_steps

    def schedule(self, denoiser: ScoreDenoiser) -> RhoSchedule:
        """Return the map from relative level to noise level."""
        highest = self.args.sigma_max or noise_levels.default_sigma_max(denoiser.embedding_size)
        return RhoSchedule(self.args.sigma_min, highest, self.args.rho)

    def relative_levels(self, denoiser: ScoreDenoiser, r: Tensor) -> Tensor:
        """Return the relative levels at quantiles r of their training distribution, which the time warp can change."""
        return r if denoiser.warp is None else denoiser.warp.quantile(r.to(denoiser.warp.widths.device))

    def encode(
        self, denoiser: ScoreDenoiser, x: Tensor, sigma: Tensor, batch: Batch, previous: Tensor | None = None
    ) -> Tensor:
        """Return the features from which `logits` predicts: [B, L, D], or [B, L, D + E] with the output prior.

        At positions with level 0 the clean embeddings replace x.
        """
        noisy = sigma[..., None] > 0
        x = torch.where(noisy, x, denoiser.embed(batch.input_ids))
        hidden = denoiser.encode(x * noise_levels.c_in(sigma)[..., None], sigma, batch.attention_mask, previous)
        if not self.args.output_prior:
            return hidden
        evidence = torch.where(noisy, x / sigma[..., None].square().clamp(min=1e-12), 0.0)
        return torch.cat([hidden.to(evidence.dtype), evidence], -1)

    def logits(self, denoiser: ScoreDenoiser, features: Tensor, table: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the logits of p(x0 | x_t), [n, V], from features [n, D] or [n, D + E] of `encode`.

        All e_k have the same length, so Bayes' rule gives p(k | x_t) proportional to p(k | other positions) times
        exp(<x_t, e_k> / sigma^2). With the output prior the network models only the first factor (Gulrajani and
        Hashimoto 2023, arXiv 2305.18619). The temperature acts on that factor alone.
        """
        if not self.args.output_prior:
            return denoiser.decode(features).to(table.dtype) / temperature
        hidden, evidence = features.split([features.shape[-1] - table.shape[1], table.shape[1]], -1)
        return denoiser.decode(hidden).to(table.dtype) / temperature + evidence @ table.T

    def noisy(self, denoiser: ScoreDenoiser, batch: Batch, sigma: Tensor, generator: Generators) -> Tensor:
        """Draw x_t ~ q(x_t | x0), [B, L, E]."""
        noise = gaussian(sigma > 0, denoiser.embedding_size, generator)
        return denoiser.embed(batch.input_ids) + sigma[..., None] * noise

    def cross_entropy(self, denoiser: ScoreDenoiser, batch: Batch, hidden: Tensor, where: Tensor) -> Tensor:
        """Return -log p(x0 | x_t) at the True positions of `where`, float64 [n]."""
        x0, table = batch.input_ids, denoiser.table()

        def terms(part: Tensor, rows: slice) -> tuple[Tensor]:
            logits = self.within_support(self.logits(denoiser, part, table))
            return (F.cross_entropy(logits, x0[rows][where[rows]], reduction="none").double(),)

        return in_chunks(terms, hidden[where], where.sum(1), self.vocab_size, recompute=self.fused_loss)[0]

    def estimate(self, denoiser: ScoreDenoiser, hidden: Tensor, where: Tensor, table: Tensor) -> Tensor:
        """Return the mean clean embedding under p(x0 | x_t), [B, L, E]; 0 where `where` is False."""

        def terms(part: Tensor, rows: slice) -> tuple[Tensor]:
            return (self.within_support(self.logits(denoiser, part, table)).softmax(-1) @ table,)

        (found,) = in_chunks(terms, hidden[where], where.sum(1), self.vocab_size, recompute=False)
        return found.new_zeros(*where.shape, table.shape[1]).masked_scatter(where[..., None], found)

    def check_steps(self, num_steps: float, *, limit: bool = False) -> None:
        """Refuse a number of steps that this process cannot take.

        Args:
            num_steps: steps of a sample or a bound.
            limit: allow infinitely many steps, if time is continuous.

        Raises:
            UserError: with the largest number of steps.
        """
        most = int(min(MAX_STEPS, self.num_steps))
        if num_steps > most and not (math.isinf(num_steps) and limit and math.isinf(self.num_steps)):
            raise UserError(f"num_steps={num_steps:g} must be at most {most:,}; give fewer")

    def levels(self, denoiser: ScoreDenoiser, noised: Tensor, num_steps: int) -> Tensor:
        """Return a sampler's noise levels, highest first, float64 [num_steps, B, L]; 0 at given tokens."""
        schedule, grid = self.schedule(denoiser), noise_levels.relative_level_grid(num_steps).to(noised.device)
        if self.args.level_order == "rising":
            rows = [noise_levels.rising_relative_levels(start.expand(len(noised)), noised) for start in grid]
            relative = torch.stack(rows)
        else:
            relative = self.relative_levels(denoiser, grid).detach()[:, None, None].expand(-1, *noised.shape)
        return schedule(relative) * noised

    def noisy_forward(
        self,
        denoiser: ScoreDenoiser,
        batch: Batch,
        sigma: Tensor,
        table: Tensor,
        generator: Generators,
    ) -> Tensor:
        """Noise a batch to levels [B, L] and return its features; self-conditioning takes a second forward pass."""
        x = self.noisy(denoiser, batch, sigma, generator)
        hidden = self.encode(denoiser, x, sigma, batch)
        if not denoiser.self_conditioning:
            return hidden
        before = self.estimate(denoiser, hidden, sigma > 0, table)
        return self.encode(denoiser, x, sigma, batch, before)

    def sentence_nats(self, denoiser: ScoreDenoiser, batch: Batch, hidden: Tensor) -> Tensor:
        """Return -log p(x0 | x_t) summed over each sentence's targets, float64 [B]."""
        where = batch.target_mask
        nats = self.cross_entropy(denoiser, batch, hidden, where)
        sums = torch.zeros(len(where), dtype=torch.float64, device=where.device)
        return sums.index_add(0, where.nonzero()[:, 0], nats)
