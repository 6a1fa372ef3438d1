"""Texts longer than the network's window: it slides over them by a stride, and what it has left behind stays.

Each window has the last tokens of the one before it for a given prefix, and is drawn by whatever sampler the process
has; conditioning is data (`target_mask`), so nothing here knows of noise. With a stride of one token this is an
autoregressive model of windows; with half a window every token is drawn with half a window of text before it. A model
of `wrapped` rows has learnt that its window ends in an end of text, and so writes more of those than texts have.
Source: Sahoo et al. 2024, arXiv 2406.07524, section 3.2.3 ("semi-autoregressive"), who also give the names.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from data.batch import Batch
from utils.errors import UserError, check_ranges

Draw = Callable[[Batch], Tensor]
"""A batch to int64 [N, W], its targets drawn."""


@dataclass(frozen=True)
class SemiArArgs:
    """How far a text goes beyond one window."""

    group: ClassVar[str] = "texts longer than the window"

    semi_ar: bool = field(default=False, metadata={"help": "write texts longer than the network's window, by strides"})
    stride_length: int = field(default=0, metadata={"help": "tokens by which the window goes on; 0: half a window"})
    num_strides: int = field(default=1, metadata={"help": "how often it goes on: window + num_strides * stride tokens"})

    def __post_init__(self) -> None:
        check_ranges(self, stride_length=(0, 10**6), num_strides=(1, 10**6))
        if not self.semi_ar and (self.stride_length or self.num_strides != 1):
            raise UserError("stride_length and num_strides are for --semi_ar true; add it")

    def stride(self, window: int) -> int:
        """The stride in a window of so many tokens of text.

        Raises:
            UserError: if it is no part of the window.
        """
        stride = self.stride_length or max(1, window // 2)
        if not 0 < stride < window:
            raise UserError(
                f"stride_length={stride} must lie in 1..{window - 1}, less than the window of {window} tokens"
            )
        return stride


def write(first: Batch, draw: Draw, stride: int, num_strides: int) -> Tensor:
    """Rows of `num_strides` strides more than the window, int64 [N, W + num_strides * stride].

    Args:
        first: N windows of W slots, each with one stretch of targets, which is its text; what stands around it is given
            to every window.
        draw: draws the targets of a window.
        stride: tokens, fewer than the text has.
        num_strides: how often the window goes on.
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
