"""Display of samples in a terminal while they are denoised."""

import sys

import torch
from torch import Tensor

from checkpoint.model_parts import ModelParts
from checkpoint.requests import SampleRequest
from checkpoint.sampling import blank, decode, sample_rows, stream_of
from diffusion.options import SampleArgs
from utils.screen import BRIGHT, DIM, PLAIN, Screen, Span


def show(model: ModelParts, request: SampleRequest, sampling: SampleArgs) -> None:
    """Display each sample during denoising, with the number of forward passes."""
    screen = Screen(sys.stdout)
    for number in range(request.num_samples):
        display = SampleDisplay(model, request, screen, number)
        with screen.text():
            if screen.live:
                display.frame(display.row)
            (row,) = sample_rows(model, request, sampling, display.on_step, numbers=[number])
            display.frame(row, last=True)


class SampleDisplay:
    """Display of one sample: masks are dots, newly revealed tokens bright, other tokens plain.

    In the last frame only tokens filled into a given text are bright.
    """

    def __init__(self, model: ModelParts, request: SampleRequest, screen: Screen, number: int) -> None:
        """Draw the blank row of the sample."""
        self.model, self.screen, self.forwards = model, screen, 0
        self.name = f"{number + 1:>{len(str(request.num_samples))}}: " if request.num_samples > 1 else ""
        self.filled = bool(request.infill)
        self.row, self.targets = blank(model, request, stream_of(request, number))

    def on_step(self, finished: Tensor, xt: Tensor) -> None:
        """Display the row after a forward pass, as a StepCallback."""
        self.forwards += 1
        self.frame(xt[0].cpu())

    def frame(self, row: Tensor, *, last: bool = False) -> None:
        """Display a row, int64 [L]."""
        masked = row == self.model.tokenizer.mask_token_id
        fresh = self.targets & self.filled if last else row != self.row
        styles = [
            DIM if is_masked else BRIGHT if is_fresh else PLAIN
            for is_masked, is_fresh in zip(masked.tolist(), fresh.tolist(), strict=True)
        ]
        self.row = row.clone()
        self.screen.frame(f"{self.name}{self.forwards:>5}  ", self.styled(row, styles), last=last)

    def styled(self, row: Tensor, styles: list[str]) -> list[Span]:
        """Return the text of a row as runs of equal style."""
        if self.model.causal and not self.filled:  # tokens not yet generated are not shown as gaps
            row = row[: int((row != self.model.tokenizer.mask_token_id).long().cumprod(0).sum())]
        text, end, runs = self.text(row), row.new_tensor([self.model.tokenizer.sep_token_id]), []
        changes = [i for i in range(1, len(row)) if styles[i] != styles[i - 1]]
        cuts = [min(len(self.text(torch.cat([row[:i], end]))), len(text)) for i in changes]
        for i, begin, stop in zip([0, *changes], [0, *cuts], [*cuts, len(text)], strict=True):
            runs.append((text[begin:stop], styles[i]))
        return runs

    def text(self, row: Tensor) -> str:
        """Return the text of a row, with a dot for each [MASK]."""
        return decode(self.model, row).replace(self.model.tokenizer.mask_token, "·")
