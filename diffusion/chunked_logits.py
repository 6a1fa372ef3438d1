"""Logits of a few sentences at a time: n positions times V entries is the largest thing in a training step."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LOGITS_AT_ONCE = 2**24
"""64 MiB of them in float32: so many make up a part, where there are parts."""
SENTENCE = 5
"""Positions that a sentence counts for, masked or not: the spindle's tables of it are float64, and several."""


def in_parts(
    terms: Callable[[Tensor, slice], tuple[Tensor, ...]],
    hidden: Tensor,
    counts: Tensor,
    vocab_size: int,
    *,
    again: bool,
) -> tuple[Tensor, ...]:
    """What `terms` makes of masked positions, a few sentences at a time where that pays.

    Without a gradient it always does. With one, a part's logits are kept for it, or made again: that costs a further
    product with the vocabulary matrix. (torch's own linear_cross_entropy in chunks holds no more, but is of no use
    where the loss is more than the cross-entropy of x0, and on a CPU takes eight times as long as the plain one.)

    Args:
        terms: from the hidden states of some sentences' positions, and which sentences, to tensors [n] of terms.
        hidden: [n, D], row by row.
        counts: int64 [B], positions of each sentence.
        vocab_size: V, logits of a position.
        again: whether logits are made again for the gradient.

    Returns:
        The parts put together, each [n].
    """
    with_gradient = torch.is_grad_enabled()
    sizes = counts.tolist()
    rows = [slice(None)] if with_gradient and not again else cut(sizes, LOGITS_AT_ONCE // vocab_size)
    if len(rows) == 1:
        return terms(hidden, slice(None))
    found, begin = [], 0
    for chosen in rows:
        end = begin + sum(sizes[chosen])
        part, begin = hidden[begin:end], end
        found.append(checkpoint(terms, part, chosen, use_reentrant=False) if with_gradient else terms(part, chosen))
    return tuple(torch.cat(pieces) for pieces in zip(*found, strict=True))


def cut(sizes: list[int], at_once: int) -> list[slice]:
    """Neighbouring sentences whose positions, and they themselves, add up to `at_once` at most; none is ever cut."""
    cuts, held = [0], 0
    for row, size in enumerate(sizes):
        if held and held + size + SENTENCE > at_once:
            cuts.append(row)
            held = 0
        held += size + SENTENCE
    return [slice(*ends) for ends in zip(cuts, [*cuts[1:], len(sizes)], strict=True)]
