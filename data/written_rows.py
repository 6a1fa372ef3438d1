"""Rows that a model writes: the blank row that sampling starts from, and the text of a sampled row."""

import torch
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.options import TextFormat
from data.tokenizers import text_of


def blank_row(
    text_format: TextFormat, tokenizer: PreTrainedTokenizerBase, width: int, text: list[int], *, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Return token ids and target mask, each [L], of a row to be generated.

    Args:
        text_format: the row format.
        tokenizer: tokenizer of the model.
        width: slots of a row.
        text: given tokens, with [MASK] where a token is to be generated; empty: all tokens are generated.
        causal: the first token is given, and the model generates the end of the text.
    """
    mask, ends = tokenizer.mask_token_id, (tokenizer.cls_token_id, tokenizer.sep_token_id)
    if text:
        pads = [tokenizer.pad_token_id] * (width - 2 - len(text)) if text_format.row_format == "padded" else []
        row = [ends[0], *text, ends[1], *pads]
    elif text_format.whole_rows or (causal and text_format.single):  # a causal model generates the final [SEP]
        row = [ends[0] if causal else mask, *[mask] * (width - 1)]
    else:
        row = [ends[0], *[mask] * (width - 2), ends[1]]
    ids = torch.tensor(row)
    return ids, ids == mask


def decode_row(text_format: TextFormat, tokenizer: PreTrainedTokenizerBase, row: Tensor) -> str:
    """Decode a row to text; texts of a block are joined by spaces, unexpected special tokens are shown."""
    if text_format.row_format == "running":
        return text_of(tokenizer, row[1:-1])
    ends = {tokenizer.sep_token_id} | text_format.content(tokenizer)
    texts: list[list[int]] = [[]]
    for token in row.tolist()[row[0].item() == tokenizer.cls_token_id :]:
        if token not in ends:
            texts[-1].append(token)
        elif text_format.row_format != "wrapped":  # the text ends at its first special token
            break
        else:
            texts.append([])
    return " ".join(text_of(tokenizer, ids) for ids in texts if ids)
