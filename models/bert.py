"""A Hugging Face masked or causal language model as a denoiser p_theta(x0 | xt).

The network is a stock transformers class, cut at its vocabulary head into `encode` and `decode`. Time conditioning is
added from outside, so the network itself is saved as a plain `save_pretrained` folder.
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.denoiser import NetworkDenoiser
from models.last_layer import last_layer_hooks
from models.options import TIME_CONDITIONINGS
from models.packing import PackedRows
from models.time_conditioning import LayerwiseTime
from models.trials import FAMILIES
from utils.errors import UserError
from utils.hub import first_line

HEADS = (
    ("lm_head", "decoder"),  # ModernBERT's decoder
    ("cls",),  # BERT, DeBERTa, MobileBERT
    ("lm_head",),  # RoBERTa, XLM-R, CamemBERT, MPNet, causal networks
    ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),  # DistilBERT
    ("head", "decoder"),  # ModernBERT
    ("predictions",),  # ALBERT
    ("generator_predictions", "generator_lm_head"),  # ELECTRA
)
"""Modules from the last hidden state to the logits, in order, by family."""


class BertDenoiser(NetworkDenoiser):
    """A masked (or causal) language model of transformers."""

    def __init__(self, network: PreTrainedModel, time_conditioning: str = "none", num_steps: int = 2048) -> None:
        """Wrap a stock network.

        Raises:
            UserError: if the layout of its head is unknown.
        """
        if time_conditioning not in TIME_CONDITIONINGS:
            raise UserError(f"time_conditioning={time_conditioning!r} must be one of {', '.join(TIME_CONDITIONINGS)}")
        super().__init__(network, time_conditioning)
        self.head = next((names for names in HEADS if all(hasattr(network, name) for name in names)), ())
        self._check_split()
        hidden_size = network.config.hidden_size
        if time_conditioning == "layerwise":
            attentions = self._attentions()
            self.time = LayerwiseTime(hidden_size, len(attentions), num_steps)
            for layer, attention in enumerate(attentions):
                attention.register_forward_hook(self.time.hook(layer))
        elif time_conditioning == "token":
            self.time = nn.Embedding(num_steps + 1, network.get_input_embeddings().weight.shape[1])
            nn.init.normal_(self.time.weight, std=0.02)
        else:
            self.last_layer = last_layer_hooks(self.layers)
            if self.last_layer and not self._skips_positions():
                self.last_layer.remove()
                self.last_layer = None

    @property
    def body(self) -> PreTrainedModel:
        """The network without its vocabulary head."""
        return getattr(self.network, self.network.base_model_prefix)

    @property
    def vocab_size(self) -> int:
        """Rows of the output layer; may exceed the tokenizer's size."""
        return self.network.get_output_embeddings().weight.shape[0]

    @property
    def max_length(self) -> int:
        """Longest sentence in tokens, special tokens included."""
        longest = getattr(self.network.config, "max_position_embeddings", 10**6)
        return longest - self.first_position - (self.time_conditioning == "token")

    @property
    def first_position(self) -> int:
        """Position number of the first token: that of the padding + 1 in RoBERTa's family, else 0."""
        table = getattr(getattr(self.body, "embeddings", None), "position_embeddings", None)
        padding = getattr(table, "padding_idx", None)
        return 0 if padding is None else padding + 1

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """Map int64 [B, L], int64 [B], bool [B, L] to hidden states [B, L, D]."""
        with self.autocast:
            if self.time_conditioning == "token":
                return self._encode_with_time_token(xt, t, attention_mask)
            if self.row_capacity:
                return self._encode_packed(xt, t, PackedRows(attention_mask, self.row_capacity))
            if self.time_conditioning == "layerwise":
                self.time.t, self.time.sentence = t, None
            positions = {}
            if self.first_position:  # by default RoBERTa's family gives every [PAD] the same position
                index = torch.arange(xt.shape[1], device=xt.device) + self.first_position
                positions = {"position_ids": index.expand_as(xt)}
            return self.body(input_ids=xt, attention_mask=attention_mask.long(), **positions).last_hidden_state

    def encode_at(self, xt: Tensor, t: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """See NetworkDenoiser. After its attention the last layer runs at these positions only, if it can."""
        recomputed = self.network.training and self.network.is_activation_checkpointing  # outside of this context
        if not self.last_layer or recomputed:
            return self.encode(xt, t, attention_mask)
        with self.last_layer.at(positions):
            return self.encode(xt, t, attention_mask)

    def _encode_packed(self, xt: Tensor, t: Tensor, packed: PackedRows) -> Tensor:
        if self.time_conditioning == "layerwise":
            self.time.t, self.time.sentence = t, (packed.sentence - 1).clamp(min=0)
        positions = self.last_layer.positions if self.last_layer else None
        with nullcontext() if positions is None else self.last_layer.at(packed.fill(positions)):
            hidden = self.body(
                input_ids=packed.fill(xt),
                attention_mask=packed.block_mask(self.network.config, next(self.body.parameters()).dtype),
                position_ids=packed.position + self.first_position,
            )
        return packed.restore(hidden.last_hidden_state)

    def pack_rows(self, capacity: int) -> None:
        """Pack several sentences into rows of `capacity` slots from now on (0: one sentence per row).

        Raises:
            UserError: if the network cannot separate the sentences of a row.
        """
        if capacity and self.time_conditioning == "token":
            raise UserError("packing=true and time_conditioning=token cannot be combined; use none or layerwise")
        if capacity and not self._separates_sentences():
            attention = self.network.config._attn_implementation
            raise UserError(
                f"packing=true: {type(self.network).__name__} with attn_implementation={attention} does not separate "
                "the sentences of a row; leave packing out"
                + (", or try attn_implementation sdpa" if attention != "sdpa" else "")
            )
        self.row_capacity = capacity

    def extend(self, tokens: Tensor, cache: object) -> tuple[Tensor, object]:
        """Return hidden states [B, n, D] of the next tokens [B, n] of a causal network, and the extended cache."""
        with self.autocast:
            out = self.body(input_ids=tokens, past_key_values=cache, use_cache=True)
            return out.last_hidden_state, out.past_key_values

    def decode(self, hidden: Tensor) -> Tensor:
        """Map hidden states [..., D] to logits [..., V]."""
        with self.autocast:
            for name in self.head:
                hidden = getattr(self.network, name)(hidden)
            return hidden

    def _encode_with_time_token(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """Insert a learned vector of t after [CLS] (PTE); it is no word piece, so it collides with no token."""
        embedded = self.network.get_input_embeddings()(xt)
        embedded = torch.cat([embedded[:, :1], self.time(t)[:, None], embedded[:, 1:]], dim=1)
        mask = torch.cat([attention_mask[:, :1], attention_mask], dim=1)
        hidden = self.body(inputs_embeds=embedded, attention_mask=mask.long()).last_hidden_state
        return torch.cat([hidden[:, :1], hidden[:, 2:]], dim=1)

    @property
    def layers(self) -> list[nn.Module]:
        """The network's layers, in order; empty if their layout is unknown."""
        count = self.network.config.num_hidden_layers
        stacks = (m for m in self.body.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
        return list(next((stack for stack in stacks if all(_attention(layer) for layer in stack)), ()))

    def _attentions(self) -> list[nn.Module]:
        if found := [_attention(layer) for layer in self.layers]:
            return found
        raise UserError(
            f"time_conditioning=layerwise does not support the layers of {type(self.network).__name__}; "
            "use time_conditioning none or token"
        )

    @torch.no_grad()
    def _separates_sentences(self) -> bool:
        """Compare packed with single rows in full precision; neighbours have equal and unequal lengths."""
        training, capacity, autocast = self.network.training, self.row_capacity, self.autocast
        device, width = self.network.device, min(6, self.max_length)
        xt = torch.arange(3 * width, device=device).view(3, width) % self.vocab_size
        attended = torch.arange(width, device=device) < torch.tensor([width, width, 3], device=device)[:, None]
        t = torch.arange(1, 4, device=device)
        self.network.eval()
        self.autocast = nullcontext()
        try:
            self.row_capacity = 0
            single = self.encode(xt, t, attended)[attended]
            self.row_capacity = 3 * width
            packed = self.encode(xt, t, attended)[attended]
        except (RuntimeError, ValueError, TypeError, AttributeError):  # unsupported mask or position_ids
            return False
        finally:
            self.row_capacity, self.autocast = capacity, autocast
            self.network.train(training)
        return torch.allclose(packed, single, atol=1e-4, rtol=1e-4)

    @torch.no_grad()
    def _skips_positions(self) -> bool:
        """Compare hidden states at some positions with those of a whole pass, without dropout."""
        training, device = self.network.training, self.network.device
        self.network.eval()
        try:
            xt = torch.arange(2 * min(5, self.max_length), device=device).view(2, -1) % self.vocab_size
            t, everywhere, some = torch.ones(2, dtype=torch.long, device=device), torch.ones_like(xt) > 0, xt % 3 == 1
            whole, part = self.encode(xt, t, everywhere)[some], self.encode_at(xt, t, everywhere, some)[some]
        except Exception:  # an unsupported or damaged network may raise any type
            return False
        finally:
            self.network.train(training)
        return torch.allclose(part, whole, atol=1e-4, rtol=1e-4, equal_nan=True)

    @torch.no_grad()
    def _check_split(self) -> None:
        """Require that decode(encode(x)) equals the network's own output."""
        training = self.network.training
        self.network.eval()
        xt = torch.arange(3, device=self.network.device)[None]
        everywhere = torch.ones_like(xt, dtype=torch.bool)
        whole, split = torch.zeros(1), None
        try:
            whole = self.network(input_ids=xt, attention_mask=everywhere.long()).logits
            hidden = self.body(input_ids=xt, attention_mask=everywhere.long()).last_hidden_state
            split = self.decode(hidden) if self.head else None
        except Exception as error:  # an unsupported network may raise any type
            raise UserError(f"{type(self.network).__name__} does not run here: {first_line(error)}") from error
        finally:
            self.network.train(training)
        close = split is not None and split.shape == whole.shape
        if not close or not torch.allclose(split, whole, atol=1e-4, rtol=1e-4, equal_nan=True):
            raise UserError(
                f"{type(self.network).__name__} has a layout unknown to models/bert.py; use one of {FAMILIES}"
            )


def _attention(layer: nn.Module) -> nn.Module | None:
    found = getattr(layer, "attention", getattr(layer, "attn", None))
    return found if isinstance(found, nn.Module) else None
