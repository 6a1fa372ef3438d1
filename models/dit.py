"""MDLM's network: a diffusion transformer modulated by the noise level, or a causal transformer without modulation.

Names, shapes and arithmetic follow the released code (Sahoo et al. 2024, arXiv 2406.07524; after DiT, Peebles and Xie
2022), so that released weights load by name: pre-norm, rotary positions, GELU, untied output layer. Without time
conditioning the network is modulated as at sigma = 0.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel

from models.denoiser import NetworkDenoiser
from utils.errors import UserError

FREQUENCIES = 256
"""Number of sinusoids that encode sigma."""
Cache = list[tuple[Tensor, Tensor]] | None
"""Keys and values of every layer, each [B, heads, seen, D / heads]."""


class DitConfig(PretrainedConfig):
    """Configuration, with the released code's names and the sizes of its "small" model as defaults."""

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
        **base_settings: object,
    ) -> None:
        """Set the sizes; `base_settings` are those of PretrainedConfig."""
        self.vocab_size, self.model_length, self.causal = vocab_size, model_length, causal
        self.hidden_dim, self.cond_dim, self.n_blocks, self.n_heads = hidden_dim, cond_dim, n_blocks, n_heads
        self.dropout = dropout
        base_settings.pop("tie_word_embeddings", None)
        super().__init__(tie_word_embeddings=False, **base_settings)
        if hidden_dim % (2 * n_heads):
            raise ValueError(f"hidden_dim={hidden_dim} must be a multiple of 2 n_heads = {2 * n_heads}")

    @property
    def hidden_size(self) -> int:
        """Hidden units, under the name of other networks."""
        return self.hidden_dim

    @property
    def max_position_embeddings(self) -> int:
        """Length used in training; rotary positions themselves have no limit."""
        return self.model_length


class EmbeddingTable(nn.Module):
    """Token embeddings, with the released parameter name."""

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocab_size, dim))

    @property
    def weight(self) -> Tensor:
        """Embeddings [V, D]."""
        return self.embedding

    def forward(self, tokens: Tensor) -> Tensor:
        """Map int64 [B, L] to embeddings [B, L, D]."""
        return F.embedding(tokens, self.embedding)


class ZeroLinear(nn.Linear):
    """Linear map that is initialized to zero."""


class NoiseLevelEmbedding(nn.Module):
    """Sinusoids of sigma followed by a two-layer MLP."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, sigma: Tensor) -> Tensor:
        """Map sigma [B] to its embedding [B, dim]."""
        half = FREQUENCIES // 2
        rate = torch.exp(-math.log(10_000) * torch.arange(half, device=sigma.device, dtype=torch.float32) / half)
        angle = sigma.float()[:, None] * rate
        return F.silu(self.mlp(torch.cat([angle.cos(), angle.sin()], -1)))


class Rotary(nn.Module):
    """Cosines and sines of the rotary position embedding.

    The buffer `inv_freq` only matches the name in released weights; the forward pass recomputes it in full precision.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("inv_freq", self.rates(torch.device("cpu")))

    def rates(self, device: torch.device) -> Tensor:
        """Return the frequencies, float32 [dim / 2]."""
        return 10_000 ** -(torch.arange(0, self.dim, 2, device=device, dtype=torch.float32) / self.dim)

    def forward(self, begin: int, end: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of positions begin..end - 1, each [end - begin, dim]."""
        angle = torch.arange(begin, end, device=device, dtype=torch.float32)[:, None] * self.rates(device)
        angle = torch.cat([angle, angle], -1)
        return angle.cos(), angle.sin()


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the two halves of x [B, heads, L, dim] by the cosines and sines of `Rotary`."""
    first, second = x.chunk(2, -1)
    cos, sin = (part.to(x.dtype) for part in rotary)
    return x * cos + torch.cat([-second, first], -1) * sin


class Norm(nn.Module):
    """LayerNorm without a bias, in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x [..., D]."""
        return F.layer_norm(x.float(), self.weight.shape) * self.weight


class Block(nn.Module):
    """Attention and MLP, each normalized; the condition, if any, gives shift, scale and gate."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.heads, self.dropout, self.causal = config.n_heads, config.dropout, config.causal
        self.norm1 = Norm(dim)
        self.attn_qkv, self.attn_out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.norm2 = Norm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))
        if not config.causal:
            self.adaLN_modulation = ZeroLinear(config.cond_dim, 6 * dim)

    def forward(
        self,
        x: Tensor,
        condition: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cached: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the layer's output [B, L, D], and its keys and values.

        Args:
            x: input [B, L, D].
            condition: [B, cond_dim], or None.
            rotary: cosines and sines of the positions.
            mask: bool, broadcastable to [B, heads, L, seen + L]; None: full attention, or causal attention in a causal
                network.
            cached: keys and values of the positions before.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = (0, 0, 1, 0, 0, 1)
        if condition is not None:
            shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition)[:, None].chunk(6, -1)
        q, k, v = self.attn_qkv(self.norm1(x) * (1 + scale1) + shift1).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        q, k = rotate(q, rotary), rotate(k, rotary)
        if cached is not None:
            k, v = torch.cat([cached[0], k], 2), torch.cat([cached[1], v], 2)
        is_causal = self.causal and mask is None
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
        attended = self.attn_out(attended.transpose(1, 2).flatten(2))
        x = x + gate1 * F.dropout(attended, self.dropout, self.training)
        inner = self.mlp(self.norm2(x) * (1 + scale2) + shift2)
        return x + gate2 * F.dropout(inner, self.dropout, self.training), (k, v)


class Output(nn.Module):
    """Final normalization, and the untied vocabulary head."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.norm_final = Norm(config.hidden_dim)
        self.linear = ZeroLinear(config.hidden_dim, config.vocab_size)
        if not config.causal:
            self.adaLN_modulation = ZeroLinear(config.cond_dim, 2 * config.hidden_dim)

    def modulate(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Return the head's input [B, L, D]."""
        shift, scale = (0, 0) if condition is None else self.adaLN_modulation(condition)[:, None].chunk(2, -1)
        return self.norm_final(x) * (1 + scale) + shift


class Dit(nn.Module):
    """Embeddings, layers and output layer: the released `backbone`."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.vocab_embed = EmbeddingTable(config.vocab_size, config.hidden_dim)
        if not config.causal:
            self.sigma_map = NoiseLevelEmbedding(config.cond_dim)
        self.rotary_emb = Rotary(config.hidden_dim // config.n_heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_blocks))
        self.output_layer = Output(config)
        self.causal = config.causal

    def forward(
        self, tokens: Tensor, sigma: Tensor, attended: Tensor | None, cache: Cache = None
    ) -> tuple[Tensor, Cache]:
        """Map int64 [B, L], [B], bool [B, L] to the head's input [B, L, D], and return the extended cache."""
        condition = None if self.causal else self.sigma_map(sigma)
        seen = 0 if cache is None else cache[0][0].shape[2]
        rotary = self.rotary_emb(seen, seen + tokens.shape[1], tokens.device)
        mask = None
        if self.causal and seen:
            mask = torch.ones(tokens.shape[1], seen + tokens.shape[1], dtype=torch.bool, device=tokens.device).tril(
                seen
            )
        elif not self.causal and attended is not None and not bool(attended.all()):
            mask = attended[:, None, None]
        x, extended = self.vocab_embed(tokens), []
        for i, block in enumerate(self.blocks):
            x, keys_and_values = block(x, condition, rotary, mask, None if cache is None else cache[i])
            extended.append(keys_and_values)
        return self.output_layer.modulate(x, condition), extended


class DitNetwork(PreTrainedModel):
    """The network as a transformers model; parameter names begin with `backbone`."""

    config_class = DitConfig
    base_model_prefix = "backbone"
    _supports_sdpa = True

    def __init__(self, config: DitConfig) -> None:
        super().__init__(config)
        self.backbone = Dit(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        from transformers import initialization as init  # it leaves loaded tensors unchanged

        if isinstance(module, EmbeddingTable):
            init.uniform_(
                module.embedding, -math.sqrt(3 / module.embedding.shape[1]), math.sqrt(3 / module.embedding.shape[1])
            )
        elif isinstance(module, Norm):
            init.ones_(module.weight)
        elif isinstance(module, Rotary):
            init.copy_(module.inv_freq, module.rates(module.inv_freq.device))
        elif isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
            init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding table."""
        return self.backbone.vocab_embed

    def get_output_embeddings(self) -> nn.Module:
        """Return the vocabulary head."""
        return self.backbone.output_layer.linear

    def forward(self, input_ids: Tensor, timesteps: Tensor | None = None) -> Tensor:
        """Map int64 [B, L] and sigma [B] (default: 0) to logits [B, L, V]."""
        sigma = torch.zeros_like(input_ids[:, 0]) if timesteps is None else timesteps
        return self.get_output_embeddings()(self.backbone(input_ids, sigma, None)[0])


AutoConfig.register(DitConfig.model_type, DitConfig)
AutoModelForMaskedLM.register(DitConfig, DitNetwork)
AutoModelForCausalLM.register(DitConfig, DitNetwork)


class DitDenoiser(NetworkDenoiser):
    """MDLM's network as a denoiser; its time input, if any, is sigma."""

    fixed_attention = True

    def __init__(self, network: DitNetwork, time_conditioning: str = "none") -> None:
        """Wrap a network.

        Raises:
            UserError: if it does not support the time conditioning.
        """
        if time_conditioning not in ("none", "layerwise") or (network.config.causal and time_conditioning != "none"):
            raise UserError(
                f"time_conditioning={time_conditioning!r}: MDLM's network supports none, and layerwise if it is not "
                "causal; give one of these"
            )
        super().__init__(network, time_conditioning)

    def start_at_unigram(self, information: Tensor) -> None:
        """Leave the head at zero, as in MDLM."""

    @property
    def max_length(self) -> int:
        """Longest sentence in tokens, special tokens included."""
        return self.network.config.model_length

    @property
    def body(self) -> Dit:
        """The backbone; it contains the vocabulary head, which only `decode` calls."""
        return self.network.backbone

    @property
    def layers(self) -> list[nn.Module]:
        """The network's layers, in order."""
        return list(self.network.backbone.blocks)

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """Map int64 [B, L], sigma [B], bool [B, L] to hidden states [B, L, D]."""
        with self.autocast:
            return self.body(xt, t if self.time_conditioned else torch.zeros_like(xt[:, 0]), attention_mask)[0]

    def extend(self, tokens: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Return hidden states [B, n, D] of the next tokens [B, n] of a causal network, and the extended cache."""
        with self.autocast:
            return self.body(tokens, torch.zeros_like(tokens[:, 0]), None, cache)

    def decode(self, hidden: Tensor) -> Tensor:
        """Map hidden states [..., D] to logits [..., V]."""
        with self.autocast:
            return self.network.get_output_embeddings()(hidden)

    def pack_rows(self, capacity: int) -> None:
        """Refuse packing, which the network does not support.

        Raises:
            UserError: if capacity is not 0.
        """
        if capacity:
            raise UserError("packing=true: MDLM's network does not separate the sentences of a row; use --max_tokens")
