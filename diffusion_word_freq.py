"""DiffusionBERT: absorbing-state text diffusion whose noise follows how informative each token is.

The whole process on one page, in reading order: schedule, corrupt, posterior, loss, nll_bound, sample.
Source: He et al. 2023, "DiffusionBERT", arXiv 2211.15029 (equation numbers below are theirs); the absorbing process
is D3PM's (Austin et al. 2021). t runs over 0..T: x_0 is clean, x_T is all [MASK]. alpha_bar(t) is the probability
that a token is still itself at step t.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from estimators import estimate
from masked_prediction import Prediction, in_parts
from process import (
    EVERY_WINDOW,
    WHOLE,
    Batch,
    Bound,
    BoundArgs,
    Denoiser,
    Generators,
    Loss,
    Process,
    SampleArgs,
    Share,
    StepCallback,
    UserError,
    check_choices,
    step_windows,
    stratified_timesteps,
    uniform,
)
from row_clocks import RowClocks


@dataclass(frozen=True)
class WordFreqArgs:
    """Everything that defines the process; saved with the checkpoint, so that sampling and scoring agree with it."""

    num_steps: int = field(default=2048, metadata={"aliases": ["--diffusion_steps"], "help": "T, forward steps"})
    schedule: str = field(
        default="mutual",
        metadata={"aliases": ["--noise_schedule"], "choices": ["mutual", "cosine", "linear"], "help": "base schedule"},
    )
    spindle: str = field(
        default="paper",
        metadata={"choices": ["paper", "released", "none"], "help": "how informative a token is: Eq. 12, code, or not"},
    )
    word_freq_lambda: float = field(default=0.3, metadata={"help": "lambda of Eq. 11, amplitude of the spindle"})
    posterior: str = field(
        default="exact",
        metadata={"choices": ["exact", "released"], "help": "Bayes' posterior, or the released program's arithmetic"},
    )
    loss_weighting: str = field(
        default="elbo",
        metadata={"choices": ["elbo", "uniform"], "help": "train on the bound itself, or on unweighted cross-entropy"},
    )
    hybrid_lambda: float = field(
        default=0.0, metadata={"help": "weight of the auxiliary cross-entropy (released 0.01)"}
    )

    def __post_init__(self) -> None:
        check_choices(self)
        if not isinstance(self.num_steps, int) or not 1 <= self.num_steps <= 1_000_000:
            raise UserError(f"num_steps={self.num_steps} (T) must lie in 1..1000000")
        if self.schedule == "linear" and self.num_steps > 10_000:
            raise UserError(f"num_steps={self.num_steps}: beyond 10000 the linear schedule underflows; use mutual")
        if not 0 <= self.word_freq_lambda <= 10:
            raise UserError(f"word_freq_lambda={self.word_freq_lambda} must lie in [0, 10]; 0 switches the spindle off")
        if not 0 <= self.hybrid_lambda < math.inf:
            raise UserError(f"hybrid_lambda={self.hybrid_lambda} must be 0 or more")


# ---- schedule (Eqs. 9-12) --------------------------------------------------------------------------------------------


def base_alpha_bar(schedule: str, num_steps: int) -> Tensor:
    """alpha_bar(0..T) of a token of average information, float64 [T + 1]: exactly 1 at t = 0 and 0 at t = T.

    mutual: 1 - t/T (beta of the transition t-1 -> t is 1/(T-t+1)); cosine and linear: D3PM's, as in the released code.
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


def entropy(token_counts: Tensor) -> Tensor:
    """H(w) = -log p(w), nats, float64 [V]; p is the corpus frequency with one added to every count (p > 0)."""
    counts = token_counts.double()
    return math.log(counts.sum().item() + len(counts)) - torch.log(counts + 1)


def log_frequency(token_counts: Tensor) -> Tensor:
    """f(w) = log(count + 1) / max log(count + 1), in [0, 1], float64 [V]: the released code's measure."""
    logs = torch.log(token_counts.double() + 1)
    return logs / logs.max().clamp(min=math.log(2))


def entropy_contrast(information: Tensor, mean: Tensor) -> Tensor:
    """Eq. 12: h_i = 1 - mean_j H_j / H_i."""
    return 1 - mean / information


def frequency_contrast(frequency: Tensor, mean: Tensor) -> Tensor:
    """The released code's: h_i = mean_j f_j - f_i."""
    return mean - frequency


SPINDLES = {
    "paper": (entropy, entropy_contrast),
    "released": (log_frequency, frequency_contrast),
    "none": (entropy, entropy_contrast),
}
"""What is measured of a token, and how it is set against its sentence."""


class WordFreqDiffusion(Process):
    """The exact process: a Bayes posterior, and a p_theta that sees x_t only. Satisfies `process.Process`."""

    exact = True
    """Whether u is Bayes' and h is bounded, on which row clocks and some estimators rest."""

    def __init__(
        self,
        args: WordFreqArgs,
        token_counts: Tensor,
        *,
        mask_id: int,
        excluded_ids: tuple[int, ...] = (),
        unsampled_ids: tuple[int, ...] = (),
    ) -> None:
        """Prepare the schedule.

        Args:
            args: the settings.
            token_counts: [V], how often each token occurs in the training corpus.
            mask_id: the absorbing state.
            excluded_ids: tokens that cannot be a clean target; p_theta gives them, and [MASK], probability 0.
            unsampled_ids: tokens that may be scored but are never drawn ([UNK]).
        """
        self.args = args
        self.mask_id = mask_id
        self.num_steps = args.num_steps
        self.flat = args.spindle == "none" or args.word_freq_lambda < 1e-12
        self.amplitude = 0.0 if self.flat else args.word_freq_lambda
        self.largest_h = math.inf if self.flat else 0.999 / (self.amplitude * math.pi)
        self.boldest = 0.0 if self.flat else -self.largest_h
        self.base = base_alpha_bar(args.schedule, args.num_steps)
        measure, self.contrast = SPINDLES[args.spindle]
        self.statistic = measure(token_counts)
        self.barred = torch.tensor([mask_id, *excluded_ids])
        self.sampling_support = self.support.clone()
        self.sampling_support[list(unsampled_ids)] = -math.inf

    @property
    def support(self) -> Tensor:
        """[V], 0 for what may be predicted, -inf for what may not; added to logits it does what `predict` does."""
        zeros = torch.zeros(len(self.statistic), device=self.barred.device)
        return zeros.index_fill(0, self.barred, -math.inf)

    def to(self, device: torch.device) -> "WordFreqDiffusion":
        """Move the tables; returns self."""
        for name in ("base", "statistic", "barred", "sampling_support"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def sentence_mean(self, x0: Tensor, target_mask: Tensor) -> Tensor:
        """Mean of the statistic over the target tokens of each sentence, float64 [B]."""
        total = torch.where(target_mask, self.statistic[x0], 0.0).sum(1)
        return total / target_mask.sum(1).clamp(min=1)

    def informativeness(self, statistic: Tensor, mean: Tensor) -> Tensor:
        """h: above 0 for tokens more informative than their sentence, which are masked earlier and recovered later.

        Held just inside |h| <= 1 / (lambda pi), where alpha_bar is strictly decreasing for every token; beyond that
        bound a masked token would have to come back, and the process would not be absorbing.
        """
        return self.contrast(statistic, mean).clamp(-self.largest_h, self.largest_h)

    def informativeness_of(self, x0: Tensor, target_mask: Tensor) -> Tensor:
        """H of every token of its own sentence, float64 [B, L]."""
        return self.informativeness(self.statistic[x0], self.sentence_mean(x0, target_mask)[:, None])

    def keep_probability(self, t: Tensor, h: Tensor) -> Tensor:
        """alpha_bar = a - lambda sin(pi a) h, with a the base schedule at t (Eqs. 10, 11).

        The paper writes sin(pi t/T), the same thing for its schedule a = 1 - t/T; written in a, Eq. 9 and the bound on
        h hold for every base schedule.

        Args:
            t: int64, broadcastable to h.
            h: informativeness.
        """
        return self.keep_at(self.base[t], h)

    def keep_at(self, level: Tensor, h: Tensor) -> Tensor:
        """The same, where the base schedule is at `level`, in [0, 1]."""
        return level - self.amplitude * torch.sin(math.pi * level) * h

    def alpha_bar(self, t: Tensor, x0: Tensor, target_mask: Tensor) -> Tensor:
        """Probability that each token is still itself at step t, float64 [B, L]; 1 at t = 0 and 0 at t = T.

        Args:
            t: int64 [B], in 0..T.
            x0: int64 [B, L], clean tokens.
            target_mask: bool [B, L]; the sentence mean runs over these tokens only.
        """
        return self.keep_probability(t[:, None], self.informativeness_of(x0, target_mask))

    # ---- corrupt (Eq. 7) and posterior (Eq. 5) -----------------------------------------------------------------------

    def corrupt(self, x0: Tensor, t: Tensor, target_mask: Tensor, *, generator: Generators = None) -> Tensor:
        """x_t ~ q(x_t | x0), int64 [B, L]: each target token is masked with probability 1 - alpha_bar(t)."""
        masked = uniform(target_mask, generator) < 1 - self.alpha_bar(t, x0, target_mask)  # never where not a target
        return x0.masked_fill(masked, self.mask_id)

    def reveal_probability(self, h: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """Bayes: a token masked at t is itself at s < t with u = (alpha_bar(s) - alpha_bar(t)) / (1 - alpha_bar(t))."""
        at_t = self.keep_probability(t, h)
        return (self.keep_probability(s, h) - at_t) / (1 - at_t)

    def reveal_rate(self, level: Tensor, h: Tensor) -> Tensor:
        """The limit of the reveal probability over the step, as s -> t: d alpha_bar / (1 - alpha_bar) by `level`."""
        slope = 1 - self.amplitude * math.pi * torch.cos(math.pi * level) * h
        return slope / (1 - self.keep_at(level, h))

    def posterior(self, x0: Tensor, s: Tensor, t: Tensor, target_mask: Tensor) -> Tensor:
        """q(x_s = x0 | x_t = [MASK], x0), float64 [B, L]; a masked token stays masked otherwise.

        Args:
            x0: int64 [B, L], clean tokens.
            s, t: int64 [B], 0 <= s < t <= T.
            target_mask: bool [B, L].
        """
        return self.reveal_probability(self.informativeness_of(x0, target_mask), s[:, None], t[:, None])

    # ---- the reverse process p_theta(x_s | x_t) ----------------------------------------------------------------------

    def estimated_mean(self, expected: Tensor, xt: Tensor, masked: Tensor, target_mask: Tensor) -> Tensor:
        """The sentence mean as p_theta can know it: visible targets as they are, masked ones by their expectation.

        Args:
            expected: [n], the statistic's mean under p(x0 | xt) at the n masked positions, row by row.
            xt, masked, target_mask: [B, L].

        Returns:
            float64 [B].
        """
        visible = torch.where(target_mask & ~masked, self.statistic[xt], 0.0).sum(1)
        hidden = torch.zeros_like(visible).index_add(0, masked.nonzero()[:, 0], expected.double())
        return (visible + hidden) / target_mask.sum(1).clamp(min=1)

    def candidate_reveal(self, prediction: Prediction, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Each candidate token's u under the estimated mean, and its slope by the expectation at a masked position.

        Returns:
            u^(k) and d u^(k) / d E, each float64 [B, V]; neither on a graph: `Prediction.spindle_terms` closes it.
        """
        targets = prediction.batch.target_mask
        mean = self.estimated_mean(prediction.expectation(self.statistic), prediction.xt, prediction.masked, targets)

        def table(mean: Tensor) -> Tensor:
            return self.reveal_probability(self.informativeness(self.statistic, mean[:, None]), s[:, None], t[:, None])

        return torch.func.jvp(table, (mean,), (1 / targets.sum(1).clamp(min=1).double(),))

    # ---- loss and nll_bound (Eq. 3) ----------------------------------------------------------------------------------

    def predict(self, denoiser: Denoiser, batch: Batch, xt: Tensor, t: Tensor) -> Prediction:
        """Log pi at masked targets: the head is run nowhere else, and visible positions reach no softmax."""
        masked = xt.eq(self.mask_id) & batch.target_mask
        hidden = denoiser.encode(xt, t, batch.attention_mask)[masked]
        return self.prediction(denoiser.decode(hidden), batch, xt, masked)

    def prediction(self, logits: Tensor, batch: Batch, xt: Tensor, masked: Tensor) -> Prediction:
        """The same from the logits at masked targets, [n, V]; they are changed."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return Prediction(batch, xt, masked, logits.index_fill_(1, self.barred, -math.inf))

    def divergence(self, prediction: Prediction, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """KL(q(x_s | x_t, x0) || p_theta(x_s | x_t)) and -log pi(x0) of every masked target, each float64 [n], nats.

        With u the posterior of x0, pi the prediction and u^(k) the u of candidate k,
        KL = u log(u / (pi(x0) u^(x0))) + (1 - u) log((1 - u) / (1 - sum_k pi(k) u^(k))).
        Without spindle u^(k) = u and KL = -u log pi(x0). Visible positions cost nothing.

        Args:
            prediction: what the network made of x_t.
            s, t: int64 [B], 0 <= s < t <= T.
        """
        batch = prediction.batch
        u = self.posterior(batch.input_ids, s, t, batch.target_mask)[prediction.masked]
        if self.flat:
            return u * prediction.cross_entropy, prediction.cross_entropy
        table, slope = self.candidate_reveal(prediction, s, t)
        cross_entropy, revealed, own = prediction.spindle_terms(self.statistic, table, slope)
        log_stay = torch.log1p(-revealed.clamp(max=1 - 1e-12))  # finite where s = 0; there 1 - u is 0
        kl = u * (cross_entropy + u.log() - own.log()) + torch.special.xlog1py(1 - u, -u) - (1 - u) * log_stay
        return kl, cross_entropy

    def token_terms(
        self, denoiser: Denoiser, batch: Batch, xt: Tensor, s: Tensor, t: Tensor, *, with_kl: bool = True
    ) -> tuple[Tensor, Tensor]:
        """`divergence` of every token, each float64 [B, L], nats; 0 at visible ones. Without KL the first is all 0."""
        masked = xt.eq(self.mask_id) & batch.target_mask

        def terms(hidden: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
            prediction = self.prediction(denoiser.decode(hidden), batch.rows(rows), xt[rows], masked[rows])
            if with_kl:
                return self.divergence(prediction, s[rows], t[rows])
            return torch.zeros_like(prediction.cross_entropy), prediction.cross_entropy

        hidden = denoiser.encode(xt, t, batch.attention_mask)[masked]
        found = in_parts(terms, hidden, masked.sum(1), len(self.statistic), again=self.fused_loss)
        zeros = torch.zeros(xt.shape, dtype=torch.float64, device=xt.device)
        return tuple(zeros.masked_scatter(masked, part) for part in found)

    def loss(
        self, denoiser: Denoiser, batch: Batch, *, generator: Generator | None = None, share: Share = WHOLE
    ) -> Loss:
        """An unbiased estimate of the bound over all T steps (one t per sentence), or its unweighted cousin.

        elbo: T * KL of one step; its mean over t is the bound. uniform: cross-entropy of the masked tokens over the
        base schedule's mean mask rate, so that a token of average information weighs one, as it does in the bound
        (sum_t (1 - alpha_bar) u = 1); under a spindle the informative ones, masked for longer, weigh somewhat more.
        hybrid_lambda adds that multiple of T * cross-entropy, the released code's auxiliary term at masked positions.
        """
        t = stratified_timesteps(len(batch.input_ids), self.num_steps, generator, share).to(batch.input_ids.device)
        xt = self.corrupt(batch.input_ids, t, batch.target_mask, generator=generator)
        on_bound = self.args.loss_weighting == "elbo"
        kl, cross_entropy = self.token_terms(denoiser, batch, xt, t - 1, t, with_kl=on_bound)
        mean_mask_rate = 1 - self.base[1:].mean()
        total = self.num_steps * kl.sum() if on_bound else cross_entropy.sum() / mean_mask_rate
        total = total + self.args.hybrid_lambda * self.num_steps * cross_entropy.sum()
        return Loss(total, batch.target_mask.sum(), {"cross_entropy": cross_entropy.detach().sum() / mean_mask_rate})

    def bound(
        self,
        denoiser: Denoiser,
        batch: Batch,
        num_steps: int,
        args: BoundArgs = EVERY_WINDOW,
        *,
        generator: Generators = None,
    ) -> Bound:
        """An unbiased estimate of the bound's terms at `num_steps` windows (t, s); `estimators.py` says how.

        The prior term, KL(q(x_T | x0) || all [MASK]), is exactly 0, since alpha_bar(T) = 0.
        """
        return estimate(self, denoiser, batch, num_steps, args, generator=generator)

    # ---- sample ------------------------------------------------------------------------------------------------------

    def check_sampling(self, args: SampleArgs) -> None:
        """Refuses settings that this process cannot be sampled with.

        Raises:
            UserError: with the bound.
        """
        if math.isfinite(args.num_steps):
            next(step_windows(self.num_steps, int(args.num_steps)))
        elif not self.exact:
            raise UserError("num_steps=inf needs the exact process; the released one takes 1 to T steps")

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

        Two decisions a step: whether a masked token is revealed, then as what. Temperature, top-k and top-p act on
        p(x0 | xt), never on the posterior, whose largest entry is [MASK]. Steps in which a row reveals nothing are
        passed over without a forward (`row_clocks.py`); the law is that of taking every one.

        Args:
            denoiser: the network.
            batch: N rows, those of like length side by side.
            args: steps, temperature, top-k, top-p.
            rows_at_once: rows in a forward; 0: all.
            generator: one stream for each row, or one for all.
            on_step: is told after each forward.
        """
        return RowClocks(self, denoiser, batch, args, generator).run(rows_at_once, on_step)
