"""DiffusionBERT: absorbing-state text diffusion whose noise schedule depends on the informativeness of each token.

The forward process masks each token independently. A token is unmasked at step t with probability alpha_bar(t); x_0 is
clean text, and x_T is all [MASK]. The spindle schedule masks informative tokens earlier, so that the reverse process
reveals common tokens first. p_theta does not know the informativeness of a masked token: it averages the posterior over
the prediction p(x0 | x_t), given a sentence mean estimated from x_t. Sampling therefore thins proposals at the maximum
hazard. The loss is an unbiased estimator of the variational bound, with one forward pass at one t per sentence.

In reading order: schedule, informativeness, thinning, terms of the bound, loss. Code shared by all masked
processes (corrupt, posterior, bound, sample) is in `diffusion/masked/process.py` and `diffusion/masked/transitions.py`.
Source: He et al. 2023, "DiffusionBERT", arXiv 2211.15029, with its equation numbers; absorbing process: D3PM (Austin et
al. 2021, arXiv 2107.03006).
"""

import math

import torch
from torch import Generator, Tensor

from data.batch import Batch
from data.word_counts import information
from diffusion.draws import WHOLE, Share, stratified_timesteps
from diffusion.masked.prediction import Prediction
from diffusion.masked.process import MaskedProcess
from diffusion.options import ORDERED, step_windows
from diffusion.process import Denoiser, Loss, Vocabulary
from diffusion.process_options import WordFreqArgs

# ---- schedule (Eqs. 9-12) --------------------------------------------------------------------------------------------


def base_alpha_bar(schedule: str, num_steps: int) -> Tensor:
    """Return alpha_bar(0..T) of an average token, float64 [T + 1]: exactly 1 at t = 0 and 0 at t = T.

    mutual: 1 - t/T, so that step t-1 -> t masks with probability 1/(T-t+1). cosine, linear: as in D3PM and the released
    code.
    """
    t = torch.arange(num_steps + 1, dtype=torch.float64)
    if schedule == "mutual":
        alpha_bar = 1 - t / num_steps
    elif schedule == "cosine":
        alpha_bar = torch.cos((t / num_steps + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
    else:
        beta = 1e-3 + (1e-1 - 1e-3) * t[:-1] / num_steps
        alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - beta, 0)])
    alpha_bar[0], alpha_bar[-1] = 1, 0
    return alpha_bar


def log_frequency(token_counts: Tensor) -> Tensor:
    """Return f(w) = log(count + 1) / max log(count + 1), in [0, 1], float64 [V], as in the released code."""
    logs = torch.log(token_counts.double() + 1)
    return logs / logs.max().clamp(min=math.log(2))


def entropy_contrast(information: Tensor, mean: Tensor) -> Tensor:
    """Return h_i = 1 - mean_j H_j / H_i (Eq. 12)."""
    return 1 - mean / information


def frequency_contrast(frequency: Tensor, mean: Tensor) -> Tensor:
    """Return h_i = mean_j f_j - f_i, as in the released code."""
    return mean - frequency


def entropy_contrast_slope(information: Tensor) -> Tensor:
    """Return the derivative of `entropy_contrast` by the mean."""
    return -1 / information


SPINDLES = {
    "paper": (information, entropy_contrast, entropy_contrast_slope),
    "released": (log_frequency, frequency_contrast, torch.ones_like),
    "none": (information, entropy_contrast, entropy_contrast_slope),
}
"""Statistic of a token, its contrast with the mean of the sentence, and the derivative of the contrast by the mean."""


class SpindleSchedule:
    """A `transitions.Schedule` of t in 0..T whose alpha_bar depends on the informativeness h of a token."""

    def __init__(self, args: WordFreqArgs, token_counts: Tensor) -> None:
        """Make the tables.

        Args:
            args: T, base schedule, spindle and lambda.
            token_counts: [V], counts of each token in the training corpus.
        """
        self.num_steps = args.num_steps
        self.token_dependent = args.spindle != "none" and args.word_freq_lambda >= 1e-12
        self.amplitude = args.word_freq_lambda if self.token_dependent else 0.0
        self.largest_h = 0.999 / (self.amplitude * math.pi) if self.token_dependent else math.inf
        self.base = base_alpha_bar(args.schedule, args.num_steps)
        measure, self.contrast, self.contrast_slope = SPINDLES[args.spindle]
        self.statistic = measure(token_counts)
        self.distinct, self.place = self.statistic.unique(return_inverse=True)
        """The distinct values of the statistic, [K] with K << V, and the place of each token among them, [V]."""

    def to(self, device: torch.device) -> "SpindleSchedule":
        """Move the tables; return self."""
        self.base, self.statistic = self.base.to(device), self.statistic.to(device)
        self.distinct, self.place = self.distinct.to(device), self.place.to(device)
        return self

    def windows(self, num_steps: int) -> Tensor:
        """See Schedule; int64 [n, 2], windows of equal length up to rounding to whole steps."""
        return torch.tensor(step_windows(self.num_steps, num_steps), device=self.base.device)

    def time_at(self, level: Tensor) -> Tensor:
        """Return the step t in 1..T in which the base schedule falls to `level`."""
        rising = self.base.flip(0).contiguous()
        return self.num_steps + 1 - torch.searchsorted(rising, level, right=True)

    def time_input(self, t: Tensor) -> Tensor:
        """Return the step t itself; see Schedule."""
        return t

    # ---- informativeness (Eq. 12) --------------------------------------------------------------------------------

    def sentence_mean(self, x0: Tensor, target_mask: Tensor) -> Tensor:
        """Return the mean of the statistic over the target tokens of each sentence, float64 [B]."""
        total = torch.where(target_mask, self.statistic[x0], 0.0).sum(1)
        return total / target_mask.sum(1).clamp(min=1)

    def informativeness_of(self, statistic: Tensor, mean: Tensor) -> Tensor:
        """Return h, positive for tokens more informative than their sentence, which are masked earlier.

        h is clamped to just inside |h| <= 1 / (lambda pi), where alpha_bar decreases strictly for every token. Beyond
        this bound alpha_bar would rise with t, and the process would not be absorbing. At lambda 0.3 the clamp changes
        about one token in eight of LM1B, all of them common (evaluation/spindle_report.py).
        """
        return self.contrast(statistic, mean).clamp(-self.largest_h, self.largest_h)

    def informativeness(self, x0: Tensor, target_mask: Tensor) -> Tensor:
        """See Schedule."""
        return self.informativeness_of(self.statistic[x0], self.sentence_mean(x0, target_mask)[:, None])

    def clamped(self, x0: Tensor, target_mask: Tensor) -> Tensor:
        """Return the targets whose h the clamp changes, so that Eq. 12 does not hold for them, bool [B, L]."""
        if not self.token_dependent:
            return torch.zeros_like(target_mask)
        h = self.contrast(self.statistic[x0], self.sentence_mean(x0, target_mask)[:, None])
        return target_mask & (h.abs() > self.largest_h)

    # ---- alpha_bar, reveal probability and hazard (Eqs. 10, 11) --------------------------------------------------

    def alpha_bar(self, t: Tensor, h: Tensor) -> Tensor:
        """Return alpha_bar of a token at step t.

        Args:
            t: int64, broadcastable to h.
            h: informativeness.
        """
        return self.alpha_bar_at(self.base[t], h)

    def token_alpha_bar(self, t: Tensor, x0: Tensor, target_mask: Tensor) -> Tensor:
        """See Schedule."""
        return self.alpha_bar(t[:, None], self.informativeness(x0, target_mask))

    def alpha_bar_at(self, level: Tensor, h: Tensor) -> Tensor:
        """Return alpha_bar = a - lambda sin(pi a) h where the base schedule a equals `level`, in [0, 1] (Eqs. 10, 11).

        The paper writes sin(pi t/T), which is equal for its schedule a = 1 - t/T. In terms of a, the bound on h is the
        same for every base schedule. Eq. 9 (the mean of alpha_bar over a sentence, weighted by H, is a) then holds for
        every base schedule too, provided the clamp changes no h of the sentence.
        """
        return level - self.amplitude * torch.sin(math.pi * level) * h

    def reveal_probability(self, s: Tensor, t: Tensor, h: Tensor) -> Tensor:
        """See Schedule."""
        at_t = self.alpha_bar(t, h)
        return (self.alpha_bar(s, h) - at_t) / (1 - at_t)

    def hazard(self, level: Tensor, h: Tensor) -> Tensor:
        """Return the reveal rate per unit of `level`: (d alpha_bar / d level) / (1 - alpha_bar)."""
        slope = 1 - self.amplitude * math.pi * torch.cos(math.pi * level) * h
        return slope / (1 - self.alpha_bar_at(level, h))

    # ---- estimates from x_t, for p_theta -------------------------------------------------------------------------

    def estimated_mean(self, expected: Tensor, xt: Tensor, masked: Tensor, target_mask: Tensor) -> Tensor:
        """Return the sentence mean estimated from x_t: visible targets count exactly, masked ones by expectation.

        Args:
            expected: [n], expectation of the statistic under p(x0 | xt) at the n masked positions, in row-major order.
            xt, masked, target_mask: [B, L].

        Returns:
            float64 [B].
        """
        visible = torch.where(target_mask & ~masked, self.statistic[xt], 0.0).sum(1)
        hidden = torch.zeros_like(visible).index_add(0, masked.nonzero()[:, 0], expected.double())
        return (visible + hidden) / target_mask.sum(1).clamp(min=1)

    def predicted_mean(self, prediction: Prediction) -> Tensor:
        """Return the estimated mean of each sentence of a prediction, float64 [B], detached."""
        expected = prediction.expectation(self.statistic)
        return self.estimated_mean(expected, prediction.xt, prediction.masked, prediction.batch.target_mask)

    def candidate_reveal(self, mean: Tensor, targets: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return each candidate's posterior u^(k) under the estimated mean, and its derivative.

        With n targets, d u / d E = (d u / d h) (d h / d mean) / n. Since d alpha_bar / d h = -lambda sin(pi a),
        d u / d h = lambda ((1 - u) sin(pi a(t)) - sin(pi a(s))) / (1 - alpha_bar(t)).

        Args:
            mean: float64 [B], see `predicted_mean`.
            targets: bool [B, L], target tokens.
            s, t: int64 [B].

        Returns:
            u^(k) and d u^(k) / d E, each float64 [B, V], with E the expectation of the statistic at one masked
            position. Both are detached: `Prediction.spindle_terms` carries the gradient.
        """
        s, t, mean = s[:, None], t[:, None], mean.detach()[:, None]
        h = self.informativeness_of(self.distinct, mean)
        u = self.reveal_probability(s, t, h)
        at_s, at_t = (self.amplitude * torch.sin(math.pi * self.base[step]) for step in (s, t))
        u_by_h = ((1 - u) * at_t - at_s) / (1 - self.alpha_bar(t, h))
        clamped = self.contrast(self.distinct, mean).abs() > self.largest_h
        h_by_mean = torch.where(clamped, 0.0, self.contrast_slope(self.distinct))
        slope = u_by_h * h_by_mean / targets.sum(1, keepdim=True).clamp(min=1)
        return u[:, self.place], slope[:, self.place]


class SpindleThinning:
    """A `transitions.Thinning` whose mark is h: informative tokens have a smaller hazard."""

    def __init__(self, schedule: SpindleSchedule) -> None:
        """Take the schedule."""
        self.schedule, self.fastest_mark = schedule, -schedule.largest_h
        self.hazard, self.alpha_bar = schedule.hazard, schedule.alpha_bar_at
        self.reveal_probability, self.sentence_mean = schedule.reveal_probability, schedule.estimated_mean

    @property
    def statistic(self) -> Tensor:
        """See Thinning."""
        return self.schedule.statistic

    def mark(self, logits: Tensor, token: Tensor, mean: Tensor) -> Tensor:
        """See Thinning."""
        return self.schedule.informativeness_of(self.statistic[token], mean)


class WordFreqDiffusion(MaskedProcess):
    """The exact process: a Bayes posterior, and a p_theta that depends on x_t only."""

    schedule: SpindleSchedule

    def __init__(
        self, args: WordFreqArgs, token_counts: Tensor, vocabulary: Vocabulary, *, fused_loss: bool = False
    ) -> None:
        """Make the schedule.

        Args:
            args: the settings.
            token_counts: [V], counts of each token in the training corpus.
            vocabulary, fused_loss: see `Process`.
        """
        super().__init__(self.make_schedule(args, token_counts), vocabulary, fused_loss=fused_loss)
        self.args = args
        if self.schedule.token_dependent:
            self.thinning = SpindleThinning(self.schedule)
            self.samplers = ("row-clocks", "confidence", ORDERED)
            self.estimators, self.limit_estimators = ("windows", "stratified", "trajectory"), ()

    make_schedule = SpindleSchedule

    # ---- the bound's terms and the loss (Eq. 3) ------------------------------------------------------------------

    def divergence(self, prediction: Prediction, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return KL(q(x_s | x_t, x0) || p_theta(x_s | x_t)) and -log pi(x0) of each masked target, float64 [n], nats.

        With u the posterior of x0, pi the prediction and u^(k) the u of candidate k,
        KL = u log(u / (pi(x0) u^(x0))) + (1 - u) log((1 - u) / (1 - sum_k pi(k) u^(k))).
        Without spindle u^(k) = u and KL = -u log pi(x0). The KL of visible positions is 0.

        Args:
            prediction: p(x0 | x_t).
            s, t: int64 [B], 0 <= s < t <= T.
        """
        mean = self.schedule.predicted_mean(prediction) if self.schedule.token_dependent else None
        return self._terms(prediction, mean, s, t)[1:]

    def timing(self, prediction: Prediction, s: Tensor, t: Tensor) -> Tensor:
        """See MaskedTransitions."""
        mean = self.schedule.predicted_mean(prediction) if self.schedule.token_dependent else None
        windows = (self._terms(prediction, mean, *window) for window in zip(s.unbind(1), t.unbind(1), strict=True))
        return torch.stack([kl - u * cross_entropy for u, kl, cross_entropy in windows], 1)

    def _terms(
        self, prediction: Prediction, mean: Tensor | None, s: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, schedule = prediction.batch, self.schedule
        h = schedule.informativeness(batch.input_ids, batch.target_mask)
        u = schedule.reveal_probability(s[:, None], t[:, None], h)[prediction.masked]
        if not schedule.token_dependent:
            return u, u * prediction.cross_entropy, prediction.cross_entropy
        table, slope = schedule.candidate_reveal(mean, batch.target_mask, s, t)
        cross_entropy, revealed, own = prediction.spindle_terms(schedule.statistic, table, slope)
        log_stay = torch.log1p(-revealed.clamp(max=1 - 1e-12))  # keeps the log finite at s = 0, where 1 - u is 0
        kl = u * (cross_entropy + u.log() - own.log()) + torch.special.xlog1py(1 - u, -u) - (1 - u) * log_stay
        return u, kl, cross_entropy

    def loss(
        self, denoiser: Denoiser, batch: Batch, *, generator: Generator | None = None, share: Share = WHOLE
    ) -> Loss:
        """Estimate the bound over all T steps, without bias, or the unweighted cross-entropy, at one t per sentence.

        elbo: T times the KL of one step; its mean over t is the bound.
        uniform: cross-entropy of the masked tokens, divided by the mean mask rate of the base schedule. An average
        token then weighs one, as in the bound (sum_t (1 - alpha_bar) u = 1). Under a spindle, informative tokens are
        masked for longer and weigh somewhat more.
        hybrid_lambda: weight of the released code's auxiliary term, T times the cross-entropy of the masked tokens.
        """
        t = stratified_timesteps(len(batch.input_ids), self.num_steps, generator, share).to(batch.input_ids.device)
        xt = self.corrupt(batch.input_ids, t, batch.noised, generator=generator)
        on_bound = self.args.loss_weighting == "elbo"
        kl, cross_entropy = self.token_terms(denoiser, batch, xt, t - 1, t, with_kl=on_bound)
        weight = share.density.step_weight(t, self.num_steps)[:, None]
        mean_mask_rate = 1 - share.density.step_mean(self.schedule.base[1:])
        total = self.num_steps * (weight * kl).sum() if on_bound else cross_entropy.sum() / mean_mask_rate
        auxiliary = (weight * cross_entropy).sum() if on_bound else cross_entropy.sum()
        total = total + self.args.hybrid_lambda * self.num_steps * auxiliary
        return Loss(total, batch.target_mask.sum(), {"cross_entropy": cross_entropy.detach().sum() / mean_mask_rate})
