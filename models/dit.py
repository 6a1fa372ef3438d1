"""MDLM's network: a diffusion transformer whose layers are modulated by the noise level, or a causal one without.

Names, shapes and arithmetic are those of the released code (Sahoo et al. 2024, arXiv 2406.07524; after DiT, Peebles and
Xie 2022), so that its weights load by their names: pre-norm, rotary positions, GELU, an output layer of its own. A
network that is not told the time is modulated all the same, as at sigma = 0.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel

from utils.errors import UserError

FREQUENCIES = 256
"""Sinusoids by which sigma is told."""
Cache = list[tuple[Tensor, Tensor]] | None
"""Keys and values of every layer, each [B, heads, seen, D / heads]."""


class DitConfig(PretrainedConfig):
    """As the released code's."""

    model_type = "mdlm"

    def __init__(
        self,
        vocab_size: int = 30_522,
        model_length: int = 1024,
        hidden_dim: int = 768,
        cond_dim: int = 128,
        n_blocks: int = 12,
        n_heads: int = 12,
        dropout: float = 0.1,
        causal: bool = False,
        **more: object,
    ) -> None:
        """The default is "small"."""
        self.vocab_size, self.model_length, self.causal = vocab_size, model_length, causal
        self.hidden_dim, self.cond_dim, self.n_blocks, self.n_heads = hidden_dim, cond_dim, n_blocks, n_heads
        self.dropout = dropout
        more.pop("tie_word_embeddings", None)
        super().__init__(tie_word_embeddings=False, **more)
        if hidden_dim % (2 * n_heads):
            raise ValueError(f"hidden_dim={hidden_dim} must be a multiple of 2 n_heads = {2 * n_heads}")

    @property
    def max_position_embeddings(self) -> int:
        """Rotary positions have no end; what it was trained with is what it is good for."""
        return self.model_length


class Table(nn.Module):
    """Embeddings, under the released name."""

    def __init__(self, vocab_size: int, dim: int) -> None:
        """Kaiming-uniform rows."""
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocab_size, dim))

    @property
    def weight(self) -> Tensor:
        """[V, D]."""
        return self.embedding

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [B, L] -> [B, L, D]."""
        return F.embedding(tokens, self.embedding)


class Silent(nn.Linear):
    """A linear map that begins at zero."""


class Sigma(nn.Module):
    """What is made of the noise level."""

    def __init__(self, dim: int) -> None:
        """Two layers."""
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, sigma: Tensor) -> Tensor:
        """[B] -> [B, dim]."""
        half = FREQUENCIES // 2
        rate = torch.exp(-math.log(10_000) * torch.arange(half, device=sigma.device, dtype=torch.float32) / half)
        angle = sigma.float()[:, None] * rate
        return F.silu(self.mlp(torch.cat([angle.cos(), angle.sin()], -1)))


class Rotary(nn.Module):
    """Cosines and sines of the positions."""

    def __init__(self, dim: int) -> None:
        """The buffer is there for its name in released weights; what is used is made anew, in full precision."""
        super().__init__()
        self.dim = dim
        self.register_buffer("inv_freq", self.rates(torch.device("cpu")))

    def rates(self, device: torch.device) -> Tensor:
        """float32 [dim / 2]."""
        return 10_000 ** -(torch.arange(0, self.dim, 2, device=device, dtype=torch.float32) / self.dim)

    def forward(self, begin: int, end: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Of positions begin..end - 1, each [end - begin, dim]."""
        angle = torch.arange(begin, end, device=device, dtype=torch.float32)[:, None] * self.rates(device)
        angle = torch.cat([angle, angle], -1)
        return angle.cos(), angle.sin()


def rotate(x: Tensor, place: tuple[Tensor, Tensor]) -> Tensor:
    """[B, heads, L, dim], halves turned against each other."""
    first, second = x.chunk(2, -1)
    cos, sin = (part.to(x.dtype) for part in place)
    return x * cos + torch.cat([-second, first], -1) * sin


class Norm(nn.Module):
    """LayerNorm without a bias, in float32."""

    def __init__(self, dim: int) -> None:
        """Ones."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D]."""
        return F.layer_norm(x.float(), self.weight.shape) * self.weight


class Block(nn.Module):
    """Attention and an MLP, each normalised, shifted, scaled and gated by the condition (if there is one)."""

    def __init__(self, config: DitConfig) -> None:
        """One layer."""
        super().__init__()
        dim = config.hidden_dim
        self.heads, self.dropout, self.causal = config.n_heads, config.dropout, config.causal
        self.norm1 = Norm(dim)
        self.attn_qkv, self.attn_out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.norm2 = Norm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))
        if not config.causal:
            self.adaLN_modulation = Silent(config.cond_dim, 6 * dim)

    def forward(
        self,
        x: Tensor,
        condition: Tensor | None,
        place: tuple[Tensor, Tensor],
        mask: Tensor | None,
        before: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """[B, L, D] -> the same, and its keys and values.

        Args:
            x: the layer's input.
            condition: [B, cond_dim], or None.
            place: cosines and sines of the positions.
            mask: bool, broadcastable to [B, heads, L, seen + L]; None: everything, or of a causal one what is before.
            before: keys and values of what was seen before.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = (0, 0, 1, 0, 0, 1)
        if condition is not None:
            shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition)[:, None].chunk(6, -1)
        q, k, v = self.attn_qkv(self.norm1(x) * (1 + scale1) + shift1).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        q, k = rotate(q, place), rotate(k, place)
        if before is not None:
            k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
        whole = self.causal and mask is None
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=whole)
        attended = self.attn_out(attended.transpose(1, 2).flatten(2))
        x = x + gate1 * F.dropout(attended, self.dropout, self.training)
        inner = self.mlp(self.norm2(x) * (1 + scale2) + shift2)
        return x + gate2 * F.dropout(inner, self.dropout, self.training), (k, v)


class Output(nn.Module):
    """The last normalisation, and the logits."""

    def __init__(self, config: DitConfig) -> None:
        """The head is untied."""
        super().__init__()
        self.norm_final = Norm(config.hidden_dim)
        self.linear = Silent(config.hidden_dim, config.vocab_size)
        if not config.causal:
            self.adaLN_modulation = Silent(config.cond_dim, 2 * config.hidden_dim)

    def modulate(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """[B, L, D], what the head is applied to."""
        shift, scale = (0, 0) if condition is None else self.adaLN_modulation(condition)[:, None].chunk(2, -1)
        return self.norm_final(x) * (1 + scale) + shift


class Dit(nn.Module):
    """The released `backbone`."""

    def __init__(self, config: DitConfig) -> None:
        """All layers."""
        super().__init__()
        self.vocab_embed = Table(config.vocab_size, config.hidden_dim)
        if not config.causal:
            self.sigma_map = Sigma(config.cond_dim)
        self.rotary_emb = Rotary(config.hidden_dim // config.n_heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_blocks))
        self.output_layer = Output(config)
        self.causal = config.causal

    def forward(
        self, tokens: Tensor, sigma: Tensor, attended: Tensor | None, cache: Cache = None
    ) -> tuple[Tensor, Cache]:
        """int64 [B, L], [B], bool [B, L] -> hidden states [B, L, D] ready for the head, and the next cache."""
        condition = None if self.causal else self.sigma_map(sigma)
        seen = 0 if cache is None else cache[0][0].shape[2]
        place = self.rotary_emb(seen, seen + tokens.shape[1], tokens.device)
        mask = None
        if self.causal and seen:
            mask = torch.ones(tokens.shape[1], seen + tokens.shape[1], dtype=torch.bool, device=tokens.device).tril(
                seen
            )
        elif not self.causal and attended is not None and not bool(attended.all()):
            mask = attended[:, None, None]
        x, following = self.vocab_embed(tokens), []
        for i, block in enumerate(self.blocks):
            x, held = block(x, condition, place, mask, None if cache is None else cache[i])
            following.append(held)
        return self.output_layer.modulate(x, condition), following


class DitNetwork(PreTrainedModel):
    """Saved as transformers save: config.json, model.safetensors with names that begin with `backbone`."""

    config_class = DitConfig
    base_model_prefix = "backbone"
    _supports_sdpa = True

    def __init__(self, config: DitConfig) -> None:
        """Fresh weights, as released: modulation and head begin at zero."""
        super().__init__(config)
        self.backbone = Dit(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        from transformers import initialization as init  # which leaves alone what was loaded

        if isinstance(module, Table):
            init.uniform_(
                module.embedding, -math.sqrt(3 / module.embedding.shape[1]), math.sqrt(3 / module.embedding.shape[1])
            )
        elif isinstance(module, Norm):
            init.ones_(module.weight)
        elif isinstance(module, Rotary):
            init.copy_(module.inv_freq, module.rates(module.inv_freq.device))
        elif isinstance(module, Silent):
            init.zeros_(module.weight)
            init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        """The table."""
        return self.backbone.vocab_embed

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.backbone.output_layer.linear

    def forward(self, input_ids: Tensor, timesteps: Tensor | None = None) -> Tensor:
        """int64 [B, L], sigma [B] -> logits [B, L, V]."""
        sigma = torch.zeros_like(input_ids[:, 0]) if timesteps is None else timesteps
        return self.get_output_embeddings()(self.backbone(input_ids, sigma, None)[0])


AutoConfig.register(DitConfig.model_type, DitConfig)
AutoModelForMaskedLM.register(DitConfig, DitNetwork)
AutoModelForCausalLM.register(DitConfig, DitNetwork)


class DitDenoiser(nn.Module):
    """Behind `process.Denoiser`, as `BertDenoiser` is; told the time by its modulation, if at all."""

    head, time, row_capacity, only_sdpa = (), None, 0, True

    def __init__(self, network: DitNetwork, time_conditioning: str = "none") -> None:
        """Wrap a network.

        Raises:
            UserError: if it is to be told the time in a way it does not know.
        """
        super().__init__()
        if time_conditioning not in ("none", "layerwise") or (network.config.causal and time_conditioning != "none"):
            raise UserError(
                f"time_conditioning={time_conditioning!r}: this network is told sigma in its layers, or not at all"
            )
        self.network, self.time_conditioning = network, time_conditioning
        self.time_conditioned = time_conditioning != "none"
        self.autocast: AbstractContextManager = nullcontext()
        self.vocab_size, self.max_length = network.config.vocab_size, network.config.model_length

    @property
    def body(self) -> Dit:
        """All of it but its vocabulary head; the head is in it, and is only called by `decode`."""
        return self.network.backbone

    @property
    def layers(self) -> list[nn.Module]:
        """Its layers."""
        return list(self.network.backbone.blocks)

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [B, L], sigma [B], bool [B, L] -> hidden states [B, L, D]."""
        with self.autocast:
            return self.body(xt, t if self.time_conditioned else torch.zeros_like(xt[:, 0]), attention_mask)[0]

    def extend(self, tokens: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Of a causal network: tokens [B, n], the cache of those before -> hidden states [B, n, D], the next cache."""
        with self.autocast:
            return self.body(tokens, torch.zeros_like(tokens[:, 0]), None, cache)

    def decode(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> logits [..., V]."""
        with self.autocast:
            return self.network.get_output_embeddings()(hidden)

    def pack_rows(self, capacity: int) -> None:
        """Refuses packing, which this network does not know.

        Raises:
            UserError: if it is asked for.
        """
        if capacity:
            raise UserError("packing=true: MDLM's network does not keep the sentences of a row apart; use --max_tokens")

    def num_slots(self, attention_mask: Tensor) -> int:
        """How many positions the network runs over for such a batch."""
        return attention_mask.numel()
