"""Texts longer than the network's window: the window advances by a stride, and earlier tokens stay fixed.

Each window begins with the last tokens of the one before it as a given prefix, and is drawn by the process's sampler.
Conditioning is data (`target_mask`), so this module does not depend on the noise. A stride of one token gives an
autoregressive model of windows; a stride of half a window gives every token half a window of context. A model of
`wrapped` rows has learned that every window ends in an end of text, and therefore writes too many of them.
Source: Sahoo et al. 2024, arXiv 2406.07524, section 3.2.3 ("semi-autoregressive"), the source of the names, too.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from data.batch import Batch

Draw = Callable[[Batch], Tensor]
"""Function from a batch to int64 [N, W], its targets drawn."""


def write(first: Batch, draw: Draw, stride: int, num_strides: int) -> Tensor:
    """Return rows of the window's length plus `num_strides` strides, int64 [N, W + num_strides * stride].

    Args:
        first: N windows of W slots. The targets of each are one contiguous span, its text; the other tokens are given
            to every window.
        draw: samples the targets of a window.
        stride: tokens, fewer than the text has.
        num_strides: number of times the window advances.
    """
    columns = first.target_mask[0].nonzero()[:, 0]
    begin, end = int(columns[0]), int(columns[-1]) + 1
    window, fresh = draw(first), first.target_mask.clone()
    fresh[:, begin : end - stride] = False
    written = [window[:, :end]]
    for _ in range(num_strides):
        given = window.clone()
        given[:, begin : end - stride] = window[:, begin + stride : end]
        window = draw(Batch(given, first.attention_mask, fresh))
        written.append(window[:, end - stride : end])
    return torch.cat([*written, window[:, end:]], 1)
