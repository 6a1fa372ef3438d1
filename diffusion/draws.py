"""Random draws: uniform and normal numbers per token, stratified times per sentence, tokens from logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from diffusion.options import TokenLaw
from diffusion.time_density import UNIFORM, TimeDensity
from utils.errors import UserError

Generators = Generator | Sequence[Generator] | None
"""One stream for the whole batch, or one per sentence (then a sentence's draws do not depend on its batch)."""


@dataclass(frozen=True)
class Share:
    """Part of a training step that a batch makes up, so that the times of all parts are stratified over the step."""

    part: int = 0
    parts: int = 1
    seed: int = 0
    """Seed of the step, equal for all its parts."""
    density: TimeDensity = UNIFORM
    """Density of the step's times."""


WHOLE = Share()
"""A batch that is a whole step."""


def uniform(where: Tensor, generator: Generators = None, *, rows: Tensor | None = None) -> Tensor:
    """Draw independent U[0, 1) numbers at the True positions of `where`; 1 elsewhere.

    With one generator per sentence, sentence b takes as many numbers from its stream as it has True positions. So its
    draws depend neither on the rest of the batch nor on the padding.

    Args:
        where: bool [B, L].
        generator: on the CPU (a seed then gives the same numbers on every device), or on the device of `where`.
        rows: int64 [B], indices of the sentences among the streams; default: all in order.

    Returns:
        float64 [B, L].
    """
    generator = generator if rows is None else streams_of(generator, rows)
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
    """Draw independent N(0, 1) vectors at the True positions of `where`; 0 elsewhere. Streams are as in `uniform`.

    Args:
        where: bool [B, L].
        width: E.
        generator: on the CPU, or on the device of `where`.

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
    """Return the streams of some rows, or the one stream that all rows share."""
    return [generator[row] for row in rows.tolist()] if isinstance(generator, Sequence) else generator


def stratified_uniform(batch_size: int, generator: Generator | None = None, share: Share = WHOLE) -> Tensor:
    """Draw one number in [0, 1) per sentence: each is uniform, and together they are stratified over the whole step.

    [0, 1) is divided into B strata, assigned to the sentences at random; a fixed assignment would noise the long
    sentences of a sorted batch more. Each sentence draws a uniform number in its stratum. The parts of a step divide
    every stratum further; a random shift per stratum, equal in all parts, assigns the pieces.

    Returns:
        float64 [B] on the generator's device.
    """
    device = "cpu" if generator is None else generator.device
    strata = torch.randperm(batch_size, generator=generator, device=device)
    offset = torch.rand(batch_size, generator=generator, dtype=torch.float64, device=device)
    if share.parts > 1:
        shift = torch.randint(share.parts, (batch_size,), generator=Generator().manual_seed(share.seed)).to(device)
        offset = ((share.part + shift[strata]) % share.parts + offset) / share.parts
    return (strata + offset) / batch_size


def stratified_times(batch_size: int, generator: Generator | None = None, share: Share = WHOLE) -> Tensor:
    """Draw one relative time in [0, 1] per sentence from the step's density, stratified; float64 [B]."""
    return share.density.time_at(stratified_uniform(batch_size, generator, share))


def stratified_timesteps(
    batch_size: int, num_steps: int, generator: Generator | None = None, share: Share = WHOLE
) -> Tensor:
    """Draw one step in 1..T per sentence from the step's density, stratified; int64 [B], generator's device."""
    return (stratified_times(batch_size, generator, share) * num_steps).long().clamp(max=num_steps - 1) + 1


def sample_categorical(weights: Tensor, u: Tensor) -> Tensor:
    """Draw an index with probability proportional to `weights`, by inverting the cumulative sum in float64.

    Float32 Gumbel noise has a largest value of 16.6 and so draws small weights too rarely.

    Args:
        weights: [N, V], non-negative, each row with a positive sum.
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
    # u is at most 1 - 2**-53, so u * total rounds to less than the total, and the index lies in the vocabulary
    return torch.searchsorted(cumulative, u.unsqueeze(-1) * total, right=True).squeeze(-1)


def filter_logits(logits: Tensor, args: TokenLaw) -> Tensor:
    """Apply temperature, then top-k, then top-p to the logits of p(x0 | xt), [N, V]; removed tokens get -inf."""
    logits = logits / args.temperature if args.temperature != 1 else logits
    if 0 < args.top_k < logits.shape[-1]:
        kth = logits.topk(args.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if args.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        mass_before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        beyond = mass_before >= args.top_p
        beyond[:, 0] = False  # the likeliest token stays for any top_p
        cut = torch.zeros_like(beyond).scatter(-1, order, beyond)
        logits = logits.masked_fill(cut, -torch.inf)
    return logits


def sentence_seed(seed: int, index: int, round_: int = 0) -> int:
    """Return a seed for one sentence of a run, unrelated to those of other sentences and rounds."""
    entropy = [seed, index, round_] if round_ else [seed, index]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
