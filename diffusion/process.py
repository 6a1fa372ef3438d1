"""What every diffusion process shares: the data it sees, the network it calls, the numbers it returns.

Letters: B sentences in a batch, L tokens in a sentence, V entries in the vocabulary, T noise steps, D hidden units.
A process (diffusion_*.py) knows networks only as a `Denoiser`; a network (models/*.py) knows nothing of noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Generator, Tensor

from data.batch import Batch
from diffusion.draws import WHOLE, Generators, Share
from diffusion.options import EVERY_WINDOW, BoundArgs, SampleArgs


@dataclass(frozen=True)
class Loss:
    """Sums and counts of one batch, never means: dividing is left to whoever knows the whole step."""

    total: Tensor
    """Scalar to back-propagate, in nats summed over target tokens."""
    num_tokens: Tensor
    """Scalar int64, target tokens in the batch."""
    terms: dict[str, Tensor]
    """Detached scalar sums for the log, in nats."""


@dataclass(frozen=True)
class Bound:
    """The three terms of an upper bound of -log p(x0), each [B] in nats per sentence (D3PM, Eq. 1)."""

    prior: Tensor
    """KL(q(x_T | x0) || p(x_T)); zero whenever everything is masked at step T."""
    diffusion: Tensor
    """Sum of KL(q(x_s | x_t, x0) || p(x_s | x_t)) over the steps that end at s > 0."""
    reconstruction: Tensor
    """-log p(x0 | x_t) of the step that ends at s = 0."""
    forwards: Tensor
    """How often the network saw each sentence; no part of the bound."""

    @property
    def total(self) -> Tensor:
        """[B], nats per sentence."""
        return self.prior + self.diffusion + self.reconstruction


class Denoiser(Protocol):
    """A network p_theta(x0 | xt), split in two so that the vocabulary is touched only where it is needed."""

    time_conditioned: bool
    """Whether the output depends on t at all."""

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [B, L], int64 [B] in 1..T, bool [B, L] -> hidden states [B, L, D]."""
        ...

    def decode(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> logits [..., V], a tensor that the caller may change."""
        ...


class ScoreDenoiser(Denoiser, Protocol):
    """A network over embeddings, see models/score_denoiser.py."""

    embedding_size: int
    self_conditioning: bool
    warp: object | None

    def embed(self, tokens: Tensor) -> Tensor:
        """int64 [...] -> [..., E]."""

    def table(self) -> Tensor:
        """[V, E]."""

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor, previous: Tensor | None = None) -> Tensor:
        """Scaled noisy embeddings [B, L, E], levels [B, L], bool [B, L] -> hidden states [B, L, D]."""


StepCallback = Callable[[Tensor, Tensor], None]
"""on_step(finished, xt): after each forward, the rows that it finished, int64 [n], and how all stand, int64 [N, L].

Rows without a target are nobody's work and are not reported. xt is the sampler's own: copy what is to be kept.
"""


class Process(Protocol):
    """The verbs that scripts may call."""

    fused_loss: bool = False
    """Whether the loss makes logits a few sentences at a time, and again for the gradient, instead of keeping them."""

    def loss(
        self, denoiser: Denoiser, batch: Batch, *, generator: Generator | None = None, share: Share = WHOLE
    ) -> Loss:
        """An unbiased training loss of the batch, which is `share` of a step."""
        ...

    def bound(
        self,
        denoiser: Denoiser,
        batch: Batch,
        num_steps: int,
        args: BoundArgs = EVERY_WINDOW,
        *,
        generator: Generators = None,
    ) -> Bound:
        """The terms of the likelihood bound over `num_steps` reverse steps."""
        ...

    def nll_bound(
        self,
        denoiser: Denoiser,
        batch: Batch,
        num_steps: int,
        args: BoundArgs = EVERY_WINDOW,
        *,
        generator: Generators = None,
    ) -> Tensor:
        """[B], nats per sentence: an unbiased estimate of an upper bound of -log p_theta(x0) at `num_steps` steps."""
        return self.bound(denoiser, batch, num_steps, args, generator=generator).total

    def check_sampling(self, args: SampleArgs) -> None:
        """Refuses settings that it cannot be sampled with, before any work.

        Raises:
            UserError: with the remedy.
        """
        ...

    def sample(
        self,
        denoiser: Denoiser,
        batch: Batch,
        args: SampleArgs,
        *,
        rows_at_once: int = 0,
        generator: Generators = None,
        on_step: StepCallback | None = None,
    ) -> Tensor:
        """int64 [N, L]: the batch with every target token drawn anew, so many rows in a forward (0: all)."""
        ...
