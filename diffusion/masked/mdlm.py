"""MDLM: masked diffusion in continuous time, whose bound is a weighted masked-language-modelling loss.

In reading order: settings, schedule, loss. Corruption, posterior, bound and sampler are those of
every masked process (`diffusion/masked/process.py`), without spindle; schedules are in
`diffusion/masked/noise_schedules.py`. Source: Sahoo et al. 2024, "Simple and Effective Masked Diffusion Language
Models", arXiv 2406.07524, and its released code. SUBS there is two rules that hold for all processes here: the
network's [MASK] has probability 0, and visible tokens stay what they are.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from data.batch import Batch
from diffusion.draws import WHOLE, Share, stratified_uniform
from diffusion.masked.noise_schedules import SCHEDULES, ContinuousSchedule, log_mask_rates, log_uniform_time
from diffusion.masked.process import MaskedProcess
from diffusion.options import SigmaInputArgs
from diffusion.process import Denoiser, Loss, Vocabulary
from utils.errors import UserError, check_choices, check_ranges


@dataclass(frozen=True)
class MdlmArgs(SigmaInputArgs):
    """Everything that defines the process; saved with the checkpoint."""

    noise: str = field(default="loglinear", metadata={"choices": list(SCHEDULES), "help": "sigma(t)"})
    num_steps: int = field(default=0, metadata={"help": "T, for training in discrete time; 0: continuous time"})
    loss_weighting: str = field(
        default="elbo",
        metadata={
            "choices": ["elbo", "uniform"],
            "help": "training on the bound itself, or on unweighted cross-entropy",
        },
    )
    importance_sampling: bool = field(
        default=False, metadata={"help": "draw of t by which every cross-entropy has the same weight"}
    )
    change_of_variables: bool = field(
        default=False, metadata={"help": "importance sampling whose drawn number, not sigma, is the time input"}
    )
    sampling_eps: float = field(default=1e-3, metadata={"help": "the smallest t of the training"})

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, num_steps=(0, 10**6), sampling_eps=(1e-6, 0.5))
        if self.importance_sampling and self.change_of_variables:
            raise UserError("importance_sampling and change_of_variables are two ways to do the same; give one")
        if self.loss_weighting == "uniform" and (self.importance_sampling or self.change_of_variables):
            raise UserError("loss_weighting=uniform gives up the weights that importance_sampling evens out; give one")
        if self.num_steps and (self.importance_sampling or self.change_of_variables):
            raise UserError(f"num_steps={self.num_steps}: importance_sampling is for continuous time, num_steps 0")


class MdlmDiffusion(MaskedProcess):
    """Continuous time: t in [0, 1], float64; with args.num_steps the times of the training are multiples of 1/T."""

    def __init__(self, args: MdlmArgs, vocabulary: Vocabulary, *, fused_loss: bool = False) -> None:
        """Make the schedule that the settings describe."""
        self.args = args
        steps = args.num_steps or math.inf
        schedule = ContinuousSchedule(SCHEDULES[args.noise], steps, log_rate_input=args.change_of_variables)
        super().__init__(schedule, vocabulary, fused_loss=fused_loss)

    # ---- loss ----------------------------------------------------------------------------------------------------

    def loss(
        self, denoiser: Denoiser, batch: Batch, *, generator: Generator | None = None, share: Share = WHOLE
    ) -> Loss:
        """Sum cross-entropies of the masked tokens at one t per sentence.

        uniform: every token counts the same.
        elbo: rate / (exp(sigma) - 1), which for loglinear is 1/t; in discrete time T u, which is the same there.
        """
        u = stratified_uniform(len(batch.input_ids), generator, share).to(batch.input_ids.device)
        t = self.draw_time(u)
        xt = self.corrupt(batch.input_ids, t, batch.noised, generator=generator)
        cross_entropy = self.token_terms(denoiser, batch, xt, t, t, with_kl=False)[1]
        plain = cross_entropy.sum() / self.schedule.noise.mean_mask_rate
        on_bound = self.args.loss_weighting == "elbo"
        total = (self.weight(t) * cross_entropy.sum(1)).sum() if on_bound else plain
        return Loss(total, batch.target_mask.sum(), {"cross_entropy": plain.detach()})

    def draw_time(self, u: Tensor) -> Tensor:
        """Return the t of the training, float64 [B], from u in [0, 1)."""
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
            low, high = log_mask_rates(self.schedule.noise)  # RELEASED: -low for (high - low), 0.014 % more
            alpha_bar, (first, _) = self.schedule.noise.alpha_bar(t), self.schedule.noise.ends
            return (high - low) * (1 - alpha_bar) / (first - alpha_bar)
        return self.schedule.noise.closed_weight(t)
