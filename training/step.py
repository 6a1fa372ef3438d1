"""One training step: accumulate gradients, clip them, update the weights and their average."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from checkpoint.text_model import TextModel
from data.batch import Batch
from data.batching import Part
from diffusion.draws import Share
from diffusion.masked.warm_start import masked_lm_loss
from diffusion.process import Loss
from models.attention import fit_to_device
from training.arguments import TrainArgs
from training.config import TrainConfig
from training.optim import AveragedWeights, OptimArgs, make_optimizers
from training.parallel import accumulating, parallelize
from training.saved_state import Learner
from utils import distributed
from utils.gathering import full


@dataclass(frozen=True)
class Outcome:
    """What came of a step."""

    nats: float
    """Its loss, summed over all processes."""
    stepped: bool
    """Whether the weights moved; otherwise the step was skipped, for its loss or a gradient was not finite."""
    bad: list[Part]
    """This process's batches whose loss was not finite."""


class TrainStep:
    """The network, its optimizers and everything else that a step changes."""

    def __init__(self, model: TextModel, config: TrainConfig, device: torch.device, parts: int) -> None:
        """Settle precision and attention, and make the optimizers.

        Args:
            model: what is trained.
            config: its settings.
            device: where it is.
            parts: batches in a step, of all processes together.
        """
        self.config, self.device, self.parts = config, device, parts
        self.denoiser, self.precision = model.denoiser, config.precision(device)
        self.denoiser.use_precision(device, self.precision)
        fit_to_device(self.denoiser, config.network, device, self.precision)
        self.wrapped = parallelize(LossOfBatch(model, config.run), self.denoiser.layers, config.run.strategy, device)
        network = self.denoiser.network
        tables = [network.get_input_embeddings(), network.get_output_embeddings()]
        self.optimizers = make_optimizers(config.optim, self.denoiser, tables)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        average = AveragedWeights(self.denoiser, config.optim.ema_decay)
        self.learner = Learner(self.denoiser, average, self.optimizers, self.scaler)

    def __call__(self, step: int, batches: list[Part], progress: float, rate: float, num_tokens: float) -> Outcome:
        """Take one step.

        Args:
            step: its number, from 1.
            batches: this process's.
            progress: share of the training that is done.
            rate: learning rate.
            num_tokens: target tokens of the whole step, by which its loss is divided once.
        """
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = rate

        # Accumulate gradients.
        self.denoiser.train()
        losses = torch.zeros(len(batches), dtype=torch.float64, device=self.device)
        for i, part in enumerate(batches):
            generator, shared = streams_of_step(self.config.run.seed, step, part.number)
            share = Share(part.number, self.parts, shared)
            with accumulating(self.wrapped, last=i == len(batches) - 1):
                loss = self.wrapped(part.batch.to(self.device), progress, generator, share)
                self.scaler.scale(loss * (distributed.world_size() / num_tokens)).backward()
            losses[i] = loss.detach()
        nats = losses.sum()
        distributed.sum_over_ranks(nats)

        # Update the weights, and their average.
        stepped = clip(self.denoiser, self.config.optim, self.optimizers, self.scaler) and math.isfinite(nats)
        for optimizer in self.optimizers if stepped else ():
            self.scaler.step(optimizer)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.scaler.update()
        if stepped:
            self.learner.average.update()
        finite = losses.isfinite().tolist()
        return Outcome(nats.item(), stepped, [part for part, good in zip(batches, finite, strict=True) if not good])


class LossOfBatch(nn.Module):
    """From a batch to its loss: what the processes of a job share (parallel.py)."""

    def __init__(self, model: TextModel, args: TrainArgs) -> None:
        """The network's parameters become this module's."""
        super().__init__()
        self.denoiser, self.model, self.args = model.denoiser, model, args

    def forward(self, batch: Batch, progress: float, generator: torch.Generator, share: Share) -> Tensor:
        """Return the loss in nats, summed over the batch."""
        return training_loss(self.model, batch, self.args, progress, generator, share).total


def training_loss(
    model: TextModel, batch: Batch, args: TrainArgs, progress: float, generator: torch.Generator, share: Share
) -> Loss:
    """Return the process's own loss, after a share `warm_start` of plain masked language modelling."""
    if progress >= args.warm_start:
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


def streams_of_step(seed: int, step: int, number: int) -> tuple[torch.Generator, int]:
    """Return random numbers for one of a step's batches, and a seed that the whole step shares.

    They follow from the position of the batch and from nothing else, so that neither the number of processes nor an
    interruption changes them. Dropout's, which are torch's own on every device, are seeded on the way.
    """
    of_batch = np.random.SeedSequence([seed, step, number]).generate_state(2, np.uint64).tolist()
    of_step = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64).tolist()
    torch.manual_seed(of_batch[0])
    return torch.Generator().manual_seed(of_batch[1]), of_step[0]


def clip(
    model: nn.Module, optim: OptimArgs, optimizers: list[torch.optim.Optimizer], scaler: torch.amp.GradScaler
) -> bool:
    """Clip the gradient by norm, as usual, and by value, as released; whichever is on.

    Returns:
        Whether every gradient is finite; otherwise no optimizer may step, for the norm is that of all gradients
        together. In fp16 an overflow is part of the search for a scale.
    """
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optim.max_grad_norm or math.inf)
    if optim.max_grad_value:
        torch.nn.utils.clip_grad_value_(model.parameters(), optim.max_grad_value)
    return bool(full(norm).isfinite())
