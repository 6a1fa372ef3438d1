"""Training step: accumulate gradients, clip them, update the weights and their average."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from checkpoint.model_parts import ModelParts
from data.batch import Batch
from data.batching import Part
from diffusion.draws import Share
from diffusion.masked.warm_start import masked_lm_loss
from diffusion.process import Loss
from diffusion.time_density import UNIFORM, TimeDensity
from models.attention import fit_to_device
from training.arguments import OptimArgs, TrainArgs
from training.config import TrainConfig
from training.optim import AveragedWeights, make_optimizers
from training.parallel import accumulating, parallelize
from training.saved_state import Learner
from utils import distributed, job
from utils.errors import UserError
from utils.gathering import full


@dataclass(frozen=True)
class StepResult:
    """Result of a training step."""

    nats: float
    """Loss in nats, summed over all processes."""
    stepped: bool
    """Whether the weights were updated; a step with a non-finite loss or gradient is skipped."""
    nonfinite: list[Part]
    """Batches of this process whose loss was not finite."""


class TrainStep:
    """Network, optimizers, gradient scaler and weight average, updated by each step."""

    def __init__(
        self, model: ModelParts, config: TrainConfig, device: torch.device, parts: int, precision: str
    ) -> None:
        """Set precision and attention, and make the optimizers.

        Args:
            model: model to train.
            config: settings of the run.
            device: device of the model.
            parts: number of batches in a step, over all processes.
            precision: fp32, bf16 or fp16.
        """
        self.config, self.device, self.parts = config, device, parts
        self.batch_device = model.device  # the CPU if the network's device has no float64
        self.denoiser, self.precision = model.denoiser, precision
        self.denoiser.use_precision(device, self.precision)
        fit_to_device(self.denoiser, config.network, device, self.precision)
        self.wrapped = parallelize(BatchLoss(model, config.run), self.denoiser.layers, config.run.strategy, device)
        network = self.denoiser.network
        tables = [network.get_input_embeddings(), network.get_output_embeddings()]
        head = self.denoiser.head_parameters
        if config.optim.separate_head and not head:
            raise UserError(
                f"head_learning_rate and head_first: the vocabulary head of {type(network).__name__} has no weights of "
                "its own; leave them out"
            )
        self.optimizers = make_optimizers(config.optim, self.denoiser, tables, head)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        average = AveragedWeights(self.denoiser, config.optim.ema_decay)
        self.learner = Learner(self.denoiser, average, self.optimizers, self.scaler)

    def __call__(self, step: int, batches: list[Part], progress: float, rate: float, num_tokens: float) -> StepResult:
        """Take one step.

        Args:
            step: number of the step, from 1.
            batches: batches of this process.
            progress: share of the training done, 0 to 1.
            rate: learning rate.
            num_tokens: target tokens of the step over all processes; the summed loss is divided by it.
        """
        # Set the learning rate.
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = rate * self.config.optim.factor(of_head=group.get("of_head", False), progress=progress)

        # Accumulate gradients.
        self.denoiser.train()
        losses = torch.zeros(len(batches), dtype=torch.float64, device=self.batch_device)
        for i, part in enumerate(batches):
            generator, step_seed = seed_batch(self.config.run.seed, step, part.number)
            share = Share(part.number, self.parts, step_seed)
            with accumulating(self.wrapped, last=i == len(batches) - 1):
                loss = self.wrapped(part.batch.to(self.batch_device), progress, generator, share)
                self.scaler.scale(loss * (job.world_size() / num_tokens)).backward()
            losses[i] = loss.detach()
        nats = losses.sum()
        distributed.sum_over_ranks(nats)

        # Clip gradients.
        stepped = clip(self.denoiser, self.config.optim, self.optimizers, self.scaler) and math.isfinite(nats)

        # Update weights.
        for optimizer in self.optimizers if stepped else ():
            self.scaler.step(optimizer)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.scaler.update()

        # Update the average.
        if stepped:
            self.learner.average.update()
        finite = losses.isfinite().tolist()
        return StepResult(nats.item(), stepped, [part for part, good in zip(batches, finite, strict=True) if not good])


class BatchLoss(nn.Module):
    """Module that maps a batch to its loss, to be wrapped by DDP or FSDP (parallel.py)."""

    def __init__(self, model: ModelParts, args: TrainArgs) -> None:
        """Register the network as a submodule."""
        super().__init__()
        self.denoiser, self.model, self.args = model.denoiser, model, args

    def forward(self, batch: Batch, progress: float, generator: torch.Generator, share: Share) -> Tensor:
        """Return the loss in nats, summed over the batch."""
        return training_loss(self.model, batch, self.args, progress, generator, share).total


def time_density(args: TrainArgs, progress: float) -> TimeDensity:
    """Return the density of the training times when a share `progress` of the training is done."""
    is_over = args.bell_share < 1 and progress >= args.bell_share  # progress is 1 in a training that is prolonged
    if args.time_sampling == "uniform" or is_over:
        return UNIFORM
    return TimeDensity(*args.bell_shape)


def training_loss(
    model: ModelParts, batch: Batch, args: TrainArgs, progress: float, generator: torch.Generator, share: Share
) -> Loss:
    """Return the loss of the process, or of masked language modelling while progress < warm_start."""
    if progress >= args.warm_start:
        share = replace(share, density=time_density(args, progress))
        return model.process.loss(model.denoiser, batch, generator=generator, share=share)
    return masked_lm_loss(
        model.process,
        model.denoiser,
        batch,
        rates=args.rates,
        fused=args.fused_loss,
        generator=generator,
        share=share,
    )


def seed_batch(seed: int, step: int, number: int) -> tuple[torch.Generator, int]:
    """Return a generator for one batch of a step and a seed shared by the step; seed torch's dropout.

    All depend on the seed, the step and the batch's number only, so neither the number of processes nor an interruption
    changes them.
    """
    batch_seeds = np.random.SeedSequence([seed, step, number]).generate_state(2, np.uint64).tolist()
    (step_seed,) = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64).tolist()
    torch.manual_seed(batch_seeds[0])
    return torch.Generator().manual_seed(batch_seeds[1]), step_seed


def clip(
    model: nn.Module, optim: OptimArgs, optimizers: list[torch.optim.Optimizer], scaler: torch.amp.GradScaler
) -> bool:
    """Clip the gradient by norm and by value (the released code's rule), each if its setting is positive.

    Returns:
        Whether all gradients are finite. If not, no optimizer may step, since the norm is over all gradients. In fp16
        overflows are expected while the scaler searches for its scale.
    """
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optim.max_grad_norm or math.inf)
    if optim.max_grad_value:
        torch.nn.utils.clip_grad_value_(model.parameters(), optim.max_grad_value)
    return bool(full(norm).isfinite())
