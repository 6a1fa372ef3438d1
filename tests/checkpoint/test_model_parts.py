"""model_parts.py: the tokens that a process may draw and score."""

import torch
from transformers import BertTokenizerFast

from checkpoint.model_parts import build_process
from diffusion.process_options import WordFreqArgs
from tests.checkpoint.test_folder import make_run


def test_special_tokens_are_excluded_but_unknown_tokens_can_be_scored(tokenizer: BertTokenizerFast) -> None:
    process = make_run(tokenizer).process
    excluded = {i for i, value in enumerate(process.support.tolist()) if value == -float("inf")}
    assert excluded == set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    never_drawn = {i for i, value in enumerate(process.sampling_support.tolist()) if value == -float("inf")}
    assert never_drawn == set(tokenizer.all_special_ids)


def test_output_rows_without_a_token_are_excluded(tokenizer: BertTokenizerFast) -> None:
    """Networks are padded to round sizes, and a vocabulary may have holes."""
    size = len(tokenizer) + 6
    process = build_process(WordFreqArgs(num_steps=16), torch.ones(size), tokenizer, size)
    assert (process.support[len(tokenizer) :] == -float("inf")).all()
    assert process.support[5 : len(tokenizer)].eq(0).all()
