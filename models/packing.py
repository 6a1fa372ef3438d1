"""Packing of several sentences into one row of a network, with the results of one sentence per row.

    [CLS] a b [SEP] [PAD] [PAD]          [CLS] a b [SEP] [CLS] c [SEP] ...      positions 0 1 2 3 0 1 2
    [CLS] c [SEP] [PAD] [PAD] [PAD]  ->  each token attends to its own sentence only

Only the network sees packed rows. A process passes one sentence per row and receives one sentence per row, so its
formulas do not depend on packing.
"""

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask


class PackedRows:
    """Layout of a padded batch in R rows of C slots. Sentences keep their order; each row takes as many as fit."""

    def __init__(self, attention_mask: Tensor, capacity: int) -> None:
        """Lay out a batch.

        Args:
            attention_mask: bool [B, L]; only attended positions get a slot.
            capacity: slots of a row; raised to L where L is larger.
        """
        self.attention_mask, device = attention_mask, attention_mask.device
        self.capacity = max(capacity, attention_mask.shape[1])
        starts, self.num_rows = next_fit(attention_mask.sum(1).tolist(), self.capacity)
        slot = torch.tensor(starts, device=device)[:, None] + attention_mask.cumsum(1) - 1
        self.slots = slot[attention_mask]
        """int64 [n], slot of each attended token, counted over all rows."""
        sentence = torch.arange(1, len(starts) + 1, device=device)[:, None].expand_as(attention_mask)
        self.sentence = self.fill(sentence)
        """int64 [R, C], sentence number of each slot, from 1; 0: empty."""
        self.position = self.fill(torch.arange(attention_mask.shape[1], device=device).expand_as(attention_mask))
        """int64 [R, C], position within the sentence."""

    def fill(self, values: Tensor) -> Tensor:
        """Map [B, L, ...] to [R, C, ...], with 0 in empty slots."""
        slots = values.new_zeros(self.num_rows * self.capacity, *values.shape[2:])
        filled = slots.index_copy(0, self.slots, values[self.attention_mask])
        return filled.unflatten(0, (self.num_rows, self.capacity))

    def restore(self, hidden: Tensor) -> Tensor:
        """Map [R, C, D] to [B, L, D], with 0 at positions that are not attended to."""
        flat = hidden.flatten(0, 1).index_select(0, self.slots)
        padded = flat.new_zeros(self.attention_mask.numel(), flat.shape[-1])
        return padded.index_copy(0, self.attention_mask.flatten().nonzero()[:, 0], flat).unflatten(
            0, self.attention_mask.shape
        )

    def block_mask(self, config: PretrainedConfig, dtype: torch.dtype) -> object:
        """Return the block-diagonal mask in the form that the network's attention takes.

        Blocks are compared by sentence number, not by length, so neighbours of equal length are separated too. Empty
        slots attend to each other, so that no softmax is over an empty set.
        """
        sentence = self.sentence

        def same_sentence(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return sentence[b, q] == sentence[b, k]

        like = torch.empty(self.num_rows, self.capacity, 1, dtype=dtype, device=sentence.device)
        settings = {"config": config, "inputs_embeds": like, "attention_mask": None, "and_mask_function": same_sentence}
        full = create_bidirectional_mask(**settings)
        if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
            return full
        return {"full_attention": full, "sliding_attention": create_bidirectional_sliding_window_mask(**settings)}


def num_slots(attention_mask: Tensor, capacity: int) -> int:
    """Return the number of positions a network computes for a batch; capacity 0 means one sentence per row."""
    if not capacity:
        return attention_mask.numel()
    capacity = max(capacity, attention_mask.shape[1])
    return capacity * next_fit(attention_mask.sum(1).tolist(), capacity)[1]


def next_fit(widths: list[int], capacity: int) -> tuple[list[int], int]:
    """Fill rows in order; return each sentence's first slot, and the number of rows."""
    starts, row, used = [], 0, 0
    for width in widths:
        if used + width > capacity:
            row, used = row + 1, 0
        starts.append(row * capacity + used)
        used += width
    return starts, row + 1
