"""A network over noisy embeddings as a denoiser; token embeddings lie on a sphere."""

import torch
from torch import Tensor, nn

from models.denoiser import NetworkDenoiser
from models.packing import PackedRows
from models.score_lm import Body, ScoreLmNetwork, to_sphere
from models.time_warp import TimeWarp
from utils.errors import UserError


class ScoreDenoiser(NetworkDenoiser):
    """Denoiser over noisy embeddings; its time input is the noise level of every position."""

    head, fixed_attention = ("head",), True
    embedding_start = 1.0  # only the direction of an embedding matters, and a short vector turns faster

    def __init__(self, network: ScoreLmNetwork) -> None:
        """Wrap a network."""
        super().__init__(network, "layerwise")
        self.embedding_size, self.self_conditioning = network.config.embedding_size, network.config.self_conditioning

    @property
    def max_length(self) -> int:
        """Longest sentence in tokens, special tokens included."""
        return self.network.config.max_position_embeddings

    @property
    def body(self) -> Body:
        """The network without embedding table and vocabulary head."""
        return self.network.body

    @property
    def layers(self) -> list[nn.Module]:
        """The network's layers, in order."""
        return list(self.network.body.layers)

    @property
    def warp(self) -> TimeWarp | None:
        """The learned distribution of noise levels; None without time warping."""
        return self.network.warp

    def embed(self, tokens: Tensor) -> Tensor:
        """Map int64 [...] to embeddings float32 [..., E] of norm sqrt(E)."""
        return to_sphere(self.network.embedding(tokens).float())

    def table(self) -> Tensor:
        """Return the embeddings of all tokens, float32 [V, E]."""
        return to_sphere(self.network.embedding.weight.float())

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor, previous: Tensor | None = None) -> Tensor:
        """Return hidden states [B, L, D].

        Args:
            xt: embeddings [B, L, E], scaled by c_in; or tokens without noise, int64 [B, L].
            t: noise levels sigma, [B, L]; or one per row, [B].
            attention_mask: bool [B, L].
            previous: previous estimate of the clean embeddings for self-conditioning, [B, L, E]; None: 0.
        """
        xt = xt if xt.is_floating_point() else self.embed(xt)
        sigma = t if t.ndim == 2 else t[:, None].expand(attention_mask.shape)
        if self.self_conditioning and previous is None:
            previous = torch.zeros_like(xt)  # every weight then receives a gradient in every step
        with self.autocast:
            if self.row_capacity:
                return self._encode_packed(xt, sigma, PackedRows(attention_mask, self.row_capacity), previous)
            mask = None if bool(attention_mask.all()) else attention_mask[:, None, None]
            position = torch.arange(xt.shape[1], device=xt.device)[None]
            return self.body(xt, sigma, mask, position, previous)

    def _encode_packed(self, xt: Tensor, sigma: Tensor, packed: PackedRows, previous: Tensor | None) -> Tensor:
        same_sentence = packed.sentence[:, None, :, None] == packed.sentence[:, None, None, :]
        previous = None if previous is None else packed.fill(previous)
        return packed.restore(self.body(packed.fill(xt), packed.fill(sigma), same_sentence, packed.position, previous))

    def decode(self, hidden: Tensor) -> Tensor:
        """Map hidden states [..., D] to logits [..., V]."""
        with self.autocast:
            return self.network.head(hidden)


def as_score_denoiser(network: nn.Module, time_conditioning: str) -> ScoreDenoiser:
    """Wrap a network over embeddings as its denoiser.

    Raises:
        UserError: if it is a network over tokens, or does not support the time conditioning.
    """
    if not isinstance(network, ScoreLmNetwork):
        raise UserError(
            f"{type(network).__name__} takes tokens, and process=score needs a network over embeddings; use "
            "--from_scratch true with the preset score-lm or score-lm-small, or a checkpoint of process=score"
        )
    if time_conditioning == "token":
        raise UserError("time_conditioning=token: a score network takes the noise level of each position; leave it out")
    return ScoreDenoiser(network)
