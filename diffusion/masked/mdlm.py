"""MDLM: masked diffusion in continuous time, whose bound is a weighted masked-language-modelling loss.

In reading order: settings, time, what the network is told, loss. Corruption, posterior, bound and sampler are those of
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
from diffusion.masked.noise_schedules import SCHEDULES, log_mask_rates, log_uniform_time
from diffusion.masked.process import ScheduledProcess, SigmaInput
from diffusion.process import Denoiser, Loss
from utils.errors import UserError, check_choices, check_ranges


@dataclass(frozen=True)
class MdlmArgs(SigmaInput):
    """Everything that defines the process; saved with the checkpoint."""

    noise: str = field(default="loglinear", metadata={"choices": list(SCHEDULES), "help": "sigma(t)"})
    num_steps: int = field(default=0, metadata={"help": "T, for training in discrete time; 0: continuous time"})
    loss_weighting: str = field(
        default="elbo",
        metadata={"choices": ["elbo", "uniform"], "help": "train on the bound itself, or on unweighted cross-entropy"},
    )
    importance_sampling: bool = field(
        default=False, metadata={"help": "draw t so that every cross-entropy weighs the same"}
    )
    change_of_variables: bool = field(
        default=False, metadata={"help": "the same, and the network is told the drawn number instead of sigma"}
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


class MdlmDiffusion(ScheduledProcess):
    """Continuous time: t in [0, 1], of float64; with args.num_steps the times of the training are multiples of 1/T."""

    def __init__(
        self,
        args: MdlmArgs,
        token_counts: Tensor,
        *,
        mask_id: int,
        excluded_ids: tuple[int, ...] = (),
        unsampled_ids: tuple[int, ...] = (),
    ) -> None:
        """Prepare the schedule.

        Args:
            args: the settings.
            token_counts: [V]; only their number counts.
            mask_id, excluded_ids, unsampled_ids: see `TextProcess`.
        """
        super().__init__(len(token_counts), mask_id=mask_id, excluded_ids=excluded_ids, unsampled_ids=unsampled_ids)
        self.args = args
        self.num_steps = args.num_steps or math.inf
        self.schedule = SCHEDULES[args.noise]
        self.log_rates = log_mask_rates(self.schedule)

    # ---- time ----------------------------------------------------------------------------------------------------

    def told(self, t: Tensor) -> Tensor:
        """Sigma(t), float32 [B]; with a change of variables the place of the log mask rate between its ends."""
        if not self.args.change_of_variables:
            return super().told(t)
        low, high = self.log_rates
        rate = 1 - self.schedule.alpha_bar(t.double())
        return ((rate.log() - low) / (high - low)).clamp(0, 1).float()

    # ---- loss ----------------------------------------------------------------------------------------------------

    def loss(
        self, denoiser: Denoiser, batch: Batch, *, generator: Generator | None = None, share: Share = WHOLE
    ) -> Loss:
        """Cross-entropies of the masked tokens at one t per sentence, weighted as in the bound, or alike (uniform).

        elbo: rate / (exp(sigma) - 1), which for loglinear is 1/t; in discrete time T u, which is the same there.
        """
        u = stratified_uniform(len(batch.input_ids), generator, share).to(batch.input_ids.device)
        t = self.draw_time(u)
        xt = self.corrupt(batch.input_ids, t, batch.noised, generator=generator)
        cross_entropy = self.token_terms(denoiser, batch, xt, t, t, with_kl=False)[1]
        plain = cross_entropy.sum() / self.schedule.mean_mask_rate
        on_bound = self.args.loss_weighting == "elbo"
        total = (self.weight(t) * cross_entropy.sum(1)).sum() if on_bound else plain
        return Loss(total, batch.target_mask.sum(), {"cross_entropy": plain.detach()})

    def draw_time(self, u: Tensor) -> Tensor:
        """The t of the training, float64 [B], from u in [0, 1)."""
        t = (1 - self.args.sampling_eps) * u + self.args.sampling_eps
        if self.args.num_steps:
            return (t * self.args.num_steps).long().clamp(max=self.args.num_steps - 1).add(
                1
            ).double() / self.args.num_steps
        if self.args.importance_sampling or self.args.change_of_variables:
            return log_uniform_time(self.schedule, t)
        return t

    def weight(self, t: Tensor) -> Tensor:
        """Of the cross-entropies at t, float64 [B]."""
        if self.args.num_steps:
            return self.args.num_steps * self.reveal_probability(torch.zeros_like(t), t - 1 / self.args.num_steps, t)
        if self.args.importance_sampling or self.args.change_of_variables:
            low, high = self.log_rates  # RELEASED: -low for (high - low), 0.014 % more
            alpha_bar, (first, _) = self.schedule.alpha_bar(t), self.schedule.ends
            return (high - low) * (1 - alpha_bar) / (first - alpha_bar)
        return self.schedule.closed_weight(t)
