"""Prompts in a frozen network: added to the hidden states at placeholder positions, before each layer.

A row is [CLS], P placeholder tokens, the text. The prompt is added to what stands at positions 1..P (MP2's released
program does the same): nothing is replaced and no length changes, so learned, rotary and relative positions all work.
"""

import contextlib
from collections.abc import Iterator, Sequence

from torch import Tensor, nn


@contextlib.contextmanager
def prompts_in(layers: Sequence[nn.Module], prompts: Tensor) -> Iterator[None]:
    """Add prompts to the input of the first layers within the block; afterwards the network is as before.

    Args:
        layers: layers of the network, in order. Each takes its hidden states [B, L, D] as its first argument, or by the
            name hidden_states.
        prompts: [B or 1, n, P, D], for the first n layers.

    Raises:
        ValueError: if there are fewer layers than prompts, or one layer serves twice.
    """
    number = prompts.shape[1]
    if number > len(layers) or len(set(map(id, layers))) < len(layers):
        raise ValueError(f"prompts for {number} layers need as many layers, each its own; there are {len(layers)}")
    handles = [
        layer.register_forward_pre_hook(_adding(prompts[:, i]), with_kwargs=True)
        for i, layer in enumerate(layers[:number])
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(prompt: Tensor):  # noqa: ANN202 (a hook)
    """Return a hook that adds a prompt [B or 1, P, D] to the hidden states of a layer."""

    def hook(layer: nn.Module, arguments: tuple, named: dict) -> tuple[tuple, dict]:
        if arguments:
            return (added(arguments[0], prompt), *arguments[1:]), named
        return arguments, {**named, "hidden_states": added(named["hidden_states"], prompt)}

    return hook


def added(hidden: Tensor, prompt: Tensor) -> Tensor:
    """Return hidden states [B, L, D] with a prompt [B or 1, P, D] added at positions 1..P.

    Raises:
        ValueError: if the rows are too short.
    """
    length, width = prompt.shape[1], hidden.shape[1]
    if length > width - 1:
        raise ValueError(f"a prompt of {length} tokens needs rows of at least {length + 1}; these have {width}")
    return hidden + nn.functional.pad(prompt.to(hidden), (0, 0, 1, width - 1 - length))
