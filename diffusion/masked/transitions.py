"""Masked (absorbing-state) diffusion over one step: corruption, posterior, prediction, and the bound's terms.

    q(x_t = x0 | x0) = alpha_bar(t),  else x_t = [MASK]                              corrupt
    q(x_s = x0 | x_t = [MASK], x0) = u = (alpha_bar(s) - alpha_bar(t)) / (1 - alpha_bar(t))     posterior, s < t
    KL(q(x_s | x_t, x0) || p_theta(x_s | x_t)) = -u log pi(x0)                       divergence, pi = p_theta(x0 | x_t)

The process takes its schedule (alpha_bar) as an object. Times t and s are in the units of the schedule, and
`Schedule.windows` returns the pairs that lead from all [MASK] to clean text. Visible tokens keep their values, and
their KL is 0. Bound and samplers (bound.py, row_clocks.py, stepwise.py) use these terms alone.
Source: D3PM (Austin et al. 2021, arXiv 2107.03006), the absorbing state.
"""

from typing import Protocol

import torch
from torch import Tensor

from data.batch import Batch
from diffusion.chunked_logits import in_chunks
from diffusion.draws import Generators, filter_logits, uniform
from diffusion.masked.prediction import Prediction
from diffusion.options import SampleArgs
from diffusion.process import Denoiser, Process, Vocabulary, encode_at


class Schedule(Protocol):
    """Noise schedule. h is the informativeness of a token in its sentence, 0 for an average token."""

    num_steps: float
    """T; infinite in continuous time."""
    token_dependent: bool
    """True if alpha_bar depends on the token; otherwise every h is 0."""

    def windows(self, num_steps: int) -> Tensor:
        """Return the reverse steps (t, s), s < t, from all [MASK] to clean, [num_steps, 2].

        Raises:
            UserError: if num_steps exceeds the steps of the schedule.
        """
        ...

    def informativeness(self, x0: Tensor, target_mask: Tensor) -> Tensor:
        """Return h of every token, float64 [B, L], for x0 int64 [B, L]; the sentence is its target tokens."""
        ...

    def alpha_bar(self, t: Tensor, h: Tensor) -> Tensor:
        """Return the probability that a token is unmasked at t, float64; t and h are broadcast."""
        ...

    def token_alpha_bar(self, t: Tensor, x0: Tensor, target_mask: Tensor) -> Tensor:
        """Return alpha_bar at t [B] of every token x0 in its sentence, float64 [B, L]."""
        ...

    def reveal_probability(self, s: Tensor, t: Tensor, h: Tensor) -> Tensor:
        """Return the posterior u = (alpha_bar(s) - alpha_bar(t)) / (1 - alpha_bar(t)), float64."""
        ...

    def time_at(self, level: Tensor) -> Tensor:
        """Return the t at which alpha_bar of an average token is `level`, in [0, 1]."""
        ...

    def time_input(self, t: Tensor) -> Tensor:
        """Return the time input of the network at t."""
        ...

    def to(self, device: torch.device) -> "Schedule":
        """Move the tables; return self."""
        ...


class Thinning(Protocol):
    """Thinning, for reveal probabilities that depend on the prediction (Lewis and Shedler 1979).

    Besides time, the reveal probability depends on the mark of a token: its h under a spindle, pi([MASK]) in D3PM.
    Row clocks propose reveals at the maximum rate over all marks. The acceptance probability is the ratio of the rates.
    """

    fastest_mark: float
    """The mark with the maximum hazard."""
    statistic: Tensor | None
    """[V], the statistic whose sentence mean the marks depend on; None if they depend on none."""

    def mark(self, logits: Tensor, token: Tensor, mean: Tensor | None) -> Tensor:
        """Return the marks of tokens [n] drawn from logits [n, V], given the sentence means [n], float64 [n]."""
        ...

    def sentence_mean(self, expected: Tensor, xt: Tensor, masked: Tensor, target_mask: Tensor) -> Tensor:
        """Return the sentence mean of the statistic, float64 [B], given `expected` [n] at the masked positions."""
        ...

    def reveal_probability(self, s: Tensor, t: Tensor, mark: Tensor) -> Tensor:
        """Return the probability that a token masked at t is revealed by s, float64."""
        ...

    def hazard(self, level: Tensor, mark: Tensor) -> Tensor:
        """Return the reveal rate per unit of the average token's alpha_bar, where that alpha_bar is `level`."""
        ...

    def alpha_bar(self, level: Tensor, mark: Tensor) -> Tensor:
        """Return alpha_bar of a token where that of the average token is `level`."""
        ...


class MaskedTransitions(Process):
    """Transitions of a masked process with a Bayes posterior, over one step."""

    leftover_masks = False
    """True if tokens may be masked after the last window; they are then drawn from p(x0 | xt)."""

    def __init__(
        self,
        schedule: Schedule,
        vocabulary: Vocabulary,
        *,
        thinning: Thinning | None = None,
        fused_loss: bool = False,
    ) -> None:
        """Take the parts of a process.

        Args:
            schedule: the noise schedule.
            vocabulary: see `Process`.
            thinning: for reveal probabilities that depend on the prediction; None if they do not.
            fused_loss: see `Process`.
        """
        super().__init__(vocabulary, fused_loss=fused_loss)
        self.schedule, self.thinning, self.num_steps = schedule, thinning, schedule.num_steps

    @property
    def token_dependent(self) -> bool:
        """True if alpha_bar depends on the token."""
        return self.schedule.token_dependent

    def to(self, device: torch.device) -> "MaskedTransitions":
        """Move tables and schedule; return self."""
        self.schedule.to(device)
        return super().to(device)

    # ---- q: corrupt and posterior --------------------------------------------------------------------------------

    def alpha_bar(self, t: Tensor, x0: Tensor, target_mask: Tensor) -> Tensor:
        """Return the probability that each token is unmasked at t, float64 [B, L]: 1 at time 0, 0 at the end.

        Args:
            t: [B], times.
            x0: int64 [B, L], clean tokens.
            target_mask: bool [B, L], the tokens that make up the sentence.
        """
        return self.schedule.token_alpha_bar(t, x0, target_mask)

    def corrupt(self, x0: Tensor, t: Tensor, target_mask: Tensor, *, generator: Generators = None) -> Tensor:
        """Draw x_t ~ q(x_t | x0), int64 [B, L]: each target token is masked with probability 1 - alpha_bar(t)."""
        # False at positions that are not targets
        masked = uniform(target_mask, generator) < 1 - self.alpha_bar(t, x0, target_mask)
        return x0.masked_fill(masked, self.mask_id)

    def posterior(self, x0: Tensor, s: Tensor, t: Tensor, target_mask: Tensor) -> Tensor:
        """Return q(x_s = x0 | x_t = [MASK], x0), float64 [B, L].

        Args:
            x0: int64 [B, L], clean tokens.
            s, t: [B], s < t.
            target_mask: bool [B, L].
        """
        h = self.schedule.informativeness(x0, target_mask)
        return self.schedule.reveal_probability(s[:, None], t[:, None], h)

    # ---- p_theta: prediction and cost ----------------------------------------------------------------------------

    def predict(self, denoiser: Denoiser, batch: Batch, xt: Tensor, t: Tensor) -> Prediction:
        """Predict the masked targets; the vocabulary head runs at these positions only."""
        masked = xt.eq(self.mask_id) & batch.target_mask
        hidden = encode_at(denoiser, xt, self.time_input(t), batch.attention_mask, masked)[masked]
        return Prediction(batch, xt, masked, denoiser.decode(hidden), self.barred)

    def time_input(self, t: Tensor) -> Tensor:
        """Return the time input of the network at t."""
        return self.schedule.time_input(t)

    def nats(self, prediction: Prediction) -> Tensor:
        """Return the cross-entropy of each masked target, -log pi(x0), float64 [n]; the KL of a step is u times it."""
        return prediction.cross_entropy

    def divergence(self, prediction: Prediction, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return KL(q(x_s | x_t, x0) || p_theta(x_s | x_t)) and -log pi(x0) of each masked target, float64 [n], nats.

        Args:
            prediction: p(x0 | x_t).
            s, t: [B], s < t.
        """
        batch = prediction.batch
        u = self.posterior(batch.input_ids, s, t, batch.target_mask)[prediction.masked]
        nats = self.nats(prediction)
        return u * nats, nats

    def timing(self, prediction: Prediction, s: Tensor, t: Tensor) -> Tensor:
        """Return the KL of the reveal time in some windows: KL - u times cross-entropy; 0 without a spindle.

        Args:
            prediction: p(x0 | x_t).
            s, t: [B, W], windows of each sentence.

        Returns:
            float64 [n, W].
        """
        return torch.zeros(len(prediction.x0), s.shape[1], dtype=torch.float64, device=s.device)

    def token_terms(
        self, denoiser: Denoiser, batch: Batch, xt: Tensor, s: Tensor, t: Tensor, *, with_kl: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return `divergence` of every token, each float64 [B, L], 0 at visible ones; no KL if not `with_kl`."""
        masked = xt.eq(self.mask_id) & batch.target_mask

        def terms(hidden: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
            own = batch if rows == slice(None) else batch.rows(rows)
            prediction = Prediction(own, xt[rows], masked[rows], denoiser.decode(hidden), self.barred)
            if with_kl:
                return self.divergence(prediction, s[rows], t[rows])
            nats = self.nats(prediction)
            return torch.zeros_like(nats), nats

        hidden = encode_at(denoiser, xt, self.time_input(t), batch.attention_mask, masked)[masked]
        found = in_chunks(terms, hidden, masked.sum(1), self.vocab_size, recompute=self.fused_loss)
        zeros = torch.zeros(xt.shape, dtype=torch.float64, device=xt.device)
        return tuple(zeros.masked_scatter(masked, part) for part in found)

    def reverse_step(self, logits: Tensor, args: SampleArgs, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distribution of one step of `stepwise.py`, for one alpha_bar of all tokens.

        Args:
            logits: [n, V], at masked positions.
            args: temperature, top-k, top-p.
            s, t: times, scalars.

        Returns:
            The probability of staying masked, float64 [n], and the weights of the revealed token, [n, V].
        """
        stay = 1 - self.schedule.reveal_probability(s, t, torch.zeros_like(t, dtype=torch.float64))
        return stay.expand(len(logits)), filter_logits(logits + self.sampling_support, args).softmax(-1)
