"""The score-based diffusion LM: Gaussian noise on embeddings, taken away again by a network that names the tokens.

    x_t = e(x0) + sigma z,   |e| = sqrt(E)                   noise; a given token has sigma 0
    -log p(x0 | x_t)                                          what is learnt: cross-entropy, at a level drawn anew
    x0_hat = sum_k p(k | x_t) e(k)                            score interpolation: score = (x0_hat - x_t) / sigma^2

In reading order: settings, levels, loss, bound, sampling. Levels and scalings: diffusion/score/noise_levels.py; the
samplers: diffusion/score/sampling.py. Sources: CDCD (Dieleman et al. 2022, arXiv 2211.15089), thorinf's
score-based-diffusion-lm, AR-Diffusion (Wu et al. 2023, arXiv 2305.09515). The bound is that of variational diffusion
(diffusion/score/bound.py).
"""

import torch
from torch import Generator, Tensor

from data.batch import Batch
from diffusion.draws import WHOLE, Generators, Share, stratified_uniform
from diffusion.options import BoundArgs, SampleArgs
from diffusion.process import Bound, Loss, ScoreDenoiser, StepCallback
from diffusion.score import noise_levels, sampling
from diffusion.score.bound import bound, profile, reported
from diffusion.score.noise_levels import Drawn
from diffusion.score.sampling import SAMPLERS
from diffusion.score.transitions import ScoreTransitions
from utils.errors import UserError


class ScoreDiffusion(ScoreTransitions):
    """Satisfies `process.Process`; its denoiser is a `ScoreDenoiser`."""

    samplers = ("renoise", "euler", "heun", "sde")
    estimators = ("windows", "stratified")
    limit_estimator = "stratified"

    def draw(self, denoiser: ScoreDenoiser, batch: Batch, generator: Generator | None, share: Share) -> Drawn:
        """Levels for a step of training, and what is given in it."""
        args, noised, device = self.args, batch.noised, batch.input_ids.device
        learnt = noised & ~noise_levels.draw_given(noised, args.given_share, args.given_kinds.split(","), generator)
        place = stratified_uniform(len(noised), generator, share).to(device)
        coins = torch.rand(2, len(noised), generator=generator, dtype=torch.float64).to(device)
        if args.level_order == "rising":
            own = noise_levels.rising_places(place, learnt)
        else:
            place = self.places(denoiser, place).detach()
            own = place[:, None].expand(noised.shape)
        many = coins[0] < args.position_levels
        own = torch.where(many[:, None], noise_levels.places_of_positions(learnt, generator), own)
        sigma = self.schedule(denoiser)(own).float() * learnt
        hidden = (coins[1] < args.drop_given)[:, None] & batch.attention_mask & ~learnt
        sigma = torch.where(hidden, self.schedule(denoiser).sigma_max, sigma)
        return Drawn(sigma, learnt, place, ~many)

    # ---- loss ----------------------------------------------------------------------------------------------------

    def loss(
        self, denoiser: ScoreDenoiser, batch: Batch, *, generator: Generator | None = None, share: Share = WHOLE
    ) -> Loss:
        """The mean cross-entropy of what is noisy (weighted, with `edm`), times the number of targets: in nats.

        Its gradient reaches the embeddings through x_t, too. With a time warp, the curve's own error is added.
        """
        drawn = self.draw(denoiser, batch, generator, share)
        x = self.noisy(denoiser, batch, drawn.sigma, generator)
        previous = self.estimate_before(denoiser, batch, x, drawn, generator)
        hidden = self.encode(denoiser, x, drawn.sigma, batch, previous)
        nats = self.cross_entropy(denoiser, batch, hidden, drawn.learnt)
        weight = noise_levels.loss_weight(drawn.sigma[drawn.learnt]) if self.args.loss_weighting == "edm" else 1.0
        num_tokens = batch.target_mask.sum()
        scale = num_tokens / drawn.learnt.sum().clamp(min=1)
        total = (nats * weight).sum() * scale
        if denoiser.warp is not None:
            total = total + num_tokens * denoiser.warp.fit_loss(drawn.place, *drawn.means(nats.detach()))
        return Loss(total, num_tokens, {"cross_entropy": nats.detach().sum() * scale})

    @torch.no_grad()
    def estimate_before(
        self, denoiser: ScoreDenoiser, batch: Batch, x: Tensor, drawn: Drawn, generator: Generator | None
    ) -> Tensor | None:
        """Of half of the sentences, the estimate that the network makes without one, [B, L, E]; of others 0."""
        if not denoiser.self_conditioning:
            return None
        rows = torch.rand(len(x), generator=generator, dtype=torch.float64).to(x.device) < 0.5
        looked, before = rows.clone(), torch.zeros_like(x)
        looked[:1] = True  # so that processes that share its weights (FSDP) run the network equally often
        hidden = self.encode(denoiser, x[looked], drawn.sigma[looked], batch.rows(looked))
        before[looked] = self.estimate(denoiser, hidden, drawn.learnt[looked], denoiser.table())
        return before * rows[:, None, None]

    # ---- bound and sampling --------------------------------------------------------------------------------------

    def _bound(
        self, denoiser: ScoreDenoiser, batch: Batch, num_steps: float, args: BoundArgs, generator: Generators
    ) -> Bound:
        """The law is that of `--sampler sde` at as many steps: see bound.py."""
        return bound(self, denoiser, batch, num_steps, args, generator)

    def profile_names(self, denoiser: ScoreDenoiser) -> list[str]:
        """Cross-entropies, by noise level."""
        return [f"cross_entropy_at_{sigma:g}" for sigma in reported(self, denoiser)]

    def profile(self, denoiser: ScoreDenoiser, batch: Batch, generator: Generators) -> Tensor:
        """These, float64 [number of names, B] in nats."""
        return profile(self, denoiser, batch, generator)

    def network_figures(self, denoiser: ScoreDenoiser) -> dict[str, float]:
        """How high the noise goes, and how far the embeddings have drawn together."""
        return {"sigma_max": self.schedule(denoiser).sigma_max, "anisotropy": noise_levels.anisotropy(denoiser.table())}

    def check_sampling(self, args: SampleArgs) -> None:
        """Refuses what has no meaning without [MASK], and guidance of a network that was never asked without.

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
        """From noise; what is given is exactly as it was. See sampling.py."""
        return sampling.sample(self, denoiser, batch, args, rows_at_once, generator, on_step)
