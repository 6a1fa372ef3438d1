"""Layerwise time conditioning (LTE): a time embedding is added to the attention output of every layer."""

import math

import torch
from torch import Tensor, nn


class LayerwiseTime(nn.Module):
    """LTE (paper, 4.3): one MLP per layer maps sinusoids of t to a vector added to the attention's output.

    The last linear map of each MLP is initialized to zero, so a pretrained network starts unchanged.
    """

    def __init__(self, hidden_size: int, num_layers: int, num_steps: int) -> None:
        super().__init__()
        self.hidden_size, self.num_steps = hidden_size, num_steps
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden_size, 2 * hidden_size), nn.ReLU(), nn.Linear(2 * hidden_size, hidden_size))
            for _ in range(num_layers)
        )
        for mlp in self.mlps:
            nn.init.zeros_(mlp[2].weight)
            nn.init.zeros_(mlp[2].bias)
        self.t: Tensor | None = None
        """int64 [B], time of each sentence; set before each forward pass."""
        self.sentence: Tensor | None = None
        """int64 [R, C], index into `t` of each slot of packed rows; None: one sentence per row."""

    def hook(self, layer: int) -> object:
        """Return a forward hook for the attention of a layer."""

        def add_time(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
            embedding = self.mlps[layer](sinusoids(self.t, self.hidden_size, self.num_steps))
            embedding = embedding[:, None] if self.sentence is None else embedding[self.sentence]
            if isinstance(output, tuple):
                return (output[0] + embedding, *output[1:])
            return output + embedding

        return add_time


def sinusoids(t: Tensor, dim: int, max_period: int) -> Tensor:
    """Return cosines, then sines of t at geometrically spaced frequencies, float32 [B, dim].

    Periods range from 2 pi to 2 pi * max_period.
    """
    frequency = torch.exp(-math.log(max_period) * torch.arange(dim // 2, device=t.device) / (dim // 2))
    angle = t[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
