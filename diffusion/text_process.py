"""A process over texts: which tokens a clean one may hold, and so what a network's logits of the others are worth."""

import math

import torch
from torch import Tensor

from data.batch import Batch
from diffusion.draws import Generators
from diffusion.process import Denoiser, Process


class TextProcess(Process):
    """Tables over the vocabulary, on whatever device the network is."""

    in_the_limit = "masked-count"
    """What estimates the bound in continuous time, where there is no end of windows."""
    is_bound = True
    """Whether what `bound` estimates is one."""
    tables = ("barred", "sampling_support")
    """Tensors that move with the network."""

    def __init__(
        self,
        vocab_size: int,
        *,
        mask_id: int,
        excluded_ids: tuple[int, ...] = (),
        unsampled_ids: tuple[int, ...] = (),
    ) -> None:
        """What may be predicted.

        Args:
            vocab_size: V.
            mask_id: [MASK], which no clean text holds.
            excluded_ids: tokens that cannot be a clean target; p_theta gives them, and [MASK], probability 0.
            unsampled_ids: tokens that may be scored but are never drawn ([UNK]).
        """
        self.vocab_size, self.mask_id = vocab_size, mask_id
        self.barred = torch.tensor([mask_id, *excluded_ids])
        self.sampling_support = self.support.clone()
        self.sampling_support[list(unsampled_ids)] = -math.inf

    @property
    def support(self) -> Tensor:
        """[V], 0 for what may be predicted, -inf for what may not; added to logits it does what `within` does."""
        zeros = torch.zeros(self.vocab_size, device=self.barred.device)
        return zeros.index_fill(0, self.barred, -math.inf)

    def within(self, logits: Tensor) -> Tensor:
        """Logits [n, V], float32 at least, with -inf where nothing may be predicted; they are changed."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.index_fill_(1, self.barred, -math.inf)

    def profiled(self, denoiser: Denoiser) -> list[str]:
        """Names of further figures that a report is to hold."""
        return []

    def profile(self, denoiser: Denoiser, batch: Batch, generator: Generators) -> Tensor:
        """These, as sums over each sentence's targets, float64 [number of names, B] in nats."""
        raise NotImplementedError

    def about(self, denoiser: Denoiser) -> dict[str, float]:
        """Further figures for it that no text has a part in."""
        return {}

    def to(self, device: torch.device) -> "TextProcess":
        """Move the tables; returns self."""
        for name in self.tables:
            setattr(self, name, getattr(self, name).to(device))
        return self
