"""Random draws: numbers for each token and sentence, noise levels spread over a step, tokens from logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from diffusion.options import SampleArgs
from utils.errors import UserError

Generators = Generator | Sequence[Generator] | None
"""One stream for the whole batch, or one stream per sentence (then a sentence's draws do not depend on its batch)."""


@dataclass(frozen=True)
class Share:
    """Which part of a training step a batch is, so that the noise levels of all parts are spread over the step."""

    part: int = 0
    parts: int = 1
    seed: int = 0
    """One for all parts of a step."""


WHOLE = Share()
"""A batch that is a step by itself."""


def uniform(where: Tensor, generator: Generators = None) -> Tensor:
    """Independent U[0, 1) numbers at the True positions of `where`, 1 elsewhere.

    With one generator per sentence, sentence b takes exactly as many numbers from its own stream as it has True
    positions: its draws are the same whatever else is in the batch and however far the batch is padded.

    Args:
        where: bool [B, L].
        generator: CPU generators (so that a seed means the same on every device), or one on `where`'s device.

    Returns:
        float64 [B, L].
    """
    values = torch.ones(where.shape, dtype=torch.float64, device=where.device)
    if isinstance(generator, Sequence):
        counts = where.sum(1).tolist()
        draws = [torch.rand(n, generator=g, dtype=torch.float64) for n, g in zip(counts, generator, strict=True)]
        values[where] = torch.cat(draws).to(where.device)
        return values
    device = where.device if generator is None else generator.device
    drawn = torch.rand(where.shape, generator=generator, dtype=torch.float64, device=device)
    return torch.where(where, drawn.to(where.device), values)


def gaussian(where: Tensor, width: int, generator: Generators = None) -> Tensor:
    """Independent N(0, 1) vectors at the True positions of `where`, 0 elsewhere; streams as in `uniform`.

    Args:
        where: bool [B, L].
        width: E.
        generator: CPU generators, or one on `where`'s device.

    Returns:
        float32 [B, L, E].
    """
    values = torch.zeros(*where.shape, width, device=where.device)
    if isinstance(generator, Sequence):
        counts = where.sum(1).tolist()
        draws = [torch.randn(n, width, generator=g) for n, g in zip(counts, generator, strict=True)]
        values[where] = torch.cat(draws).to(where.device)
        return values
    device = where.device if generator is None else generator.device
    drawn = torch.randn(*where.shape, width, generator=generator, device=device)
    return torch.where(where[..., None], drawn.to(where.device), values)


def streams_of(generator: Generators, rows: Tensor) -> Generators:
    """The streams of some rows, or the one that all share."""
    return [generator[row] for row in rows.tolist()] if isinstance(generator, Sequence) else generator


def stratified_uniform(batch_size: int, generator: Generator | None = None, share: Share = WHOLE) -> Tensor:
    """One number in [0, 1) per sentence: uniform for each of them, evenly spread over the batch and its whole step.

    Each sentence gets one of B equal slices, dealt at random (were sentence b always given slice b, a batch sorted by
    length would noise its long sentences more), and a uniform place inside its slice. The batches of a step take
    different parts of every slice: which one, a turn decides that is drawn for the slice, alike for all of them.

    Returns:
        float64 [B] on the generator's device.
    """
    device = "cpu" if generator is None else generator.device
    slices = torch.randperm(batch_size, generator=generator, device=device)
    place = torch.rand(batch_size, generator=generator, dtype=torch.float64, device=device)
    if share.parts > 1:
        turn = torch.randint(share.parts, (batch_size,), generator=Generator().manual_seed(share.seed)).to(device)
        place = ((share.part + turn[slices]) % share.parts + place) / share.parts
    return (slices + place) / batch_size


def stratified_timesteps(
    batch_size: int, num_steps: int, generator: Generator | None = None, share: Share = WHOLE
) -> Tensor:
    """One step in 1..T per sentence, int64 [B] on the generator's device, spread as `stratified_uniform` spreads."""
    place = stratified_uniform(batch_size, generator, share)
    return (place * num_steps).long().clamp(max=num_steps - 1) + 1


def sample_categorical(weights: Tensor, u: Tensor) -> Tensor:
    """Index drawn with probability proportional to `weights`, by inverting the cumulative sum in float64.

    Float32 Gumbel noise has a largest value of 16.6 and so never picks small weights often enough; this does.

    Args:
        weights: [N, V], not negative, each row with a positive sum.
        u: float64 [N] in [0, 1).

    Returns:
        int64 [N]; never an index of weight 0.

    Raises:
        UserError: if a weight is not finite.
    """
    cumulative = weights.double().cumsum(-1)
    total = cumulative[:, -1:]
    if not total.isfinite().all():
        raise UserError("the network's predictions are not finite; use --precision fp32, or another checkpoint")
    # u is at most 1 - 2**-53, so u * total rounds to less than the total, and the index is one of the vocabulary
    return torch.searchsorted(cumulative, u.unsqueeze(-1) * total, right=True).squeeze(-1)


def filter_logits(logits: Tensor, args: SampleArgs) -> Tensor:
    """Temperature, then top-k, then top-p, on the logits of p(x0 | xt), [N, V]; what is cut becomes -inf."""
    logits = logits / args.temperature if args.temperature != 1 else logits
    if 0 < args.top_k < logits.shape[-1]:
        kth = logits.topk(args.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if args.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        mass_before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        beyond = mass_before >= args.top_p
        beyond[:, 0] = False  # the likeliest stays, however small top_p is
        cut = torch.zeros_like(beyond).scatter(-1, order, beyond)
        logits = logits.masked_fill(cut, -torch.inf)
    return logits


def sentence_seed(seed: int, index: int, round_: int = 0) -> int:
    """A seed for one sentence of a run, unrelated to its neighbours' and to that of another round."""
    words = [seed, index, round_] if round_ else [seed, index]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
