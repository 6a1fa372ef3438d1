"""Base class of the denoisers: a network cut at its vocabulary head into `encode` and `decode`."""

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.last_layer import LastLayerHooks
from models.packing import num_slots
from utils.device import autocast
from utils.errors import UserError


class NetworkDenoiser(nn.Module):
    """A transformers network as p_theta(x0 | xt); subclasses implement the layouts of the families."""

    fixed_attention = False
    """True if the network only supports torch's own attention (sdpa)."""
    embedding_start = 6.0
    """Size of embeddings that start from vectors, relative to random ones; smaller ones are soon undone by training."""
    head: tuple[str, ...] = ()
    """Names of the network's modules from the last hidden state to the logits, in order."""

    def __init__(self, network: PreTrainedModel, time_conditioning: str) -> None:
        """Wrap a network.

        Args:
            network: becomes a submodule.
            time_conditioning: none, layerwise or token.
        """
        super().__init__()
        self.network, self.time_conditioning = network, time_conditioning
        self.time_conditioned = time_conditioning != "none"
        self.time: nn.Module | None = None
        """Parameters of the time conditioning that are not the network's own."""
        self.last_layer: LastLayerHooks | None = None
        """Hooks that restrict the last layer to some positions; None if the network must compute all."""
        self.row_capacity = 0
        """Slots of a packed row; 0: one sentence per row."""
        self.autocast: AbstractContextManager = nullcontext()
        """Precision of the network; the process's arithmetic is not affected."""

    @property
    @abstractmethod
    def body(self) -> nn.Module:
        """The network without its vocabulary head."""

    @property
    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """The network's layers, in order; empty if their layout is unknown."""

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        """Weights of the vocabulary head that it does not share with the body, as tied embeddings are."""
        body = {id(parameter) for parameter in self.body.parameters()}
        modules = (getattr(self.network, name) for name in self.head)
        return [p for module in modules for p in module.parameters() if id(p) not in body]

    @property
    def vocab_size(self) -> int:
        """Rows of the output layer; may exceed the tokenizer's size."""
        return self.network.config.vocab_size

    @property
    @abstractmethod
    def max_length(self) -> int:
        """Longest sentence in tokens, special tokens included."""

    @property
    def origin(self) -> str:
        """Source of the network's weights, and the number of new ones."""
        return getattr(self.network.config, "initialized_from", "unknown")

    @torch.no_grad()
    def start_at_unigram(self, information: Tensor) -> None:
        """Set the output bias of a new vocabulary head to log p(w), so that training starts at the unigram model.

        The head of a network with random weights is new, too.

        Args:
            information: -log p(w) in nats, [V].
        """
        bias = getattr(self.network.get_output_embeddings(), "bias", None)
        names = {name for name, parameter in self.network.named_parameters() if parameter is bias}
        if names & set(getattr(self.network, "new_tensors", ())):
            bias.copy_(-information)

    @torch.no_grad()
    def start_embeddings(self, vectors: Tensor, known: Tensor) -> None:
        """Replace rows of a new embedding table by vectors, `embedding_start` times as large as its random rows.

        Args:
            vectors: float [V, E], of mean square 1.
            known: bool [V], rows to replace.
        """
        table = self.network.get_input_embeddings().weight
        scale = self.embedding_start * table.square().mean().sqrt()
        table[: len(known)][known.to(table.device)] = (scale * vectors[known].to(table)).to(table.dtype)

    def require_new_embeddings(self) -> None:
        """Refuse a pretrained embedding table.

        Raises:
            UserError: with the remedy.
        """
        table = self.network.get_input_embeddings().weight
        names = {name for name, parameter in self.network.named_parameters() if parameter is table}
        if not names & set(getattr(self.network, "new_tensors", ())):
            remedy = "give --embedding_start random"
            raise UserError(f"embedding_start=neighbours is for new embeddings, and these are pretrained; {remedy}")

    @abstractmethod
    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """Map int64 [B, L], [B], bool [B, L] to hidden states [B, L, D]."""

    def encode_at(self, xt: Tensor, t: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """Return hidden states [B, L, D] that are right at `positions`, bool [B, L], and arbitrary elsewhere."""
        return self.encode(xt, t, attention_mask)

    @abstractmethod
    def decode(self, hidden: Tensor) -> Tensor:
        """Map hidden states [..., D] to logits [..., V]."""

    def extend(self, tokens: Tensor, cache: object) -> tuple[Tensor, object]:
        """Return hidden states [B, n, D] of the next tokens [B, n] of a causal network, and the extended cache."""
        raise NotImplementedError

    def use_precision(self, device: torch.device, precision: str) -> "NetworkDenoiser":
        """Run the network in fp32, bf16 or fp16 autocast from now on; return self."""
        self.autocast = autocast(device, precision)
        return self

    def pack_rows(self, capacity: int) -> None:
        """Pack several sentences into rows of `capacity` slots from now on (0: one sentence per row).

        Raises:
            UserError: if the network cannot separate the sentences of a row.
        """
        self.row_capacity = capacity

    def num_slots(self, attention_mask: Tensor) -> int:
        """Return the number of positions the network computes for a batch."""
        return num_slots(attention_mask, self.row_capacity)
