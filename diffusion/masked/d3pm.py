"""D3PM with an absorbing state: discrete time, a prediction that may be [MASK], and a reconstruction term.

p_theta(x_s | x_t) averages Bayes' posterior over x0 drawn from the prediction. The prediction includes [MASK] with
probability m = pi([MASK]), which keeps a token masked. The reveal probability thus depends on m, and row clocks sample
it by thinning with maximum at m = 0. The loss is an unbiased estimator of the bound: one forward pass for the KL of one
step per sentence, and a second for the reconstruction term.
Source: Austin et al. 2021, "Structured Denoising Diffusion Models in Discrete State-Spaces", arXiv 2107.03006; the
absorbing closed form and the extra step from x_0 to text as in the released code of MDLM (arXiv 2406.07524).
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from data.batch import Batch
from diffusion.chunked_logits import in_chunks
from diffusion.draws import WHOLE, Share, filter_logits, stratified_timesteps
from diffusion.masked.noise_schedules import SCHEDULES, ContinuousSchedule
from diffusion.masked.prediction import Prediction
from diffusion.masked.process import MaskedProcess
from diffusion.options import ORDERED, SampleArgs
from diffusion.process import Denoiser, Loss, Vocabulary
from diffusion.process_options import D3pmArgs


class MaskThinning:
    """A `transitions.Thinning` whose mark is m = pi([MASK]): a token that is predicted to be [MASK] stays masked."""

    fastest_mark, statistic = 0.0, None

    def __init__(self, schedule: ContinuousSchedule, barred: Tensor, mask_id: int) -> None:
        """Take the schedule and the tokens that are never predicted, int64 [n]."""
        self.schedule, self.barred, self.mask_id = schedule, barred, mask_id

    def mark(self, logits: Tensor, token: Tensor, mean: None) -> Tensor:
        """Return m, float64 [n]. It depends neither on the drawn token nor on temperature, top-k and top-p."""
        barred = self.barred.to(logits.device)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).index_fill(1, barred, -math.inf)
        return logits.double().softmax(-1)[:, self.mask_id]

    def reveal_probability(self, s: Tensor, t: Tensor, mark: Tensor) -> Tensor:
        """Return (1 - m) (a(s) - a(t)) / (1 - a(t) + m a(t)), with a = alpha_bar; for m = 0 it is Bayes' posterior."""
        none = torch.zeros_like(mark)
        at_s, at_t = self.schedule.alpha_bar(s, none), self.schedule.alpha_bar(t, none)
        return (1 - mark) * (at_s - at_t) / (1 - at_t + mark * at_t).clamp(min=1e-300)


class D3pmDiffusion(MaskedProcess):
    """The process, with t a multiple of 1/T, float64."""

    samplers = ("row-clocks", "ancestral", "cached", "confidence", ORDERED)
    limit_samplers = ()
    estimators = ("windows", "stratified")
    limit_estimators = ()
    leftover_masks = True

    def __init__(self, args: D3pmArgs, vocabulary: Vocabulary, *, fused_loss: bool = False) -> None:
        """Make the noise schedule that the settings name."""
        self.args = args
        schedule = ContinuousSchedule(SCHEDULES[args.noise], args.num_steps)
        super().__init__(schedule, vocabulary, fused_loss=fused_loss)
        if not args.subs_masking:
            self.barred = self.barred[self.barred != vocabulary.mask_id]
        self.thinning = MaskThinning(schedule, self.barred, vocabulary.mask_id)

    # ---- the bound's terms -----------------------------------------------------------------------------------------

    def divergence(self, prediction: Prediction, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return KL(q(x_s | x_t, x0) || p_theta(x_s | x_t)) and -log pi(x0) of each masked target, float64 [n], nats.

        With m = pi([MASK]), a = alpha_bar and u the posterior of x0,
        KL = u (-log pi(x0)) + log(1 + m a(t) / (1 - a(t))) - (1 - u) log(1 + m a(s) / (1 - a(s))).
        """
        at_s, at_t = (self.schedule.alpha_bar(time, torch.zeros_like(time))[prediction.row] for time in (s, t))
        u = (at_s - at_t) / (1 - at_t)
        log_total = prediction.logits.logsumexp(-1)
        cross_entropy = (log_total - prediction.logits.gather(-1, prediction.x0[:, None]).squeeze(-1)).double()
        mask = (prediction.logits[:, self.mask_id] - log_total).double().exp()
        stays = (1 - u) * torch.log1p(mask * at_s / (1 - at_s).clamp(min=1e-12))  # 1 - u is 0 where a(s) is 1
        return u * cross_entropy + torch.log1p(mask * at_t / (1 - at_t)) - stays, cross_entropy

    def token_terms(
        self, denoiser: Denoiser, batch: Batch, xt: Tensor, s: Tensor, t: Tensor, *, with_kl: bool = True
    ) -> tuple[Tensor, Tensor]:
        """See MaskedTransitions. The step that ends at s = 0 includes the reconstruction term."""
        kl, cross_entropy = super().token_terms(denoiser, batch, xt, s, t, with_kl=with_kl)
        last = s == 0
        if with_kl and last.any():
            kl = kl.index_add(0, last.nonzero()[:, 0], self.reconstruction(denoiser, batch.rows(last)))
        return kl, cross_entropy

    def reconstruction(self, denoiser: Denoiser, batch: Batch) -> Tensor:
        """Return the reconstruction term, -log p(x0 | x_0 = x0) of every target, float64 [B, L]; one forward pass."""
        targets, x0 = batch.target_mask, batch.input_ids
        hidden = denoiser.encode(x0, self.time_input(torch.zeros(len(x0), device=x0.device)), batch.attention_mask)

        def terms(part: Tensor, rows: slice) -> tuple[Tensor]:
            logits = self.within_support(denoiser.decode(part))
            return (F.cross_entropy(logits, x0[rows][targets[rows]], reduction="none").double(),)

        (nats,) = in_chunks(terms, hidden[targets], targets.sum(1), self.vocab_size, recompute=self.fused_loss)
        return torch.zeros(x0.shape, dtype=torch.float64, device=x0.device).masked_scatter(targets, nats)

    def loss(
        self, denoiser: Denoiser, batch: Batch, *, generator: Generator | None = None, share: Share = WHOLE
    ) -> Loss:
        """Estimate the bound over all T steps, without bias, from one t per sentence and the reconstruction term."""
        steps = stratified_timesteps(len(batch.input_ids), self.num_steps, generator, share).to(batch.input_ids.device)
        t, s = steps.double() / self.num_steps, (steps - 1).double() / self.num_steps
        xt = self.corrupt(batch.input_ids, t, batch.noised, generator=generator)
        kl, cross_entropy = super().token_terms(denoiser, batch, xt, s, t)
        of_step = share.density.step_weight(steps, self.num_steps)[:, None]
        total, weight = self.num_steps * (of_step * kl).sum(), self.args.reconstruction_weight
        if weight:  # one more forward pass
            total = total + weight * self.reconstruction(denoiser, batch).sum()
        plain = cross_entropy.detach().sum() / self.schedule.noise.mean_mask_rate(share.density)
        return Loss(total, batch.target_mask.sum(), {"cross_entropy": plain})

    # ---- sampling --------------------------------------------------------------------------------------------------

    def reverse_step(self, logits: Tensor, args: SampleArgs, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """See MaskedTransitions. A token stays masked with probability (1 - a(s) + m a(s)) / (1 - a(t) + m a(t))."""
        weights = filter_logits(logits + self.sampling_support, args).softmax(-1)
        return 1 - self.thinning.reveal_probability(s, t, self.thinning.mark(logits, None, None)), weights
