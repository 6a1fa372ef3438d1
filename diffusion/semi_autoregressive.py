"""Texts longer than the network's window: the window advances by a stride, and earlier tokens stay fixed.

Each window begins with the last tokens of the one before it as a given prefix, and is drawn by the process's sampler.
Conditioning is data (`target_mask`), so this module does not depend on the noise. A stride of one token gives an
autoregressive model of windows; a stride of half a window gives every token half a window of context. A model of
`wrapped` rows has learned that every window ends in an end of text, and therefore writes too many of them.
Source: Sahoo et al. 2024, arXiv 2406.07524, section 3.2.3 ("semi-autoregressive"), the source of the names, too.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from data.batch import Batch
from utils.errors import UserError, check_ranges

Draw = Callable[[Batch], Tensor]
"""Function from a batch to int64 [N, W], its targets drawn."""


@dataclass(frozen=True)
class SemiArArgs:
    """Length of a text beyond one window."""

    group: ClassVar[str] = "texts longer than the window"

    semi_ar: bool = field(default=False, metadata={"help": "generation of texts longer than the network's window"})
    stride_length: int = field(
        default=0, metadata={"help": "tokens by which the window advances; 0 means half a window"}
    )
    num_strides: int = field(default=1, metadata={"help": "number of advances: window + num_strides * stride tokens"})

    def __post_init__(self) -> None:
        check_ranges(self, stride_length=(0, 10**6), num_strides=(1, 10**6))
        if not self.semi_ar and (self.stride_length or self.num_strides != 1):
            raise UserError("stride_length and num_strides need --semi_ar true; add it")

    def stride(self, window: int) -> int:
        """Return the stride for a window of `window` text tokens.

        Raises:
            UserError: if the stride is not shorter than the window.
        """
        stride = self.stride_length or max(1, window // 2)
        if not 0 < stride < window:
            raise UserError(
                f"stride_length={stride} must lie in 1..{window - 1}, less than the window of {window} tokens"
            )
        return stride


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
