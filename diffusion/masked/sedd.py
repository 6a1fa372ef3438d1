"""SEDD with an absorbing state: the network predicts ratios of probabilities, which need not sum to one.

At a masked position the score of token v is s(v) = r q(v). Here r = 1 / (exp(sigma) - 1) is the sum of the true scores,
and q(v) = exp(logit(v)) / (V - 1) is the network's estimate. Score entropy is the divergence for unnormalised q. If q
sums to one it is MDLM's cross-entropy; for any q its integral over sigma bounds -log p(x0). The loss is an unbiased
estimator of this bound, with one forward pass at one time per sentence.
Source: Lou et al. 2023, "Discrete Diffusion Modeling by Estimating the Ratios of the Data Distribution", arXiv
2310.16834; parameterisation as in the released code of MDLM (arXiv 2406.07524).
"""

import math

import torch
from torch import Generator, Tensor

from data.batch import Batch
from diffusion.draws import WHOLE, Generators, Share, filter_logits, stratified_times
from diffusion.masked.noise_schedules import SCHEDULES, ContinuousSchedule
from diffusion.masked.prediction import Prediction
from diffusion.masked.process import MaskedProcess
from diffusion.options import EXACT, ORDERED, BoundArgs, SampleArgs
from diffusion.process import Bound, Denoiser, Loss, Vocabulary
from diffusion.process_options import SeddArgs
from utils.errors import UserError


class SeddDiffusion(MaskedProcess):
    """The process, in continuous time: t in [0, 1], float64."""

    samplers = ("cached", "ancestral", "confidence", ORDERED)
    limit_samplers, estimators = (), ()
    starts_at_unigram = False  # as released, where the head starts at zero

    def __init__(self, args: SeddArgs, vocabulary: Vocabulary, *, fused_loss: bool = False) -> None:
        """Make the noise schedule that the settings name."""
        self.args = args
        super().__init__(ContinuousSchedule(SCHEDULES[args.noise]), vocabulary, fused_loss=fused_loss)

    # ---- the score, its entropy, and the loss ------------------------------------------------------------------------

    def log_ratios(self, logits: Tensor) -> Tensor:
        """Return log q(v), [n, V]: the log score minus log r; -inf for tokens that never occur in text."""
        return self.within_support(logits) - math.log(self.vocab_size - 1)

    def nats(self, prediction: Prediction) -> Tensor:
        """Return the score entropy per r d sigma, float64 [n]: sum_v q(v) - 1 - log q(x0), at least -log pi(x0)."""
        log_q = prediction.logits - math.log(self.vocab_size - 1)
        total = log_q.logsumexp(-1).double().exp()
        return total - 1 - log_q.gather(-1, prediction.x0[:, None]).squeeze(-1).double()

    def loss(
        self, denoiser: Denoiser, batch: Batch, *, generator: Generator | None = None, share: Share = WHOLE
    ) -> Loss:
        """Sum the score entropies at one t per sentence, with weight r d sigma/dt, which is 1/t for loglinear."""
        u = stratified_times(len(batch.input_ids), generator, share).to(batch.input_ids.device)
        t = (1 - self.args.sampling_eps) * u + self.args.sampling_eps
        xt = self.corrupt(batch.input_ids, t, batch.noised, generator=generator)
        entropy = self.token_terms(denoiser, batch, xt, t, t, with_kl=False)[1].sum(1)
        total = (share.density.weight(u) * self.schedule.noise.closed_weight(t) * entropy).sum()
        return Loss(total, batch.target_mask.sum(), {"score_entropy": entropy.detach().sum()})

    def _bound(
        self, denoiser: Denoiser, batch: Batch, num_steps: float, args: BoundArgs, generator: Generators
    ) -> Bound:
        """Estimate the bound in continuous time; scores need not be probabilities, so finite steps have no bound."""
        if math.isfinite(num_steps) and args.estimator != EXACT:
            raise UserError(
                f"num_steps={num_steps:g}: the bound of process=sedd is in continuous time; leave num_steps out"
            )
        return super()._bound(denoiser, batch, num_steps, args, generator)

    # ---- sampling --------------------------------------------------------------------------------------------------

    def reverse_step(self, logits: Tensor, args: SampleArgs, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Take the analytic (Tweedie) step: reveal v with probability u q(v), normalised if the sum exceeds one."""
        u = self.schedule.reveal_probability(s, t, torch.zeros_like(t)) if s < t else torch.ones_like(t)
        revealed = u * self.log_ratios(logits.clone()).logsumexp(-1).double().exp()
        stay = (1 - revealed).clamp(min=0)
        return stay, filter_logits(logits + self.sampling_support, args).softmax(-1)
