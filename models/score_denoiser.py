"""A network over noisy embeddings as a denoiser: tokens on their sphere, one sentence a row, or packed inside."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from models.packing import PackedRows, num_slots
from models.score_lm import Body, ScoreLmNetwork, to_sphere
from models.time_warp import TimeWarp
from utils.errors import UserError


class ScoreDenoiser(nn.Module):
    """A `process.ScoreDenoiser`; it is always told the noise level, of every position."""

    head, time, time_conditioning, time_conditioned, only_sdpa = ("head",), None, "layerwise", True, True

    def __init__(self, network: ScoreLmNetwork) -> None:
        """Wrap a network."""
        super().__init__()
        self.network, self.row_capacity = network, 0
        self.autocast: AbstractContextManager = nullcontext()  # the precision of the network alone, never of the maths
        self.vocab_size, self.max_length = network.config.vocab_size, network.config.max_position_embeddings
        self.embedding_size, self.self_conditioning = network.config.embedding_size, network.config.self_conditioning

    @property
    def body(self) -> Body:
        """The network without table and head."""
        return self.network.body

    @property
    def layers(self) -> list[nn.Module]:
        """Its layers."""
        return list(self.network.body.layers)

    @property
    def warp(self) -> TimeWarp | None:
        """The curve by which levels are drawn, if it learns one."""
        return self.network.warp

    def embed(self, tokens: Tensor) -> Tensor:
        """int64 [...] -> float32 [..., E], of length sqrt(E)."""
        return to_sphere(self.network.embedding(tokens).float())

    def table(self) -> Tensor:
        """Every token's, float32 [V, E]."""
        return to_sphere(self.network.embedding.weight.float())

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor, previous: Tensor | None = None) -> Tensor:
        """Hidden states [B, L, D].

        Args:
            xt: embeddings [B, L, E], scaled by c_in; or int64 [B, L], tokens without noise.
            t: noise levels sigma, [B, L]; or [B], of whole rows.
            attention_mask: bool [B, L].
            previous: an earlier estimate of the clean embeddings, [B, L, E]; None: 0, if the network is to know one.
        """
        xt = xt if xt.is_floating_point() else self.embed(xt)
        sigma = t if t.ndim == 2 else t[:, None].expand(attention_mask.shape)
        if self.self_conditioning and previous is None:
            previous = torch.zeros_like(xt)  # so that every weight has a part in every step
        with self.autocast:
            if self.row_capacity:
                return self._encode_packed(xt, sigma, PackedRows(attention_mask, self.row_capacity), previous)
            mask = None if bool(attention_mask.all()) else attention_mask[:, None, None]
            place = torch.arange(xt.shape[1], device=xt.device)[None]
            return self.body(xt, sigma, mask, place, previous)

    def _encode_packed(self, xt: Tensor, sigma: Tensor, packed: PackedRows, previous: Tensor | None) -> Tensor:
        own = packed.sentence[:, None, :, None] == packed.sentence[:, None, None, :]
        previous = None if previous is None else packed.fill(previous)
        return packed.restore(self.body(packed.fill(xt), packed.fill(sigma), own, packed.position, previous))

    def decode(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> logits [..., V]."""
        with self.autocast:
            return self.network.head(hidden)

    def pack_rows(self, capacity: int) -> None:
        """From here on lay several sentences side by side in rows of so many slots (0: one sentence a row)."""
        self.row_capacity = capacity

    def num_slots(self, attention_mask: Tensor) -> int:
        """How many positions the network runs over for such a batch."""
        return num_slots(attention_mask, self.row_capacity)


def as_score_denoiser(network: nn.Module, time_conditioning: str) -> ScoreDenoiser:
    """A network over embeddings behind its denoiser.

    Raises:
        UserError: if it is one over tokens, or is to be told the level in a way it does not know.
    """
    if not isinstance(network, ScoreLmNetwork):
        raise UserError(
            f"{type(network).__name__} reads tokens, and process=score needs a network over embeddings; use "
            "--from_scratch true with the preset score-lm or score-lm-small, or a checkpoint of process=score"
        )
    if time_conditioning == "token":
        raise UserError("time_conditioning=token: a score network is told the noise of every position; leave it out")
    return ScoreDenoiser(network)
