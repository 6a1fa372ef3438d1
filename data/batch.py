"""A batch of sentences: token ids, attention mask, and masks of the noised and scored tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Batch:
    """Sentences padded to one length. Conditioning is part of the data: tokens outside `target_mask` are given."""

    input_ids: Tensor
    """int64 [B, L], clean tokens x0, special tokens included."""
    attention_mask: Tensor
    """bool [B, L], True where a token may be attended to."""
    target_mask: Tensor
    """bool [B, L], True where a token is noised and scored: all text, or the target side of a pair."""
    noised_mask: Tensor | None = None
    """bool [B, L], True where a token is noised, scored or not (MDLM's [PAD]s); None: targets only."""

    @property
    def noised(self) -> Tensor:
        """Noised tokens, bool [B, L]."""
        return self.target_mask if self.noised_mask is None else self.noised_mask

    def to(self, device: torch.device) -> "Batch":
        """Return this batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def rows(self, chosen: slice | Tensor | tuple) -> "Batch":
        """Select sentences, or with a pair of indices sentences and columns."""
        return self._each(lambda tensor: tensor[chosen])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(*(tensor if tensor is None else change(tensor) for tensor in vars(self).values()))


def collate(sentences: list[np.ndarray], tokenizer: PreTrainedTokenizerBase, width: int = 0) -> Batch:
    """Build rows [CLS] text [SEP] [PAD]... of `width` tokens (0: as the longest); the text alone is scored."""
    lengths = torch.tensor([len(sentence) for sentence in sentences])
    input_ids = torch.full((len(sentences), width or int(lengths.max()) + 2), tokenizer.pad_token_id)
    input_ids[:, 0] = tokenizer.cls_token_id
    for row, sentence in enumerate(sentences):
        input_ids[row, 1 : len(sentence) + 1] = torch.from_numpy(np.asarray(sentence, dtype=np.int64))
        input_ids[row, len(sentence) + 1] = tokenizer.sep_token_id
    position = torch.arange(input_ids.shape[1])
    target_mask = (position >= 1) & (position <= lengths[:, None])
    return Batch(input_ids, position <= lengths[:, None] + 1, target_mask)
