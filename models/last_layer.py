"""The last layer of a network at chosen positions only.

After its attention a layer treats every position by itself, and nothing follows the last layer but the vocabulary head.
So where only some hidden states are needed, the rest of the last layer need not run at the other positions. In a BERT
this is three quarters of the layer's multiplications.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

LAYOUTS = (
    ("attention.output", "intermediate", "output"),  # BERT, RoBERTa, XLM-R, CamemBERT, Data2Vec, ELECTRA, DeBERTa-v2
    ("mlp_norm", "mlp"),  # ModernBERT
    ("ffn",),  # DistilBERT
)
"""Modules of a layer after its attention, in order, by family; they map each position by itself."""


class LastLayer:
    """Hooks on the last layer that leave out positions, where `at` names the needed ones."""

    def __init__(self, modules: list[nn.Module]) -> None:
        """Register the hooks.

        Args:
            modules: run one after another; all inputs of the first are [B, L, ...], and so is the output of the last.
        """
        self.num_weights = sum(p.numel() for module in modules for p in module.parameters() if p.ndim == 2)
        """Weights of the linear maps that run at the chosen positions only."""
        self.positions: Tensor | None = None
        """bool [B, L], positions that are needed; None: all."""
        self.index: Tensor | None = None
        """int64 [n], the same, counted over all rows."""
        modules[0].register_forward_pre_hook(self._select)
        modules[-1].register_forward_hook(self._put_back)

    @contextmanager
    def at(self, positions: Tensor) -> Iterator[None]:
        """Within this context the network's hidden states are right at `positions`, bool [B, L], and not elsewhere."""
        self.positions, self.index = positions, positions.flatten().nonzero()[:, 0]
        try:
            yield
        finally:
            self.positions = self.index = None

    def _select(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.index is None:
            return None
        return tuple(each.flatten(0, 1).index_select(0, self.index) for each in inputs)

    def _put_back(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self.index is None:
            return None
        whole = output.new_zeros(self.positions.numel(), *output.shape[1:])
        return whole.index_copy(0, self.index, output).unflatten(0, self.positions.shape)


def last_layer(layers: list[nn.Module]) -> LastLayer | None:
    """Return the hooks of the last of a network's layers; None if its layout is unknown."""
    modules = dict(layers[-1].named_modules()) if layers else {}
    for names in LAYOUTS:
        if all(name in modules for name in names):
            return LastLayer([modules[name] for name in names])
    return None
