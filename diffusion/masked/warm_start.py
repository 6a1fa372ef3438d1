"""Warm start: masked language modelling with a mask rate drawn per sentence."""

import torch.nn.functional as F
from torch import Generator, Tensor

from data.batch import Batch
from diffusion.chunked_logits import in_chunks
from diffusion.draws import WHOLE, Share, stratified_uniform, uniform
from diffusion.masked.transitions import MaskedTransitions
from diffusion.process import Denoiser, Loss, encode_at


def masked_lm_loss(
    process: MaskedTransitions,
    denoiser: Denoiser,
    batch: Batch,
    *,
    rates: tuple[float, float],
    fused: bool = False,
    generator: Generator | None = None,
    share: Share = WHOLE,
) -> Loss:
    """Return the cross-entropy of tokens masked at a rate drawn per sentence, uniform between the two `rates`.

    It is divided by the mean rate, so that a target token weighs one in expectation, as in the loss of a process.
    """
    low, high = rates
    u = stratified_uniform(len(batch.input_ids), generator, share).to(batch.input_ids.device)
    rate = low + (high - low) * u
    noise = uniform(batch.noised, generator) < rate[:, None]  # False at given tokens
    xt, masked = batch.input_ids.masked_fill(noise, process.mask_id), noise & batch.target_mask

    def terms(hidden: Tensor, rows: slice) -> tuple[Tensor]:
        logits = denoiser.decode(hidden).float()
        return (F.cross_entropy(logits, batch.input_ids[rows][masked[rows]], reduction="none"),)

    t = process.time_input(process.schedule.time_at(1 - rate))
    hidden = encode_at(denoiser, xt, t, batch.attention_mask, masked)[masked]
    (cross_entropy,) = in_chunks(terms, hidden, masked.sum(1), process.vocab_size, recompute=fused)
    total = cross_entropy.sum() / ((low + high) / 2)
    return Loss(total, batch.target_mask.sum(), {"cross_entropy": total.detach()})
