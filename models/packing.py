"""Sentences side by side in one row of a network, as if each had the row to itself.

    [CLS] a b [SEP] [PAD] [PAD]          [CLS] a b [SEP] [CLS] c [SEP] ...      positions 0 1 2 3 0 1 2
    [CLS] c [SEP] [PAD] [PAD] [PAD]  ->  nobody attends outside the own sentence

Only the network's rows are packed: a process hands over one sentence a row and gets one sentence a row back, so every
formula reads the same with packing and without.
"""

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask


class PackedRows:
    """Where the tokens of a padded batch go. Sentences keep their order; a row ends where the next does not fit."""

    def __init__(self, attention_mask: Tensor, capacity: int) -> None:
        """Lay out a batch.

        Args:
            attention_mask: bool [B, L]; only these positions get a slot.
            capacity: slots in a row; a batch wider than that gets wider rows.
        """
        self.attention_mask, device = attention_mask, attention_mask.device
        self.capacity = max(capacity, attention_mask.shape[1])
        starts, self.num_rows = next_fit(attention_mask.sum(1).tolist(), self.capacity)
        place = torch.tensor(starts, device=device)[:, None] + attention_mask.cumsum(1) - 1
        self.slots = place[attention_mask]
        """int64 [n], the slot of each attended token, counted through all rows."""
        sentence = torch.arange(1, len(starts) + 1, device=device)[:, None].expand_as(attention_mask)
        self.sentence = self.fill(sentence)
        """int64 [R, C], whose slot it is; 0: nobody's."""
        self.position = self.fill(torch.arange(attention_mask.shape[1], device=device).expand_as(attention_mask))
        """int64 [R, C], place within the own sentence."""

    def fill(self, values: Tensor) -> Tensor:
        """[B, L, ...] -> [R, C, ...]; 0 where a slot is nobody's."""
        slots = values.new_zeros(self.num_rows * self.capacity, *values.shape[2:])
        filled = slots.index_copy(0, self.slots, values[self.attention_mask])
        return filled.unflatten(0, (self.num_rows, self.capacity))

    def restore(self, hidden: Tensor) -> Tensor:
        """[R, C, D] -> [B, L, D]; 0 at positions that are not attended to."""
        flat = hidden.flatten(0, 1).index_select(0, self.slots)
        padded = flat.new_zeros(self.attention_mask.numel(), flat.shape[-1])
        return padded.index_copy(0, self.attention_mask.flatten().nonzero()[:, 0], flat).unflatten(
            0, self.attention_mask.shape
        )

    def block_mask(self, config: PretrainedConfig, dtype: torch.dtype) -> object:
        """What keeps the sentences apart, in the form that the network's attention takes.

        By sentence, not by length or position: neighbours of equal length do not see each other either. Empty slots
        see each other, so that no row of a softmax is empty.
        """
        sentence = self.sentence

        def same(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return sentence[b, q] == sentence[b, k]

        like = torch.empty(self.num_rows, self.capacity, 1, dtype=dtype, device=sentence.device)
        settings = {"config": config, "inputs_embeds": like, "attention_mask": None, "and_mask_function": same}
        whole = create_bidirectional_mask(**settings)
        if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
            return whole
        return {"full_attention": whole, "sliding_attention": create_bidirectional_sliding_window_mask(**settings)}


def num_slots(attention_mask: Tensor, capacity: int) -> int:
    """Positions that a network runs over for such a batch, in packed rows of so many slots (0: one sentence a row)."""
    if not capacity:
        return attention_mask.numel()
    capacity = max(capacity, attention_mask.shape[1])
    return capacity * next_fit(attention_mask.sum(1).tolist(), capacity)[1]


def next_fit(widths: list[int], capacity: int) -> tuple[list[int], int]:
    """Each sentence's first slot when rows are filled in order, and the number of rows."""
    starts, row, used = [], 0, 0
    for width in widths:
        if used + width > capacity:
            row, used = row + 1, 0
        starts.append(row * capacity + used)
        used += width
    return starts, row + 1
