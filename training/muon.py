"""Muon with its orthogonalisation in fp32 where the hardware has no bf16 instructions.

torch's Muon always computes it in bf16. A CPU without such instructions takes a hundred times as long for that as in
fp32, so that nearly all of a training step is spent there.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from utils.device import pick_precision

LONG = 2
"""Ratio of columns to rows from which the iteration on the Gram matrix takes fewer operations."""


class Muon(torch.optim.Muon):
    """torch's Muon with adjust_lr_fn="match_rms_adamw"; its state is the same in both precisions."""

    def __init__(self, groups: list[dict], learning_rate: float) -> None:
        """Take parameter groups of matrices; all of them lie on one device."""
        super().__init__(groups, lr=learning_rate, adjust_lr_fn="match_rms_adamw")
        device = groups[0]["params"][0].device
        self.in_bf16 = pick_precision("auto", device) == "bf16"

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        """Update the weights from their gradients."""
        if self.in_bf16:
            super().step(closure)
            return
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)

    def _update(self, weight: Tensor, group: dict) -> None:
        state, momentum = self.state[weight], group["momentum"]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight.grad)
        mean = state["momentum_buffer"].lerp_(weight.grad, 1 - momentum)
        update = weight.grad.lerp(mean, momentum) if group["nesterov"] else mean
        update = orthogonalized(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(weight.shape)))  # 0.2: the usual rms of AdamW


def orthogonalized(
    matrix: Tensor, coefficients: tuple[float, float, float], num_steps: int, smallest_norm: float
) -> Tensor:
    """Return the matrix with singular values near 1, by the quintic Newton-Schulz iteration of Muon.

    Args:
        matrix: [m, n].
        coefficients: a, b and c of X <- a X + (b X X^T + c (X X^T)^2) X.
        num_steps: number of iterations.
        smallest_norm: lower bound on the norm by which the matrix is divided first.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=smallest_norm)
    if x.shape[1] >= LONG * x.shape[0]:
        x = gram_factor(x @ x.T, coefficients, num_steps) @ x
    else:
        for _ in range(num_steps):
            x = polynomial(x @ x.T, coefficients) @ x
    return x.T if is_tall else x


def polynomial(gram: Tensor, coefficients: tuple[float, float, float]) -> Tensor:
    """Return a I + b G + c G^2."""
    a, b, c = coefficients
    found = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    found.diagonal().add_(a)
    return found


def gram_factor(gram: Tensor, coefficients: tuple[float, float, float], num_steps: int) -> Tensor:
    """Return the F for which the iteration maps X to F X, from the Gram matrix X X^T alone.

    F is a product of polynomials of the Gram matrix, which commute: after X <- Q X the Gram matrix is Q G Q = Q (Q G).
    For a matrix with three times as many columns as rows this takes two thirds of the operations.
    """
    factor = polynomial(gram, coefficients)
    latest = factor
    for _ in range(num_steps - 1):
        gram = latest @ (latest @ gram)
        latest = polynomial(gram, coefficients)
        factor = latest @ factor
    return factor
