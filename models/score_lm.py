"""Network of the score-based diffusion LM: a transformer over noisy embeddings and the noise level of each position.

Pre-norm layers, RMSNorm scaled and shifted by an embedding of the noise level (FiLM), rotary positions, SwiGLU, torch's
own attention. After thorinf's score-based-diffusion-lm, which follows CDCD (Dieleman et al. 2022, arXiv 2211.15089). E
is the width of the embeddings, which lie on a sphere of radius sqrt(E); D is the width of the layers.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel
from transformers import initialization as init

from models.time_warp import TimeWarp


class ScoreLmConfig(PretrainedConfig):
    """Configuration; the defaults are the released sizes."""

    model_type = "score_lm"

    def __init__(
        self,
        vocab_size: int = 32_000,
        embedding_size: int = 256,
        hidden_size: int = 1024,
        num_hidden_layers: int = 8,
        num_attention_heads: int = 8,
        intermediate_size: int = 0,
        fourier_size: int = 128,
        film_size: int = 128,
        dropout: float = 0.1,
        rotary_base: float = 10_000.0,
        max_position_embeddings: int = 1024,
        self_conditioning: bool = False,
        time_warp: bool = False,
        **base_settings: object,
    ) -> None:
        """Set the sizes; `intermediate_size=0` means 4 * hidden_size, `base_settings` are those of PretrainedConfig."""
        self.vocab_size, self.embedding_size, self.hidden_size = vocab_size, embedding_size, hidden_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.intermediate_size = intermediate_size or 4 * hidden_size
        self.fourier_size, self.film_size = fourier_size, film_size
        self.dropout, self.rotary_base, self.max_position_embeddings = dropout, rotary_base, max_position_embeddings
        self.self_conditioning, self.time_warp = self_conditioning, time_warp
        base_settings.pop("tie_word_embeddings", None)
        super().__init__(tie_word_embeddings=False, **base_settings)
        sizes = (
            vocab_size,
            embedding_size,
            hidden_size,
            num_hidden_layers,
            num_attention_heads,
            film_size,
            fourier_size,
        )
        if min(sizes) < 1 or intermediate_size < 0 or not 0 <= dropout < 1 or not rotary_base > 0:
            raise ValueError(f"sizes must be 1 or more, dropout={dropout} in [0, 1), rotary_base={rotary_base} above 0")
        if hidden_size % (2 * num_attention_heads) or fourier_size % 2:
            raise ValueError(
                f"hidden_size={hidden_size} must be a multiple of 2 num_attention_heads = {2 * num_attention_heads}, "
                f"and fourier_size={fourier_size} even"
            )


class RmsNorm(nn.Module):
    """RMSNorm in float32, without weights; `eps` is added to the mean square."""

    def __init__(self, eps: float = 1e-4) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x [..., D]."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class ScalesAndShifts(nn.Linear):
    """Linear map whose output is initialized to scale 1 and shift 0 for every input."""


class Film(nn.Module):
    """RMSNorm, scaled and shifted by the condition of each position; `wf` outputs scales, then shifts."""

    def __init__(self, dim: int, film_size: int) -> None:
        super().__init__()
        self.norm, self.wf = RmsNorm(), ScalesAndShifts(film_size, 2 * dim)

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """Map x [B, L, D] and condition [B, L or 1, film_size] to [B, L, D]."""
        scale, shift = self.wf(film).chunk(2, -1)
        return self.norm(x) * scale + shift


class Fourier(nn.Module):
    """Fourier features at fixed random frequencies: x, then size / 2 sines and size / 2 cosines."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("frequency", torch.zeros(size // 2))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [...] to features [..., 1 + size]."""
        angle = 2 * math.pi * x[..., None].float() * self.frequency
        return torch.cat([x[..., None].float(), angle.sin(), angle.cos()], -1)


def rotary(position: Tensor, dim: int, base: float) -> Tensor:
    """Return cosines and sines of positions [..., L], float32 [..., L, dim / 2, 2]."""
    rate = base ** -(torch.arange(0, dim, 2, device=position.device, dtype=torch.float32) / dim)
    angle = position[..., None].float() * rate
    return torch.stack([angle.cos(), angle.sin()], -1)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate neighbouring pairs of x [B, heads, L, dim] by a rotation [B or 1, 1, L, dim / 2, 2] of `rotary`."""
    (first, second), (cos, sin) = x.unflatten(-1, (-1, 2)).unbind(-1), rotation.to(x.dtype).unbind(-1)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2)


class Block(nn.Module):
    """Attention and SwiGLU, each preceded by FiLM."""

    def __init__(self, config: ScoreLmConfig) -> None:
        super().__init__()
        dim, inner = config.hidden_size, config.intermediate_size
        self.heads, self.dropout = config.num_attention_heads, config.dropout
        self.attention_film, self.ffn_film = (Film(dim, config.film_size) for _ in range(2))
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.gate, self.up = nn.Linear(dim, inner, bias=False), nn.Linear(dim, inner, bias=False)
        self.down = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, film: Tensor, rotation: Tensor, mask: Tensor | None) -> Tensor:
        """Return the layer's output [B, L, D]; `mask` is bool, True where attended to, None for full attention."""
        q, k, v = self.qkv(self.attention_film(x, film)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(rotate(q, rotation), rotate(k, rotation), v, attn_mask=mask)
        x = x + F.dropout(self.out(attended.transpose(1, 2).flatten(2)), self.dropout, self.training)
        h = self.ffn_film(x, film)
        return x + F.dropout(self.down(F.silu(self.gate(h)) * self.up(h)), self.dropout, self.training)


class Body(nn.Module):
    """The network without embedding table and vocabulary head."""

    def __init__(self, config: ScoreLmConfig) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Linear(config.embedding_size, config.hidden_size, bias=False)
        if config.self_conditioning:
            self.project_previous = nn.Linear(config.embedding_size, config.hidden_size, bias=False)
        self.level = nn.Sequential(
            Fourier(config.fourier_size),
            nn.Linear(config.fourier_size + 1, config.film_size),
            nn.GELU(),
            nn.Linear(config.film_size, config.film_size),
            nn.GELU(),
        )
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RmsNorm()

    def forward(
        self, x: Tensor, sigma: Tensor, mask: Tensor | None, position: Tensor, previous: Tensor | None = None
    ) -> Tensor:
        """Return hidden states [B, L, D] for the head.

        The noise level enters as log(1 + sigma), which is 0 without noise and logarithmic at high noise.

        Args:
            x: noisy embeddings [B, L, E].
            sigma: noise levels [B, L or 1].
            mask: bool, True where attended to; None: full attention.
            position: int64 [B or 1, L].
            previous: previous estimate of the clean embeddings [B, L, E], for self-conditioning.
        """
        h = self.project(x)
        if previous is not None:
            h = h + self.project_previous(previous)
        film = self.level(torch.log1p(sigma.float()))
        heads, base = self.config.num_attention_heads, self.config.rotary_base
        rotation = rotary(position, self.config.hidden_size // heads, base)[:, None]
        for layer in self.layers:
            h = layer(h, film, rotation, mask)
        return self.norm(h)


class ScoreLmNetwork(PreTrainedModel):
    """The network as a transformers model."""

    config_class = ScoreLmConfig
    base_model_prefix = "body"
    _supports_sdpa = True

    def __init__(self, config: ScoreLmConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.body = Body(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.warp = TimeWarp() if config.time_warp else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ScalesAndShifts):
            init.zeros_(module.weight)
            init.copy_(module.bias, torch.tensor([1.0, 0.0]).repeat_interleave(module.out_features // 2))
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=0.001)  # only the direction matters, and a short vector turns faster
        elif isinstance(module, Fourier):
            init.normal_(module.frequency)
        elif isinstance(module, TimeWarp):
            module.reset()

    def get_input_embeddings(self) -> nn.Module:
        """Return the learned table before projection to the sphere (`ScoreDenoiser.table` projects it)."""
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        """Return the untied vocabulary head."""
        return self.head

    def forward(self, input_ids: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Return logits [B, L, V] of tokens int64 [B, L], whose embeddings are scaled for noise levels [B, L].

        No noise is added; the default level is 0.
        """
        sigma = torch.zeros(input_ids.shape, device=input_ids.device) if sigma is None else sigma
        position = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        x = to_sphere(self.embedding(input_ids)) / (sigma[..., None].square() + 1).sqrt()
        return self.head(self.body(x, sigma, None, position))


def to_sphere(x: Tensor) -> Tensor:
    """Scale x [..., E] to norm sqrt(E), so that its coordinates have mean square 1."""
    return F.normalize(x, dim=-1, eps=1e-20) * math.sqrt(x.shape[-1])


AutoConfig.register(ScoreLmConfig.model_type, ScoreLmConfig)
AutoModelForMaskedLM.register(ScoreLmConfig, ScoreLmNetwork)
