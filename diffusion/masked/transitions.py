"""Masked (absorbing-state) diffusion, step by step: corrupt, posterior, prediction, and the bound's terms.

    q(x_t = x0 | x0) = alpha_bar(t),  else x_t = [MASK]                              corrupt
    q(x_s = x0 | x_t = [MASK], x0) = u = (alpha_bar(s) - alpha_bar(t)) / (1 - alpha_bar(t))     posterior, s < t
    KL(q(x_s | x_t, x0) || p_theta(x_s | x_t)) = -u log pi(x0)                       divergence, pi = p_theta(x0 | x_t)

The schedule (alpha_bar) is an object that the process is given. Time is whatever the schedule counts it in: t and s
are numbers of its own, and `Schedule.windows` gives the pairs that lead from all [MASK] to clean text. Visible tokens
stay as they are and cost nothing. Bound and samplers (bound.py, row_clocks.py, stepwise.py) are written in these terms.
Source: D3PM (Austin et al. 2021, arXiv 2107.03006), the absorbing state.
"""

from typing import Protocol

import torch
from torch import Tensor

from data.batch import Batch
from diffusion.chunked_logits import in_parts
from diffusion.draws import Generators, filter_logits, uniform
from diffusion.masked.prediction import Prediction
from diffusion.options import SampleArgs
from diffusion.process import Denoiser, Process, Vocabulary


class Schedule(Protocol):
    """When tokens are masked. h is a token's informativeness in its sentence, 0 for an average token."""

    num_steps: float
    """T; infinite in continuous time."""
    token_dependent: bool
    """Whether alpha_bar differs between tokens; otherwise every h is 0."""

    def windows(self, num_steps: int) -> Tensor:
        """Return the reverse steps (t, s), s < t, from all [MASK] to clean, [num_steps, 2].

        Raises:
            UserError: if there cannot be so many.
        """
        ...

    def informativeness(self, x0: Tensor, target_mask: Tensor) -> Tensor:
        """Return h of every token, float64 [B, L], for x0 int64 [B, L]; the sentence is its target tokens."""
        ...

    def alpha_bar(self, t: Tensor, h: Tensor) -> Tensor:
        """Return the probability that a token is still itself at t, float64; t and h are broadcast."""
        ...

    def token_alpha_bar(self, t: Tensor, x0: Tensor, target_mask: Tensor) -> Tensor:
        """Return alpha_bar at t [B] of every token x0 of its sentence, float64 [B, L]."""
        ...

    def reveal_probability(self, s: Tensor, t: Tensor, h: Tensor) -> Tensor:
        """Return Bayes' u = (alpha_bar(s) - alpha_bar(t)) / (1 - alpha_bar(t)), float64."""
        ...

    def time_at(self, level: Tensor) -> Tensor:
        """Return the t at which alpha_bar of an average token is `level`, in [0, 1]."""
        ...

    def time_input(self, t: Tensor) -> Tensor:
        """Return what a time-conditioned network is given at t."""
        ...

    def to(self, device: torch.device) -> "Schedule":
        """Move the tables; returns self."""
        ...


class Thinning(Protocol):
    """Rejection by which a prediction has a say in when a token is revealed (Lewis and Shedler 1979).

    A token's mark is what its reveal probability depends on besides time: its h under a spindle, pi([MASK]) in D3PM.
    Row clocks propose a reveal at the largest rate of any mark, and accept it with the ratio of the two.
    """

    fastest_mark: float
    """The mark whose tokens are revealed soonest."""
    statistic: Tensor | None
    """[V], what a mark is measured against: its expectation over the sentence; None if nothing is."""

    def mark(self, logits: Tensor, token: Tensor, mean: Tensor | None) -> Tensor:
        """Return the marks of drawn tokens [n], predicted by logits [n, V], in sentences of that mean, float64 [n]."""
        ...

    def sentence_mean(self, expected: Tensor, xt: Tensor, masked: Tensor, target_mask: Tensor) -> Tensor:
        """Return the mean of the statistic, float64 [B]; `expected` [n] are its expectations at masked positions."""
        ...

    def reveal_probability(self, s: Tensor, t: Tensor, mark: Tensor) -> Tensor:
        """Return the probability that a token masked at t is itself at s, float64."""
        ...

    def hazard(self, level: Tensor, mark: Tensor) -> Tensor:
        """Return its limit as s -> t, per unit of the average token's alpha_bar, at that `level`."""
        ...

    def alpha_bar(self, level: Tensor, mark: Tensor) -> Tensor:
        """Return alpha_bar of a token where that of an average one is `level`."""
        ...


class MaskedTransitions(Process):
    """One step of a masked process with a Bayes posterior."""

    leftover_masks = False
    """Whether a token may still be masked after the last window; it is then drawn given the rest."""
    limit_estimators: tuple[str, ...] = ()
    """What --estimator may name in the limit of ever finer steps."""

    def __init__(
        self,
        schedule: Schedule,
        vocabulary: Vocabulary,
        *,
        thinning: Thinning | None = None,
        fused_loss: bool = False,
    ) -> None:
        """Put a process together.

        Args:
            schedule: when tokens are masked.
            vocabulary: see `Process`.
            thinning: how a prediction delays a reveal; None: it does not.
            fused_loss: see `Process`.
        """
        super().__init__(vocabulary, fused_loss=fused_loss)
        self.schedule, self.thinning, self.num_steps = schedule, thinning, schedule.num_steps

    @property
    def token_dependent(self) -> bool:
        """Whether alpha_bar differs between tokens."""
        return self.schedule.token_dependent

    def to(self, device: torch.device) -> "MaskedTransitions":
        """Move tables and schedule; returns self."""
        self.schedule.to(device)
        return super().to(device)

    # ---- q: corrupt and posterior --------------------------------------------------------------------------------

    def alpha_bar(self, t: Tensor, x0: Tensor, target_mask: Tensor) -> Tensor:
        """Probability that each token is still itself at time t, float64 [B, L]; 1 at the beginning, 0 at the end.

        Args:
            t: [B], times.
            x0: int64 [B, L], clean tokens.
            target_mask: bool [B, L]; only these tokens make up the sentence.
        """
        return self.schedule.token_alpha_bar(t, x0, target_mask)

    def corrupt(self, x0: Tensor, t: Tensor, target_mask: Tensor, *, generator: Generators = None) -> Tensor:
        """Draw x_t ~ q(x_t | x0), int64 [B, L]: each target token is masked with probability 1 - alpha_bar(t)."""
        masked = uniform(target_mask, generator) < 1 - self.alpha_bar(t, x0, target_mask)  # never where not a target
        return x0.masked_fill(masked, self.mask_id)

    def posterior(self, x0: Tensor, s: Tensor, t: Tensor, target_mask: Tensor) -> Tensor:
        """q(x_s = x0 | x_t = [MASK], x0), float64 [B, L]; otherwise a masked token stays masked.

        Args:
            x0: int64 [B, L], clean tokens.
            s, t: [B], s < t.
            target_mask: bool [B, L].
        """
        h = self.schedule.informativeness(x0, target_mask)
        return self.schedule.reveal_probability(s[:, None], t[:, None], h)

    # ---- p_theta: prediction and cost ----------------------------------------------------------------------------

    def predict(self, denoiser: Denoiser, batch: Batch, xt: Tensor, t: Tensor) -> Prediction:
        """Predict the masked targets: the vocabulary head is run nowhere else."""
        masked = xt.eq(self.mask_id) & batch.target_mask
        hidden = denoiser.encode(xt, self.time_input(t), batch.attention_mask)[masked]
        return Prediction(batch, xt, masked, denoiser.decode(hidden), self.barred)

    def time_input(self, t: Tensor) -> Tensor:
        """Return what a time-conditioned network is given at t."""
        return self.schedule.time_input(t)

    def nats(self, prediction: Prediction) -> Tensor:
        """Cost of each masked target over the whole of time, float64 [n]: -log pi(x0)."""
        return prediction.cross_entropy

    def divergence(self, prediction: Prediction, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """KL(q(x_s | x_t, x0) || p_theta(x_s | x_t)) and -log pi(x0) of every masked target, each float64 [n], nats.

        Args:
            prediction: p(x0 | x_t).
            s, t: [B], s < t.
        """
        batch = prediction.batch
        u = self.posterior(batch.input_ids, s, t, batch.target_mask)[prediction.masked]
        nats = self.nats(prediction)
        return u * nats, nats

    def timing(self, prediction: Prediction, s: Tensor, t: Tensor) -> Tensor:
        """KL less u times the cost, float64 [n]: the surprise at when a token is revealed; 0 where all are alike."""
        return torch.zeros_like(self.nats(prediction))

    def token_terms(
        self, denoiser: Denoiser, batch: Batch, xt: Tensor, s: Tensor, t: Tensor, *, with_kl: bool = True
    ) -> tuple[Tensor, Tensor]:
        """`divergence` of every token, each float64 [B, L], nats; 0 at visible ones. Without KL the first is all 0."""
        masked = xt.eq(self.mask_id) & batch.target_mask

        def terms(hidden: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
            own = batch if rows == slice(None) else batch.rows(rows)
            prediction = Prediction(own, xt[rows], masked[rows], denoiser.decode(hidden), self.barred)
            if with_kl:
                return self.divergence(prediction, s[rows], t[rows])
            nats = self.nats(prediction)
            return torch.zeros_like(nats), nats

        hidden = denoiser.encode(xt, self.time_input(t), batch.attention_mask)[masked]
        found = in_parts(terms, hidden, masked.sum(1), self.vocab_size, again=self.fused_loss)
        zeros = torch.zeros(xt.shape, dtype=torch.float64, device=xt.device)
        return tuple(zeros.masked_scatter(masked, part) for part in found)

    def reverse_step(self, logits: Tensor, args: SampleArgs, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """One step of `stepwise.py`, where every token has the same alpha_bar.

        Args:
            logits: [n, V], at masked positions.
            args: temperature, top-k, top-p.
            s, t: times, scalars.

        Returns:
            The probability to stay masked, float64 [n], and weights of what is revealed, [n, V].
        """
        stay = 1 - self.schedule.reveal_probability(s, t, torch.zeros_like(t, dtype=torch.float64))
        return stay.expand(len(logits)), filter_logits(logits + self.sampling_support, args).softmax(-1)
