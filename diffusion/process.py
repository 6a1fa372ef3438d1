"""Base class of every process: its vocabulary, and the three methods that scripts call: loss, bound and sample.

Letters: B sentences in a batch, L tokens in a sentence, V entries in the vocabulary, T noise steps, D hidden units, E
embedding size. A process uses a network only through `Denoiser`; the networks (models/) do not depend on the process.
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
    """The tokens that a clean text may contain."""

    size: int
    """V, rows of the network's output."""
    mask_id: int
    """[MASK], which occurs in no clean text."""
    excluded_ids: tuple[int, ...] = ()
    """Tokens that cannot be a clean target; p_theta gives them, and [MASK], probability 0."""
    unsampled_ids: tuple[int, ...] = ()
    """Tokens that are scored but never sampled ([UNK])."""


@dataclass(frozen=True)
class Loss:
    """Sums and counts of one batch, never means: the sums of a whole training step are divided once."""

    total: Tensor
    """Scalar to back-propagate, in nats summed over target tokens."""
    num_tokens: Tensor
    """Scalar int64, target tokens in the batch."""
    terms: dict[str, Tensor]
    """Detached scalar sums for the log, nats."""


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
    """Forward passes per sentence; not a term of the bound."""

    @property
    def total(self) -> Tensor:
        """[B], nats per sentence."""
        return self.prior + self.diffusion + self.reconstruction


class Denoiser(Protocol):
    """Network p_theta(x0 | xt), split in two so that the vocabulary head runs only where it is needed."""

    time_conditioned: bool
    """True if the output depends on t."""

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """Map xt int64 [B, L], time input [B] and attention mask bool [B, L] to hidden states [B, L, D]."""
        ...

    def decode(self, hidden: Tensor) -> Tensor:
        """Map hidden states [..., D] to logits [..., V], which the caller may modify."""
        ...


def encode_at(denoiser: Denoiser, xt: Tensor, t: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
    """Return hidden states [B, L, D] that are right at `positions`, bool [B, L], and arbitrary elsewhere.

    A denoiser whose class has a method of this name computes less there; others compute all positions.
    """
    # a wrapper whose class lacks the method would pass it on to what it wraps
    if not hasattr(type(denoiser), "encode_at"):
        return denoiser.encode(xt, t, attention_mask)
    return denoiser.encode_at(xt, t, attention_mask, positions)


class ScoreDenoiser(Denoiser, Protocol):
    """Network over embeddings; see models/score_denoiser.py."""

    embedding_size: int
    self_conditioning: bool
    warp: object | None

    def embed(self, tokens: Tensor) -> Tensor:
        """Map tokens int64 [...] to embeddings [..., E]."""

    def table(self) -> Tensor:
        """Return the embeddings of the vocabulary, [V, E]."""

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor, previous: Tensor | None = None) -> Tensor:
        """Map scaled noisy embeddings [B, L, E], levels [B, L] and attention mask [B, L] to hidden states [B, L, D]."""


StepCallback = Callable[[Tensor, Tensor], None]
"""Callback on_step(finished, xt) after each forward pass: finished rows int64 [n], and all rows int64 [N, L].

Rows without a target are not reported. xt is the sampler's own tensor: copy it to keep it.
"""


class Process(ABC):
    """Process over text. Subclasses define the loss, `_bound` and `_sample`."""

    num_steps: float
    """T; infinite in continuous time."""
    samplers: tuple[str, ...] = ()
    """Names that --sampler accepts besides auto; auto selects the first."""
    estimators: tuple[str, ...] = ()
    """Names that --estimator accepts with a finite number of steps."""
    limit_estimators: tuple[str, ...] = ()
    """Names that --estimator accepts in the limit of ever finer steps, num_steps=inf."""
    limit_estimator = "masked-count"
    """Estimator that --estimator auto selects in the limit of ever finer steps."""
    starts_at_unigram = True
    """Whether a new vocabulary head starts at log p(w)."""
    is_bound = True
    """False if `bound` estimates a figure that is not an upper bound of -log p(x0)."""
    tables: tuple[str, ...] = ("barred", "sampling_support")
    """Tensors that move with the network."""

    def __init__(self, vocabulary: Vocabulary, *, fused_loss: bool = False) -> None:
        """Make the tables over the vocabulary.

        Args:
            vocabulary: tokens that may be predicted and sampled.
            fused_loss: compute the loss's logits a few sentences at a time, and recompute them for the gradient.
        """
        self.vocabulary, self.fused_loss = vocabulary, fused_loss
        self.vocab_size, self.mask_id = vocabulary.size, vocabulary.mask_id
        self.barred = torch.tensor([vocabulary.mask_id, *vocabulary.excluded_ids])
        self.sampling_support = self.support.clone()
        self.sampling_support[list(vocabulary.unsampled_ids)] = -math.inf

    def predicted_counts(self, token_counts: Tensor, num_texts: int) -> Tensor:
        """Return how often the process predicts each token in the training text, [V]; by default `token_counts`."""
        return token_counts

    @property
    def token_dependent(self) -> bool:
        """True if the noise depends on the token."""
        return False

    @property
    def support(self) -> Tensor:
        """[V], 0 for tokens that may be predicted and -inf for the others; to be added to logits."""
        zeros = torch.zeros(self.vocab_size, device=self.barred.device)
        return zeros.index_fill(0, self.barred, -math.inf)

    def within_support(self, logits: Tensor) -> Tensor:
        """Return logits [n, V] in float32 or more, -inf for barred tokens; the input may be changed in place."""
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
        """Return an unbiased training loss of the batch, which is `share` of a training step."""

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
            num_steps: reverse steps of the process whose likelihood is bounded; inf: the limit of ever finer steps.
            args: the estimator and its number of evaluations.
            generator: one stream per sentence, or one for all.

        Raises:
            UserError: for a number of steps or an estimator that this process or network does not support.
        """
        return self._bound(denoiser, batch, num_steps, args, generator)

    @abstractmethod
    def _bound(
        self, denoiser: Denoiser, batch: Batch, num_steps: float, args: BoundArgs, generator: Generators
    ) -> Bound: ...

    def profile_names(self, denoiser: Denoiser) -> list[str]:
        """Return the names of the additional figures that `profile` returns."""
        return []

    def profile(self, denoiser: Denoiser, batch: Batch, generator: Generators) -> Tensor:
        """Return additional figures, summed over each sentence's targets, float64 [number of names, B], nats."""
        raise NotImplementedError

    def network_figures(self, denoiser: Denoiser) -> dict[str, float]:
        """Return the figures of the report that depend on the network alone."""
        return {}

    # ---- sampling ------------------------------------------------------------------------------------------------

    @abstractmethod
    def check_sampling(self, args: SampleArgs) -> None:
        """Refuse settings that this process cannot sample with.

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
        """Sample every target token, given the rest, int64 [N, L]; no leftover masks.

        Args:
            denoiser: the network.
            batch: N rows, sorted by similar length.
            args: sampler, steps, temperature, top-k, top-p.
            rows_at_once: rows in a forward pass; 0: all.
            generator: one stream per row, or one for all.
            on_step: called after each forward pass.

        Raises:
            UserError: see `check_sampling`.
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
