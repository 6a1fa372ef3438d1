"""written_rows.py: a blank row has targets wherever no token is given; a row is decoded by its format."""

import pytest
import torch

from data.options import TextFormat
from data.written_rows import blank_row, decode_row


@pytest.mark.parametrize(
    ("protocol", "row", "text"),
    [
        ("unpadded", "[CLS] the cat [SEP]", "the cat"),
        ("running", "[CLS] the cat [SEP]", "the cat"),
        ("padded", "[CLS] the cat [SEP] [PAD] dog", "the cat"),
        ("padded", "[CLS] the cat dog tree a", "the cat dog tree a"),
        ("wrapped", "[CLS] cat [SEP] the dog [SEP] a [SEP]", "cat the dog a"),
        ("wrapped", "the dog [SEP] [SEP] a", "the dog a"),
        ("padded", "[PAD] the cat", ""),
    ],
)
def test_a_row_is_decoded_by_its_format(protocol: str, row: str, text: str, tokenizer) -> None:
    ids = torch.tensor(tokenizer.convert_tokens_to_ids(row.split()))
    assert decode_row(TextFormat(protocol), tokenizer, ids) == text


def test_a_blank_row_has_targets_wherever_no_token_is_given(tokenizer) -> None:
    mask, ends = tokenizer.mask_token_id, [tokenizer.cls_token_id, tokenizer.sep_token_id]
    for protocol, drawn in (("padded", 12), ("wrapped", 12), ("running", 10)):
        ids, targets = blank_row(TextFormat(protocol), tokenizer, 12, [])
        assert len(ids) == 12 and targets.sum() == drawn and (ids[targets] == mask).all()
    assert blank_row(TextFormat("wrapped"), tokenizer, 12, [], causal=True)[1].tolist() == [False] + [True] * 11
    ids, targets = blank_row(TextFormat("padded"), tokenizer, 8, [7, mask, 9])
    assert ids.tolist() == [ends[0], 7, mask, 9, ends[1], *[tokenizer.pad_token_id] * 3] and targets.sum() == 1
