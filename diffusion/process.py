"""The base of every process: its vocabulary, and the three verbs that scripts call: loss, bound and sample.

Letters: B sentences in a batch, L tokens in a sentence, V entries in the vocabulary, T noise steps, D hidden units.
A process knows a network only as a `Denoiser`; a network (models/) knows nothing of noise.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from data.batch import Batch
from diffusion.draws import WHOLE, Generators, Share
from diffusion.options import EVERY_WINDOW, BoundArgs, SampleArgs


@dataclass(frozen=True)
class Vocabulary:
    """Which tokens a clean text may hold."""

    size: int
    """V, rows of the network's output."""
    mask_id: int
    """[MASK], which no clean text holds."""
    excluded_ids: tuple[int, ...] = ()
    """Tokens that cannot be a clean target; p_theta gives them, and [MASK], probability 0."""
    unsampled_ids: tuple[int, ...] = ()
    """Tokens that are scored but never drawn ([UNK])."""


@dataclass(frozen=True)
class Loss:
    """Sums and counts of one batch, never means: the whole step is divided once."""

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
    """Forward passes per sentence; no part of the bound."""

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
"""on_step(finished, xt), called after each forward: the rows that it finished, int64 [n], and all rows, int64 [N, L].

Rows without a target are not reported. xt is the sampler's own: copy what is to be kept.
"""


class Process(ABC):
    """A process over text. Subclasses define the loss, `_bound` and `_sample`."""

    num_steps: float
    """T; infinite in continuous time."""
    samplers: tuple[str, ...] = ()
    """What --sampler may name besides auto; auto is the first."""
    estimators: tuple[str, ...] = ()
    """What --estimator may name at a number of steps."""
    limit_estimator = "masked-count"
    """What --estimator auto stands for in the limit of ever finer steps."""
    is_bound = True
    """Whether the figure that `bound` estimates is an upper bound of -log p(x0)."""
    tables: tuple[str, ...] = ("barred", "sampling_support")
    """Tensors that move with the network."""

    def __init__(self, vocabulary: Vocabulary, *, fused_loss: bool = False) -> None:
        """Make the tables over the vocabulary.

        Args:
            vocabulary: which tokens may be predicted, and which drawn.
            fused_loss: make the loss's logits a few sentences at a time, and again for the gradient, instead of
                keeping them.
        """
        self.vocabulary, self.fused_loss = vocabulary, fused_loss
        self.vocab_size, self.mask_id = vocabulary.size, vocabulary.mask_id
        self.barred = torch.tensor([vocabulary.mask_id, *vocabulary.excluded_ids])
        self.sampling_support = self.support.clone()
        self.sampling_support[list(vocabulary.unsampled_ids)] = -math.inf

    @property
    def token_dependent(self) -> bool:
        """Whether the noise depends on the token."""
        return False

    @property
    def support(self) -> Tensor:
        """[V], 0 where a token may be predicted, else -inf: to be added to logits."""
        zeros = torch.zeros(self.vocab_size, device=self.barred.device)
        return zeros.index_fill(0, self.barred, -math.inf)

    def within_support(self, logits: Tensor) -> Tensor:
        """Return logits [n, V] in float32 at least, -inf where nothing may be predicted; the input is changed."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.index_fill_(1, self.barred, -math.inf)

    def to(self, device: torch.device) -> "Process":
        """Move the tables; returns self."""
        for name in self.tables:
            setattr(self, name, getattr(self, name).to(device))
        return self

    # ---- loss ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def loss(
        self, denoiser: Denoiser, batch: Batch, *, generator: Generator | None = None, share: Share = WHOLE
    ) -> Loss:
        """An unbiased training loss of the batch, which is `share` of a step."""

    # ---- bound ---------------------------------------------------------------------------------------------------

    def bound(
        self,
        denoiser: Denoiser,
        batch: Batch,
        num_steps: float,
        args: BoundArgs = EVERY_WINDOW,
        *,
        generator: Generators = None,
    ) -> Bound:
        """Estimate the terms of the likelihood bound, without bias.

        Args:
            denoiser: the network.
            batch: B sentences.
            num_steps: reverse steps of the process whose likelihood it is; inf: the limit of ever finer ones.
            args: the estimator and its price.
            generator: one stream for each sentence, or one for all.

        Raises:
            UserError: for a number of steps or an estimator that this process or network does not have.
        """
        return self._bound(denoiser, batch, num_steps, args, generator)

    def nll_bound(
        self,
        denoiser: Denoiser,
        batch: Batch,
        num_steps: float,
        args: BoundArgs = EVERY_WINDOW,
        *,
        generator: Generators = None,
    ) -> Tensor:
        """[B], nats per sentence: the sum of the terms of `bound`."""
        return self.bound(denoiser, batch, num_steps, args, generator=generator).total

    @abstractmethod
    def _bound(
        self, denoiser: Denoiser, batch: Batch, num_steps: float, args: BoundArgs, generator: Generators
    ) -> Bound: ...

    def profile_names(self, denoiser: Denoiser) -> list[str]:
        """Names of the further figures that `profile` gives."""
        return []

    def profile(self, denoiser: Denoiser, batch: Batch, generator: Generators) -> Tensor:
        """Further figures of a text, summed over each sentence's targets, float64 [number of names, B], nats."""
        raise NotImplementedError

    def network_figures(self, denoiser: Denoiser) -> dict[str, float]:
        """Figures for the report that depend on the network alone."""
        return {}

    # ---- sampling ------------------------------------------------------------------------------------------------

    @abstractmethod
    def check_sampling(self, args: SampleArgs) -> None:
        """Refuse settings that this process cannot be sampled with.

        Raises:
            UserError: with the remedy.
        """

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
        """Draw every target token anew, given the rest: int64 [N, L]; nothing is left masked.

        Args:
            denoiser: the network.
            batch: N rows, those of like length side by side.
            args: sampler, steps, temperature, top-k, top-p.
            rows_at_once: rows in a forward; 0: all.
            generator: one stream for each row, or one for all.
            on_step: called after each forward.

        Raises:
            UserError: as `check_sampling`.
        """
        self.check_sampling(args)
        return self._sample(denoiser, batch, args, rows_at_once, generator, on_step)

    @abstractmethod
    def _sample(
        self,
        denoiser: Denoiser,
        batch: Batch,
        args: SampleArgs,
        rows_at_once: int,
        generator: Generators,
        on_step: StepCallback | None,
    ) -> Tensor: ...
