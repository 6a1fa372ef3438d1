"""Logits of a few sentences at a time: n positions times V entries is the largest tensor of a training step."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MAX_LOGITS = 2**24
"""Largest number of logits in a chunk: 64 MiB in float32."""
SENTENCE = 5
"""Positions added per sentence, for the spindle's tables: several of [V] in float64."""


def in_chunks(
    terms: Callable[[Tensor, slice], tuple[Tensor, ...]],
    hidden: Tensor,
    counts: Tensor,
    vocab_size: int,
    *,
    recompute: bool,
) -> tuple[Tensor, ...]:
    """Apply `terms` to the masked positions, a few sentences at a time to limit memory.

    Without a gradient, sentences are always processed in chunks. With one, the logits are kept for it or recomputed;
    recomputing costs one more product with the vocabulary matrix. (torch's linear_cross_entropy in chunks holds no
    more, but computes only the cross-entropy of x0, and takes eight times as long as the plain one on a CPU.)

    Args:
        terms: function of hidden states of some sentences' positions, and the slice of sentences, to tensors [n].
        hidden: [n, D], row by row.
        counts: int64 [B], positions of each sentence.
        vocab_size: V, logits of a position.
        recompute: whether to compute the logits again for the gradient.

    Returns:
        The concatenated chunks, each [n].
    """
    with_gradient = torch.is_grad_enabled()
    sizes = counts.tolist()
    rows = [slice(None)] if with_gradient and not recompute else slices_of(sizes, MAX_LOGITS // vocab_size)
    if len(rows) == 1:
        return terms(hidden, slice(None))
    found, begin = [], 0
    for chosen in rows:
        end = begin + sum(sizes[chosen])
        part, begin = hidden[begin:end], end
        found.append(checkpoint(terms, part, chosen, use_reentrant=False) if with_gradient else terms(part, chosen))
    return tuple(torch.cat(pieces) for pieces in zip(*found, strict=True))


def slices_of(sizes: list[int], limit: int) -> list[slice]:
    """Return slices of consecutive whole sentences, of at most `limit` positions and SENTENCE costs each."""
    cuts, held = [0], 0
    for row, size in enumerate(sizes):
        if held and held + size + SENTENCE > limit:
            cuts.append(row)
            held = 0
        held += size + SENTENCE
    return [slice(*ends) for ends in zip(cuts, [*cuts[1:], len(sizes)], strict=True)]
