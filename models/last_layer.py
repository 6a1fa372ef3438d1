"""The last layer of a network at chosen positions only.

After its attention a layer treats every position by itself, and so does everything after the last layer. So where only
some hidden states are needed, the rest of the last layer need not run at the other positions. In a BERT this is three
quarters of the layer's multiplications.
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


class LastLayerHooks:
    """Hooks on the last layer that leave out positions, while `at` names the needed ones.

    They are part of the network, so its forward passes of different threads disturb each other.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        """Register the hooks.

        Args:
            modules: run one after another; all inputs of the first are [B, L, ...], and so is the output of the last.
        """
        self.positions: Tensor | None = None
        """bool [B, L], positions that are needed; None: all."""
        self._index: Tensor | None = None  # int64 [n], the same, counted over all rows
        self.num_weights = sum(p.numel() for module in modules for p in module.parameters() if p.ndim == 2)
        """Weights of the linear maps that run at the chosen positions only."""
        self._handles = (
            modules[0].register_forward_pre_hook(self._select),
            modules[-1].register_forward_hook(self._put_back),
        )

    def remove(self) -> None:
        """Remove the hooks from the network."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def at(self, positions: Tensor) -> Iterator[None]:
        """Within this context the network's hidden states are right at `positions`, bool [B, L], and not elsewhere."""
        before, self.positions = self.positions, positions
        try:
            yield
        finally:
            self.positions = before

    def _select(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.positions is None:
            return None
        if any(each.shape[:2] != self.positions.shape for each in inputs):
            raise RuntimeError(
                f"a layer of {tuple(inputs[0].shape)}, where positions are {tuple(self.positions.shape)}"
            )
        self._index = self.positions.flatten().nonzero()[:, 0]
        return tuple(each.flatten(0, 1).index_select(0, self._index) for each in inputs)

    def _put_back(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self.positions is None:
            return None
        whole = output.new_zeros(self.positions.numel(), *output.shape[1:])
        return whole.index_copy(0, self._index, output).unflatten(0, self.positions.shape)


def last_layer_hooks(layers: list[nn.Module]) -> LastLayerHooks | None:
    """Return hooks on the last of a network's layers; None if its layout is unknown."""
    modules = dict(layers[-1].named_modules()) if layers else {}
    for names in LAYOUTS:
        if all(name in modules for name in names):
            return LastLayerHooks([modules[name] for name in names])
    return None
