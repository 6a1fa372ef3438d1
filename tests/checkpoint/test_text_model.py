"""text_model.py: which tokens a process of text may draw and score."""

import torch
from transformers import BertTokenizerFast

from checkpoint.text_model import build_process
from diffusion_word_freq import WordFreqArgs
from tests.checkpoint.test_folder import make_run


def test_text_specials_are_ruled_out_but_unknown_tokens_can_be_scored(tokenizer: BertTokenizerFast) -> None:
    process = make_run(tokenizer).process
    barred = {i for i, value in enumerate(process.support.tolist()) if value == -float("inf")}
    assert barred == set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    never_drawn = {i for i, value in enumerate(process.sampling_support.tolist()) if value == -float("inf")}
    assert never_drawn == set(tokenizer.all_special_ids)


def test_rows_of_the_output_that_stand_for_no_token_are_ruled_out(tokenizer: BertTokenizerFast) -> None:
    """Networks are padded to round sizes, and a vocabulary may have holes."""
    size = len(tokenizer) + 6
    process = build_process(WordFreqArgs(num_steps=16), torch.ones(size), tokenizer, size)
    assert (process.support[len(tokenizer) :] == -float("inf")).all()
    assert process.support[5 : len(tokenizer)].eq(0).all()
