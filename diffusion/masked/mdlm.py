"""MDLM: masked diffusion in continuous time. Its bound is a weighted masked language modelling loss.

The loss draws one time t per sentence, masks tokens with probability 1 - alpha_bar(t), runs one forward pass, and
weights the cross-entropy of the masked tokens. Under the default weights it is an unbiased estimator of the bound.
Corruption, posterior, bound and samplers are in `diffusion/masked/process.py`; noise schedules are in
`diffusion/masked/noise_schedules.py`. The SUBS parameterisation has two rules, which hold for all masked processes
here: the prediction gives [MASK] probability 0 (optional in D3PM), and visible tokens keep their values.
Source: Sahoo et al. 2024, "Simple and Effective Masked Diffusion Language Models", arXiv 2406.07524; released code.
"""

import math

import torch
from torch import Generator, Tensor

from data.batch import Batch
from diffusion.draws import WHOLE, Share, stratified_times
from diffusion.masked.noise_schedules import SCHEDULES, ContinuousSchedule, log_mask_rates, log_uniform_time
from diffusion.masked.process import MaskedProcess
from diffusion.process import Denoiser, Loss, Vocabulary
from diffusion.process_options import MdlmArgs


class MdlmDiffusion(MaskedProcess):
    """The process, with t in [0, 1], float64. In discrete time, training uses multiples of 1/T."""

    def __init__(self, args: MdlmArgs, vocabulary: Vocabulary, *, fused_loss: bool = False) -> None:
        """Make the noise schedule that the settings name."""
        self.args = args
        steps = args.num_steps or math.inf
        schedule = ContinuousSchedule(SCHEDULES[args.noise], steps, log_rate_input=args.change_of_variables)
        super().__init__(schedule, vocabulary, fused_loss=fused_loss)

    # ---- loss ----------------------------------------------------------------------------------------------------

    def loss(
        self, denoiser: Denoiser, batch: Batch, *, generator: Generator | None = None, share: Share = WHOLE
    ) -> Loss:
        """Sum the weighted cross-entropies of the masked tokens at one t per sentence.

        elbo: the weight is rate / (exp(sigma) - 1), 1/t for loglinear. In discrete time it is T times the posterior u.
        uniform: the weight is one over the mean mask rate, so that a token weighs one in expectation.
        """
        u = stratified_times(len(batch.input_ids), generator, share).to(batch.input_ids.device)
        t = self.draw_time(u)
        xt = self.corrupt(batch.input_ids, t, batch.noised, generator=generator)
        cross_entropy = self.token_terms(denoiser, batch, xt, t, t, with_kl=False)[1]
        plain = cross_entropy.sum() / self.schedule.noise.mean_mask_rate(share.density)
        on_bound = self.args.loss_weighting == "elbo"
        weight = share.density.weight(u) * self.weight(t)
        total = (weight * cross_entropy.sum(1)).sum() if on_bound else plain
        return Loss(total, batch.target_mask.sum(), {"cross_entropy": plain.detach()})

    def draw_time(self, u: Tensor) -> Tensor:
        """Return the training times t, float64 [B], from u, uniform in [0, 1)."""
        t = (1 - self.args.sampling_eps) * u + self.args.sampling_eps
        if self.args.num_steps:
            return (t * self.args.num_steps).long().clamp(max=self.args.num_steps - 1).add(
                1
            ).double() / self.args.num_steps
        if self.args.importance_sampling or self.args.change_of_variables:
            return log_uniform_time(self.schedule.noise, t)
        return t

    def weight(self, t: Tensor) -> Tensor:
        """Return the weight of the cross-entropies at t, float64 [B]."""
        if self.args.num_steps:
            return self.args.num_steps * self.schedule.reveal_probability(
                t - 1 / self.args.num_steps, t, torch.zeros_like(t)
            )
        if self.args.importance_sampling or self.args.change_of_variables:
            low, high = log_mask_rates(self.schedule.noise)  # the released code has -low for (high - low), 0.014 % more
            alpha_bar, (first, _) = self.schedule.noise.alpha_bar(t), self.schedule.noise.ends
            return (high - low) * (1 - alpha_bar) / (first - alpha_bar)
        return self.schedule.noise.closed_weight(t)
