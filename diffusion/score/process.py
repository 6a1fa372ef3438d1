"""The score-based diffusion LM: Gaussian noise on embeddings, removed by a network that predicts the tokens.

    x_t = e(x0) + sigma z,   |e| = sqrt(E)                    noise; a given token has sigma 0
    -log p(x0 | x_t)                                          loss: cross-entropy at a random noise level
    x0_hat = sum_k p(k | x_t) e(k)                            score interpolation: score = (x0_hat - x_t) / sigma^2

In reading order: noise levels, loss, bound, sampling. Settings and network calls: diffusion/score/transitions.py;
schedules and scalings: diffusion/score/noise_levels.py; samplers: diffusion/score/sampling.py. Sources: CDCD (Dieleman
et al. 2022, arXiv 2211.15089), thorinf's score-based-diffusion-lm, AR-Diffusion (Wu et al. 2023, arXiv 2305.09515). The
bound is that of variational diffusion (diffusion/score/bound.py).
"""

import torch
from torch import Generator, Tensor

from data.batch import Batch
from diffusion.draws import WHOLE, Generators, Share, stratified_uniform, streams_of
from diffusion.options import BoundArgs, SampleArgs
from diffusion.process import Bound, Loss, ScoreDenoiser, StepCallback
from diffusion.score import noise_levels
from diffusion.score.bound import bound, profile, reported_levels
from diffusion.score.noise_levels import NoiseDraw
from diffusion.score.sampling import SAMPLERS, EmbeddingEstimator, sample_rows
from diffusion.score.transitions import ScoreTransitions
from utils.errors import UserError


class ScoreDiffusion(ScoreTransitions):
    """The score-based process; its network is a `ScoreDenoiser`."""

    samplers = ("renoise", "euler", "heun", "sde")
    estimators = ("windows", "stratified")
    limit_estimator = "stratified"

    def draw(self, denoiser: ScoreDenoiser, batch: Batch, generator: Generator | None, share: Share) -> NoiseDraw:
        """Draw the noise levels and the given tokens of a training step."""
        args, noised, device = self.args, batch.noised, batch.input_ids.device
        predicted = noised & ~noise_levels.draw_given(noised, args.given_share, args.given_kinds.split(","), generator)
        relative = stratified_uniform(len(noised), generator, share).to(device)
        coins = torch.rand(2, len(noised), generator=generator, dtype=torch.float64).to(device)
        if args.level_order == "rising":
            own = noise_levels.rising_relative_levels(relative, predicted)
        else:
            relative = self.relative_levels(denoiser, relative).detach()
            own = relative[:, None].expand(noised.shape)
        many = coins[0] < args.position_levels
        own = torch.where(many[:, None], noise_levels.position_relative_levels(predicted, generator), own)
        sigma = self.schedule(denoiser)(own).float() * predicted
        hidden = (coins[1] < args.drop_given)[:, None] & batch.attention_mask & ~predicted
        sigma = torch.where(hidden, self.schedule(denoiser).sigma_max, sigma)
        return NoiseDraw(sigma, predicted, relative, ~many)

    # ---- loss ----------------------------------------------------------------------------------------------------

    def loss(
        self, denoiser: ScoreDenoiser, batch: Batch, *, generator: Generator | None = None, share: Share = WHOLE
    ) -> Loss:
        """Return the mean cross-entropy of the noisy tokens (weighted, with `edm`) times the number of targets, nats.

        Its gradient also reaches the embeddings through x_t. With a time warp, the fit loss of the curve is added.
        """
        drawn = self.draw(denoiser, batch, generator, share)
        x = self.noisy(denoiser, batch, drawn.sigma, generator)
        previous = self.self_conditioning_estimate(denoiser, batch, x, drawn, generator)
        hidden = self.encode(denoiser, x, drawn.sigma, batch, previous)
        nats = self.cross_entropy(denoiser, batch, hidden, drawn.predicted)
        weight = noise_levels.loss_weight(drawn.sigma[drawn.predicted]) if self.args.loss_weighting == "edm" else 1.0
        num_tokens = batch.target_mask.sum()
        scale = num_tokens / drawn.predicted.sum().clamp(min=1)
        total = (nats * weight).sum() * scale
        if denoiser.warp is not None:
            total = total + num_tokens * denoiser.warp.fit_loss(drawn.relative_level, *drawn.means(nats.detach()))
        return Loss(total, num_tokens, {"cross_entropy": nats.detach().sum() * scale})

    @torch.no_grad()
    def self_conditioning_estimate(
        self, denoiser: ScoreDenoiser, batch: Batch, x: Tensor, drawn: NoiseDraw, generator: Generator | None
    ) -> Tensor | None:
        """Return the network's unconditioned estimate for a random half of the sentences, [B, L, E]; 0 elsewhere."""
        if not denoiser.self_conditioning:
            return None
        rows = torch.rand(len(x), generator=generator, dtype=torch.float64).to(x.device) < 0.5
        used, before = rows.clone(), torch.zeros_like(x)
        used[:1] = True  # every worker must run the network equally often: FSDP's collective calls would hang otherwise
        hidden = self.encode(denoiser, x[used], drawn.sigma[used], batch.rows(used))
        before[used] = self.estimate(denoiser, hidden, drawn.predicted[used], denoiser.table())
        return before * rows[:, None, None]

    # ---- bound and sampling --------------------------------------------------------------------------------------

    def _bound(
        self, denoiser: ScoreDenoiser, batch: Batch, num_steps: float, args: BoundArgs, generator: Generators
    ) -> Bound:
        """Estimate the bound of `--sampler sde` with the same number of steps; see bound.py."""
        return bound(self, denoiser, batch, num_steps, args, generator)

    def profile_names(self, denoiser: ScoreDenoiser) -> list[str]:
        """Return the names of the cross-entropies by noise level."""
        return [f"cross_entropy_at_{sigma:g}" for sigma in reported_levels(self, denoiser)]

    def profile(self, denoiser: ScoreDenoiser, batch: Batch, generator: Generators) -> Tensor:
        """Return the cross-entropies by noise level, float64 [number of names, B], nats."""
        return profile(self, denoiser, batch, generator)

    def network_figures(self, denoiser: ScoreDenoiser) -> dict[str, float]:
        """Return the highest noise level and the anisotropy of the embeddings."""
        return {"sigma_max": self.schedule(denoiser).sigma_max, "anisotropy": noise_levels.anisotropy(denoiser.table())}

    def check_sampling(self, args: SampleArgs) -> None:
        """Refuse samplers of masked processes, and guidance of a network trained without it.

        Raises:
            UserError: with the remedy.
        """
        if args.sampler not in ("auto", *SAMPLERS):
            raise UserError(f"sampler={args.sampler} is for masked processes; this one has {', '.join(SAMPLERS)}")
        self.check_steps(args.num_steps)
        if args.guidance != 1 and not self.args.drop_given:
            raise UserError(f"guidance={args.guidance:g} needs a checkpoint trained with --drop_given (0.1, say)")

    def _sample(
        self,
        denoiser: ScoreDenoiser,
        batch: Batch,
        args: SampleArgs,
        rows_at_once: int,
        generator: Generators,
        on_step: StepCallback | None,
    ) -> Tensor:
        """Sample from noise, a group of rows at a time; given tokens stay unchanged. See sampling.py."""
        tokens = batch.input_ids.masked_fill(batch.noised, self.mask_id)
        for rows in torch.arange(len(tokens), device=tokens.device).split(rows_at_once or max(1, len(tokens))):
            group = batch.rows(rows)
            if group.noised.any():
                reverse = EmbeddingEstimator(self, denoiser, group, args, streams_of(generator, rows))
                sample_rows(reverse, rows, tokens, on_step)
        return tokens
