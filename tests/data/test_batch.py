"""batch.py: sentences are collated into padded rows; rows of a batch are a batch."""

from dataclasses import replace

import numpy as np
import torch
from transformers import BertTokenizerFast

from data.batch import collate


def test_collate_adds_special_tokens_and_targets_text_only(tokenizer: BertTokenizerFast) -> None:
    batch = collate([np.array([7, 8, 9]), np.array([10])], tokenizer)
    cls, sep, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    assert batch.input_ids.tolist() == [[cls, 7, 8, 9, sep], [cls, 10, sep, pad, pad]]
    assert batch.target_mask.tolist() == [[False, True, True, True, False], [False, True, False, False, False]]
    assert batch.attention_mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]  # [SEP] is attended to


def test_rows_of_a_batch_are_a_batch_and_targets_are_noised(tokenizer: BertTokenizerFast) -> None:
    batch = collate([np.array([7, 8, 9]), np.array([10])], tokenizer, width=6)
    assert batch.input_ids.shape == (2, 6) and batch.noised is batch.target_mask
    second = batch.rows(slice(1, 2))
    assert torch.equal(second.input_ids, batch.input_ids[1:]) and second.noised_mask is None
    everything = torch.ones_like(batch.target_mask)
    padded = replace(batch, noised_mask=everything).rows(torch.tensor([1, 1]))
    assert padded.noised.shape == (2, 6) and padded.noised.all() and not padded.target_mask.all()
