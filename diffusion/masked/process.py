"""What all masked (absorbing) processes share: tokens become [MASK] and come back; the network speaks of these only.

A process of this kind says when tokens are masked and what a prediction costs (diffusion_*.py). That visible tokens
stay as they are, that a network's [MASK] logit and those of tokens no text holds count for nothing, how its bound is
estimated and how it is sampled are the same for each, and stand here. Time is whatever the process counts it in: `t`,
`s` are numbers of its own, of which `windows` gives the pairs that lead from all [MASK] to clean text.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from data.batch import Batch
from diffusion.chunked_logits import in_parts
from diffusion.draws import Generators, filter_logits, uniform
from diffusion.masked import stepwise
from diffusion.masked.bound import estimate
from diffusion.masked.noise_schedules import NoiseSchedule
from diffusion.masked.prediction import Prediction
from diffusion.masked.row_clocks import RowClocks
from diffusion.masked.stepwise import Confident, Group, Remasking
from diffusion.options import EVERY_WINDOW, BoundArgs, SampleArgs, step_windows
from diffusion.process import Bound, Denoiser, StepCallback
from diffusion.text_process import TextProcess
from utils.errors import UserError

STEPPING = {"ancestral": Group, "cached": Group, "confidence": Confident, "remdm": Remasking}
"""Samplers that take every step."""


class MaskedProcess(TextProcess):
    """A masked process all of whose tokens are alike (`flat`), unless a subclass makes them differ."""

    exact = True
    """Whether the reveal probability is Bayes', on which row clocks and some estimators rest."""
    flat = True
    """Whether every token has the same alpha_bar."""
    lingers = False
    """Whether a token may still be masked after the last window."""
    by_steps = False
    """Whether it can only be sampled step by step."""
    boldest = 0.0
    """The h than which no token's is lower: what is revealed soonest."""

    @property
    def thins(self) -> bool:
        """Whether a prediction has a say in when a token is revealed."""
        return not self.flat

    # ---- when tokens are masked: a subclass says -----------------------------------------------------------------

    def windows(self, num_steps: int) -> Tensor:
        """The reverse steps (t, s), s < t, from all [MASK] to clean, [num_steps, 2].

        Raises:
            UserError: if there cannot be so many.
        """
        raise NotImplementedError

    def keep_probability(self, t: Tensor, h: Tensor) -> Tensor:
        """alpha_bar at t of tokens of informativeness h (0 where all are alike), float64, t and h broadcast."""
        raise NotImplementedError

    def keep_at(self, level: Tensor, h: Tensor) -> Tensor:
        """The same, when that of an average token is at `level`."""
        return level

    def time_at(self, level: Tensor) -> Tensor:
        """The t at which alpha_bar of an average token has come down to `level`."""
        raise NotImplementedError

    def told(self, t: Tensor) -> Tensor:
        """What a time-conditioned network is told at t."""
        return t

    def informativeness_of(self, x0: Tensor, target_mask: Tensor) -> Tensor:
        """The h of every token in its sentence, float64 [B, L]."""
        return torch.zeros(x0.shape, dtype=torch.float64, device=x0.device)

    # ---- corrupt and posterior -----------------------------------------------------------------------------------

    def alpha_bar(self, t: Tensor, x0: Tensor, target_mask: Tensor) -> Tensor:
        """Probability that each token is still itself at step t, float64 [B, L]; 1 at the beginning, 0 at the end.

        Args:
            t: [B], times.
            x0: int64 [B, L], clean tokens.
            target_mask: bool [B, L]; what a sentence is, is a matter of these tokens only.
        """
        return self.keep_probability(t[:, None], self.informativeness_of(x0, target_mask))

    def corrupt(self, x0: Tensor, t: Tensor, target_mask: Tensor, *, generator: Generators = None) -> Tensor:
        """x_t ~ q(x_t | x0), int64 [B, L]: each target token is masked with probability 1 - alpha_bar(t)."""
        masked = uniform(target_mask, generator) < 1 - self.alpha_bar(t, x0, target_mask)  # never where not a target
        return x0.masked_fill(masked, self.mask_id)

    def reveal_probability(self, h: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """Bayes: a token masked at t is itself at s < t with u = (alpha_bar(s) - alpha_bar(t)) / (1 - alpha_bar(t))."""
        at_t = self.keep_probability(t, h)
        return (self.keep_probability(s, h) - at_t) / (1 - at_t)

    def posterior(self, x0: Tensor, s: Tensor, t: Tensor, target_mask: Tensor) -> Tensor:
        """q(x_s = x0 | x_t = [MASK], x0), float64 [B, L]; a masked token stays masked otherwise.

        Args:
            x0: int64 [B, L], clean tokens.
            s, t: [B], s < t.
            target_mask: bool [B, L].
        """
        return self.reveal_probability(self.informativeness_of(x0, target_mask), s[:, None], t[:, None])

    # ---- what the network says ------------------------------------------------------------------------------------

    def predict(self, denoiser: Denoiser, batch: Batch, xt: Tensor, t: Tensor) -> Prediction:
        """Log pi at masked targets: the head is run nowhere else, and visible positions reach no softmax."""
        masked = xt.eq(self.mask_id) & batch.target_mask
        hidden = denoiser.encode(xt, self.told(t), batch.attention_mask)[masked]
        return self.prediction(denoiser.decode(hidden), batch, xt, masked)

    def prediction(self, logits: Tensor, batch: Batch, xt: Tensor, masked: Tensor) -> Prediction:
        """The same from the logits at masked targets, [n, V]; they are changed."""
        return Prediction(batch, xt, masked, self.within(logits))

    def nats(self, prediction: Prediction) -> Tensor:
        """What a masked target costs over the whole of time, float64 [n]: -log pi(x0)."""
        return prediction.cross_entropy

    def divergence(self, prediction: Prediction, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """KL(q(x_s | x_t, x0) || p_theta(x_s | x_t)) and -log pi(x0) of every masked target, each float64 [n], nats.

        Where all tokens are alike the former is u times the latter. Visible positions cost nothing.

        Args:
            prediction: what the network made of x_t.
            s, t: [B], s < t.
        """
        batch = prediction.batch
        u = self.posterior(batch.input_ids, s, t, batch.target_mask)[prediction.masked]
        nats = self.nats(prediction)
        return u * nats, nats

    def token_terms(
        self, denoiser: Denoiser, batch: Batch, xt: Tensor, s: Tensor, t: Tensor, *, with_kl: bool = True
    ) -> tuple[Tensor, Tensor]:
        """`divergence` of every token, each float64 [B, L], nats; 0 at visible ones. Without KL the first is all 0."""
        masked = xt.eq(self.mask_id) & batch.target_mask

        def terms(hidden: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
            prediction = self.prediction(denoiser.decode(hidden), batch.rows(rows), xt[rows], masked[rows])
            if with_kl:
                return self.divergence(prediction, s[rows], t[rows])
            nats = self.nats(prediction)
            return torch.zeros_like(nats), nats

        hidden = denoiser.encode(xt, self.told(t), batch.attention_mask)[masked]
        found = in_parts(terms, hidden, masked.sum(1), self.vocab_size, again=self.fused_loss)
        zeros = torch.zeros(xt.shape, dtype=torch.float64, device=xt.device)
        return tuple(zeros.masked_scatter(masked, part) for part in found)

    # ---- nll_bound and sample ------------------------------------------------------------------------------------

    def bound(
        self,
        denoiser: Denoiser,
        batch: Batch,
        num_steps: float,
        args: BoundArgs = EVERY_WINDOW,
        *,
        generator: Generators = None,
    ) -> Bound:
        """An unbiased estimate of the bound's terms at `num_steps` windows (t, s); `bound.py` says how.

        The prior term, KL(q(x_T | x0) || all [MASK]), is exactly 0, since alpha_bar is 0 at the end.
        """
        return estimate(self, denoiser, batch, num_steps, args, generator=generator)

    def check_sampling(self, args: SampleArgs) -> None:
        """Refuses settings that this process cannot be sampled with.

        Raises:
            UserError: with the bound.
        """
        args.require_tokens("a masked process")
        if math.isfinite(args.num_steps):
            self.windows(int(args.num_steps))
        elif self.by_steps or args.sampler in STEPPING:
            raise UserError("num_steps=inf is for sampler=row-clocks; give a number of steps")
        elif not self.exact:
            raise UserError("num_steps=inf: this process is one of whole steps; give a number of them")
        if self.by_steps and args.sampler == "row-clocks":
            raise UserError("sampler=row-clocks: this process reveals tokens by what is predicted; use ancestral")
        if not self.flat and args.sampler in ("ancestral", "cached", "remdm"):
            raise UserError(f"sampler={args.sampler} is for processes without spindle; use row-clocks or confidence")
        if (self.by_steps or self.thins) and args.sampler == "remdm":
            raise UserError(
                "sampler=remdm: this process reveals tokens by what is predicted; use ancestral or confidence"
            )

    def sample(
        self,
        denoiser: Denoiser,
        batch: Batch,
        args: SampleArgs,
        *,
        rows_at_once: int = 0,
        generator: Generators = None,
        on_step: StepCallback | None = None,
    ) -> Tensor:
        """Ancestral sampling in `args.num_steps` steps, int64 [N, L]; the last step reveals whatever is left.

        Two decisions a step: whether a masked token is revealed, then as what. Temperature, top-k and top-p act on p(x0
        | xt), never on the posterior, whose largest entry is [MASK]. Steps in which a row reveals nothing are passed
        over without a forward (`diffusion/masked/row_clocks.py`); the law is that of taking every one. Samplers of
        `diffusion/masked/stepwise.py` draw from other laws.

        Args:
            denoiser: the network.
            batch: N rows, those of like length side by side.
            args: steps, temperature, top-k, top-p.
            rows_at_once: rows in a forward; 0: all.
            generator: one stream for each row, or one for all.
            on_step: is told after each forward.
        """
        self.check_sampling(args)
        if self.by_steps or args.sampler in STEPPING:
            words = {"rows_at_once": rows_at_once, "generator": generator, "on_step": on_step}
            return stepwise.sample(self, denoiser, batch, args, group_of=STEPPING.get(args.sampler), **words)
        return RowClocks(self, denoiser, batch, args, generator).run(rows_at_once, on_step)

    def reverse_step(self, logits: Tensor, args: SampleArgs, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """One step of `diffusion/masked/stepwise.py`, where all tokens are alike.

        Args:
            logits: [n, V], at masked positions.
            args: temperature, top-k, top-p.
            s, t: times, scalars.

        Returns:
            The probability to stay masked, float64 [n], and weights of what is revealed, [n, V].
        """
        stay = 1 - self.reveal_probability(torch.zeros_like(t, dtype=torch.float64), s, t)
        return stay.expand(len(logits)), filter_logits(logits + self.sampling_support, args).softmax(-1)


class SigmaInput:
    """What the settings of processes have in common whose networks may be told sigma."""

    time_period: ClassVar[int] = 10_000
    """Of the slowest sinusoid by which they are."""

    def check(self, *, time_conditioning: str, **_: object) -> None:
        """Refuses settings of the training that do not go with these."""
        self.check_time(time_conditioning)

    def check_time(self, time_conditioning: str) -> None:
        """Refuses a network that cannot be told sigma.

        Raises:
            UserError: with the remedy.
        """
        if time_conditioning == "token":
            raise UserError("time_conditioning=token counts whole steps, and sigma is none; use none or layerwise")


class ScheduledProcess(MaskedProcess):
    """One whose alpha_bar follows a sigma(t) of `diffusion/masked/noise_schedules.py`: t in [0, 1], float64.

    In continuous time (`num_steps` infinite) windows are of equal length; otherwise they lie on multiples of 1/T.
    """

    schedule: NoiseSchedule
    num_steps: float
    """T."""

    def windows(self, num_steps: int) -> Tensor:
        """See MaskedProcess; float64 [n, 2]."""
        device = self.barred.device
        if math.isfinite(self.num_steps):
            steps = torch.tensor(list(step_windows(int(self.num_steps), num_steps)), device=device)
            return steps.double() / self.num_steps
        grid = torch.arange(num_steps or 128, -1, -1, dtype=torch.float64, device=device)
        return torch.stack([grid[:-1], grid[1:]], 1) / grid[0]

    def keep_probability(self, t: Tensor, h: Tensor) -> Tensor:
        """alpha_bar(t), alike for all tokens."""
        return self.schedule.closed(t) + torch.zeros_like(h)

    def time_at(self, level: Tensor) -> Tensor:
        """The t at which alpha_bar has come down to `level`."""
        return self.schedule.time_at(level)

    def told(self, t: Tensor) -> Tensor:
        """Sigma(t), float32 [B]."""
        return self.schedule.sigma(t.double()).float()
