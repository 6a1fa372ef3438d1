"""The score-based diffusion LM: Gaussian noise on embeddings, taken away again by a network that names the tokens.

    x_t = e(x0) + sigma z,   |e| = sqrt(E)                   noise; a given token has sigma 0
    -log p(x0 | x_t)                                          what is learnt: cross-entropy, at a level drawn anew
    x0_hat = sum_k p(k | x_t) e(k)                            score interpolation: score = (x0_hat - x_t) / sigma^2

In reading order: settings, levels, loss, bound, sampling. Levels and scalings: noise_levels.py; the samplers:
score_samplers.py. Sources: CDCD (Dieleman et al. 2022, arXiv 2211.15089), thorinf's score-based-diffusion-lm,
AR-Diffusion (Wu et al. 2023, arXiv 2305.09515). The bound is that of variational diffusion (score_bound.py).
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

import noise_levels
import score_bound
import score_sampling
from draws import gaussian, stratified_uniform
from masked_prediction import in_parts
from noise_levels import KINDS, Drawn, RhoSchedule
from process import (
    EVERY_WINDOW,
    WHOLE,
    Batch,
    Bound,
    BoundArgs,
    Generators,
    Loss,
    SampleArgs,
    ScoreDenoiser,
    Share,
    StepCallback,
    UserError,
    check_choices,
    check_ranges,
)
from score_samplers import SAMPLERS
from text_process import TextProcess


@dataclass(frozen=True)
class ScoreArgs:
    """Everything that defines the process; saved with the checkpoint."""

    sigma_min: float = field(default=1.0, metadata={"help": "the lowest noise level"})
    sigma_max: float = field(
        default=0.0, metadata={"help": "the highest; 0: 18.75 times the root of the embeddings' width"}
    )
    rho: float = field(default=3.0, metadata={"help": "spacing of the levels: 1 is even, more dwells on low ones"})
    loss_weighting: str = field(
        default="uniform", metadata={"choices": ["uniform", "edm"], "help": "edm: by (sigma^2 + 1) / sigma^2"}
    )
    level_order: str = field(
        default="free", metadata={"choices": ["free", "rising"], "help": "rising: from left to right (AR-Diffusion)"}
    )
    position_levels: float = field(
        default=0.1, metadata={"help": "share of the sentences in which every position has a level of its own"}
    )
    given_share: float = field(default=0.5, metadata={"help": "share of the sentences of which a part is given"})
    given_kinds: str = field(default=",".join(KINDS), metadata={"help": "which parts: of prefix, span, infill"})
    drop_given: float = field(
        default=0.0, metadata={"help": "share of sentences in which what is given is hidden in noise, for --guidance"}
    )
    output_prior: bool = field(
        default=True, metadata={"help": "add how likely x_t is of each token to the network's logits (Plaid)"}
    )
    self_conditioning: bool = field(default=True, metadata={"help": "the network sees its estimate before"})
    time_warp: bool = field(default=True, metadata={"help": "learn where levels are worth drawing (CDCD)"})

    time_period: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, sigma_min=(1e-3, 1e3), sigma_max=(0, 1e6), rho=(0.1, 100))
        check_ranges(self, position_levels=(0, 1), given_share=(0, 1), drop_given=(0, 1))
        if self.sigma_max and self.sigma_max <= self.sigma_min:
            raise UserError(f"sigma_max={self.sigma_max:g} must be above sigma_min={self.sigma_min:g}; 0: by the width")
        if not self.sigma_max and self.sigma_min >= noise_levels.REACH:
            raise UserError(f"sigma_min={self.sigma_min:g} must be below {noise_levels.REACH}, or give sigma_max, too")
        if not set(self.given_kinds.split(",")) <= set(KINDS):
            raise UserError(f"given_kinds={self.given_kinds!r} must be some of {','.join(KINDS)}")
        if self.level_order == "rising" and self.time_warp:
            raise UserError("level_order=rising has levels of its own; give time_warp=false with it")

    @property
    def num_steps(self) -> float:
        """Time is continuous; levels that rise from left to right are AR-Diffusion's whole steps."""
        return noise_levels.RISING if self.level_order == "rising" else math.inf

    @property
    def network_settings(self) -> dict[str, bool]:
        """What a network that is made for the process must have."""
        return {"self_conditioning": self.self_conditioning, "time_warp": self.time_warp}

    def check_time(self, time_conditioning: str) -> None:
        """Refuses a network that is told the level in another way than it is, with a UserError."""
        if time_conditioning == "token":
            raise UserError("time_conditioning=token: process=score tells the noise of every position; leave it out")

    def check(self, *, time_conditioning: str, warm_start: float, **_: object) -> None:
        """Refuses what has no meaning without [MASK], with a UserError."""
        self.check_time(time_conditioning)
        if warm_start:
            raise UserError("warm_start is for masked processes; leave it out with process=score")


class ScoreDiffusion(TextProcess):
    """Satisfies `process.Process`; its denoiser is a `ScoreDenoiser`."""

    in_the_limit = "stratified"

    def __init__(
        self,
        args: ScoreArgs,
        token_counts: Tensor,
        *,
        mask_id: int,
        excluded_ids: tuple[int, ...] = (),
        unsampled_ids: tuple[int, ...] = (),
    ) -> None:
        """See `TextProcess`; of the counts, [V], only their number counts."""
        super().__init__(len(token_counts), mask_id=mask_id, excluded_ids=excluded_ids, unsampled_ids=unsampled_ids)
        self.args, self.num_steps = args, args.num_steps

    # ---- levels --------------------------------------------------------------------------------------------------

    def schedule(self, denoiser: ScoreDenoiser) -> RhoSchedule:
        """From place to level."""
        highest = self.args.sigma_max or noise_levels.sigma_max_for(denoiser.embedding_size)
        return RhoSchedule(self.args.sigma_min, highest, self.args.rho)

    def places(self, denoiser: ScoreDenoiser, r: Tensor) -> Tensor:
        """Even numbers to places: themselves, or warped."""
        return r if denoiser.warp is None else denoiser.warp.places(r.to(denoiser.warp.widths.device))

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

    def encode(
        self, denoiser: ScoreDenoiser, x: Tensor, sigma: Tensor, batch: Batch, previous: Tensor | None = None
    ) -> Tensor:
        """What `logits` are made of, [B, L, D], or with the output prior [B, L, D + E].

        Where the level is 0, x is not looked at: the clean embeddings stand there.
        """
        noisy = sigma[..., None] > 0
        x = torch.where(noisy, x, denoiser.embed(batch.input_ids))
        hidden = denoiser.encode(x * noise_levels.c_in(sigma)[..., None], sigma, batch.attention_mask, previous)
        if not self.args.output_prior:
            return hidden
        evidence = torch.where(noisy, x / sigma[..., None].square().clamp(min=1e-12), 0.0)
        return torch.cat([hidden.to(evidence.dtype), evidence], -1)

    def logits(self, denoiser: ScoreDenoiser, features: Tensor, table: Tensor, temperature: float = 1.0) -> Tensor:
        """Of p(x0 | x_t), [n, V], from what `encode` gave, [n, D] or [n, D + E].

        By Bayes p(k | x_t) is p(k | all else) exp(<x_t, e_k> / sigma^2), as all e_k are of one length: with the output
        prior the network is left to say the first factor (Gulrajani and Hashimoto 2023, arXiv 2305.18619), and that is
        what a temperature is of.
        """
        if not self.args.output_prior:
            return denoiser.decode(features).to(table.dtype) / temperature
        hidden, evidence = features.split([features.shape[-1] - table.shape[1], table.shape[1]], -1)
        return denoiser.decode(hidden).to(table.dtype) / temperature + evidence @ table.T

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
            total = total + num_tokens * denoiser.warp.misfit(drawn.place, *drawn.means(nats.detach()))
        return Loss(total, num_tokens, {"cross_entropy": nats.detach().sum() * scale})

    def noisy(self, denoiser: ScoreDenoiser, batch: Batch, sigma: Tensor, generator: Generators) -> Tensor:
        """x_t ~ q(x_t | x0), [B, L, E]."""
        noise = gaussian(sigma > 0, denoiser.embedding_size, generator)
        return denoiser.embed(batch.input_ids) + sigma[..., None] * noise

    def cross_entropy(self, denoiser: ScoreDenoiser, batch: Batch, hidden: Tensor, where: Tensor) -> Tensor:
        """-log p(x0 | x_t) at the True positions of `where`, float64 [n]."""
        x0, table = batch.input_ids, denoiser.table()

        def terms(part: Tensor, rows: slice) -> tuple[Tensor]:
            logits = self.within(self.logits(denoiser, part, table))
            return (F.cross_entropy(logits, x0[rows][where[rows]], reduction="none").double(),)

        return in_parts(terms, hidden[where], where.sum(1), self.vocab_size, again=self.fused_loss)[0]

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

    def estimate(self, denoiser: ScoreDenoiser, hidden: Tensor, where: Tensor, table: Tensor) -> Tensor:
        """Score interpolation: the mean clean embedding under p(x0 | x_t), [B, L, E]; 0 elsewhere."""

        def terms(part: Tensor, rows: slice) -> tuple[Tensor]:
            return (self.within(self.logits(denoiser, part, table)).softmax(-1) @ table,)

        (found,) = in_parts(terms, hidden[where], where.sum(1), self.vocab_size, again=False)
        return found.new_zeros(*where.shape, table.shape[1]).masked_scatter(where[..., None], found)

    # ---- bound and sampling --------------------------------------------------------------------------------------

    def bound(
        self,
        denoiser: ScoreDenoiser,
        batch: Batch,
        num_steps: float,
        args: BoundArgs = EVERY_WINDOW,
        *,
        generator: Generators = None,
    ) -> Bound:
        """An upper bound of -log p(x0), whose p is `--sampler sde` at as many steps: see score_bound.py.

        Raises:
            UserError: for an estimator of masked processes.
        """
        return score_bound.bound(self, denoiser, batch, num_steps, args, generator)

    def profiled(self, denoiser: ScoreDenoiser) -> list[str]:
        """Cross-entropies, by noise level."""
        return [f"cross_entropy_at_{sigma:g}" for sigma in score_bound.reported(self, denoiser)]

    def profile(self, denoiser: ScoreDenoiser, batch: Batch, generator: Generators) -> Tensor:
        """These, float64 [number of names, B] in nats."""
        return score_bound.profile(self, denoiser, batch, generator)

    def about(self, denoiser: ScoreDenoiser) -> dict[str, float]:
        """How high the noise goes, and how far the embeddings have drawn together."""
        return {"sigma_max": self.schedule(denoiser).sigma_max, "anisotropy": noise_levels.anisotropy(denoiser.table())}

    def check_sampling(self, args: SampleArgs) -> None:
        """Refuses what has no meaning without [MASK], and guidance of a network that was never asked without.

        Raises:
            UserError: with the remedy.
        """
        if args.sampler not in ("auto", *SAMPLERS):
            raise UserError(f"sampler={args.sampler} is for masked processes; this one has {', '.join(SAMPLERS)}")
        score_bound.check_steps(self, args.num_steps)
        if args.guidance != 1 and not self.args.drop_given:
            raise UserError(f"guidance={args.guidance:g} needs a checkpoint trained with --drop_given (0.1, say)")

    def sample(
        self,
        denoiser: ScoreDenoiser,
        batch: Batch,
        args: SampleArgs,
        *,
        rows_at_once: int = 0,
        generator: Generators = None,
        on_step: StepCallback | None = None,
    ) -> Tensor:
        """int64 [N, L]: targets from noise; what is given is exactly as it was. See score_sampling.py."""
        self.check_sampling(args)
        return score_sampling.sample(self, denoiser, batch, args, rows_at_once, generator, on_step)
