"""Layerwise time conditioning (LTE): the time enters every layer beside its attention."""

import math

import torch
from torch import Tensor, nn


class LayerwiseTime(nn.Module):
    """LTE: sinusoids of t through an MLP of its own in every layer, added to the attention's output (paper, 4.3)."""

    def __init__(self, hidden_size: int, num_layers: int, num_steps: int) -> None:
        """One MLP a layer; the last linear map starts at zero, so that a pretrained network starts undisturbed."""
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
        """int64 [B]."""
        self.sentence: Tensor | None = None
        """int64 [R, C], whose slot it is, in packed rows."""

    def hook(self, layer: int) -> object:
        """A forward hook for the attention of that layer."""

        def add_time(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
            embedding = self.mlps[layer](sinusoids(self.t, self.hidden_size, self.num_steps))
            embedding = embedding[:, None] if self.sentence is None else embedding[self.sentence]
            if isinstance(output, tuple):
                return (output[0] + embedding, *output[1:])
            return output + embedding

        return add_time


def sinusoids(t: Tensor, dim: int, max_period: int) -> Tensor:
    """Cos | sin of t at geometrically spaced frequencies, the slowest of period 2 pi * max_period; float32 [B, dim]."""
    frequency = torch.exp(-math.log(max_period) * torch.arange(dim // 2, device=t.device) / (dim // 2))
    angle = t[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
