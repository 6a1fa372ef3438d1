"""One training step: loss of a batch, random numbers, gradient clipping."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from checkpoint.text_model import TextModel
from data.batch import Batch
from diffusion.draws import Share
from diffusion.masked.warm_start import masked_lm_loss
from diffusion.process import Loss
from training.arguments import TrainArgs
from training.optim import OptimArgs
from utils.gathering import full


class LossOfBatch(nn.Module):
    """A batch to its loss: what the processes of a job share (`training/parallel.py`)."""

    def __init__(self, run: TextModel, args: TrainArgs) -> None:
        """The network's parameters become this module's."""
        super().__init__()
        self.denoiser, self.run, self.args = run.denoiser, run, args

    def forward(self, batch: Batch, progress: float, generator: torch.Generator, share: Share) -> Tensor:
        """In nats, summed over the batch."""
        return training_loss(self.run, batch, self.args, progress, generator, share).total


def streams_of_step(seed: int, step: int, number: int) -> tuple[torch.Generator, int]:
    """Random numbers of one of a step's batches, and a seed that the whole step shares.

    They follow from where the batch stands and from nothing else, so that neither the number of processes nor an
    interruption changes them. Dropout's, which are torch's own on every device, are seeded on the way.
    """
    of_batch = np.random.SeedSequence([seed, step, number]).generate_state(2, np.uint64).tolist()
    of_step = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64).tolist()
    torch.manual_seed(of_batch[0])
    return torch.Generator().manual_seed(of_batch[1]), of_step[0]


def training_loss(
    run: TextModel, batch: Batch, args: TrainArgs, progress: float, generator: torch.Generator, share: Share
) -> Loss:
    """The process's own loss, after a share `warm_start` of plain masked language modelling."""
    if progress >= args.warm_start:
        return run.process.loss(run.denoiser, batch, generator=generator, share=share)
    return masked_lm_loss(
        run.process,
        run.denoiser,
        batch,
        rates=args.rates,
        fused=args.fused_loss,
        generator=generator,
        share=share,
    )


def clip(
    model: torch.nn.Module, optim: OptimArgs, optimizers: list[torch.optim.Optimizer], scaler: torch.amp.GradScaler
) -> bool:
    """By norm, as usual, and by value, as released; whichever is on.

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
