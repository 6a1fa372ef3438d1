"""spindle_report.py: the share of tokens whose informativeness is clamped, compared with a direct count."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.corpus import Source
from data.tokenized_text import TokenizedText, tokenize_in_memory
from diffusion.process_options import WordFreqArgs
from diffusion_word_freq import SpindleSchedule
from evaluation.spindle_report import spindle_report
from tests.conftest import SENTENCES

LINES = [sentence for i, sentence in enumerate(SENTENCES) for _ in range(1 + 200 * (i == 0))]
"""Repeat one sentence until it dominates the corpus, so its words have low information."""


@pytest.fixture
def text(tokenizer) -> TokenizedText:
    return tokenize_in_memory(((line, (0, i + 1)) for i, line in enumerate(LINES)), Source(), tokenizer, 30)


@pytest.mark.parametrize("spindle", ["paper", "released"])
@pytest.mark.parametrize("strength", [0.1, 0.3, 1.0])
def test_the_reported_share_is_that_of_tokens_with_clamped_h(
    tokenizer, text: TokenizedText, spindle: str, strength
) -> None:
    counts = text.counts(len(tokenizer))
    args = WordFreqArgs(spindle=spindle, word_freq_lambda=strength)
    schedule = SpindleSchedule(args, counts)
    bound, num_clamped, sentences, types = 0.999 / (strength * math.pi), 0, 0, set()
    statistic = schedule.statistic.numpy()
    for i in range(len(text)):
        ids = text.sentence(i)
        own, mean = statistic[ids], statistic[ids].mean()
        h = 1 - mean / own if spindle == "paper" else mean - own
        clamped = np.abs(h) > bound
        num_clamped, sentences, types = (
            num_clamped + clamped.sum(),
            sentences + clamped.any(),
            types | set(ids[clamped].tolist()),
        )
    report = spindle_report(schedule, text, tokenizer)
    if not num_clamped:
        assert report == f"spindle: no h of {len(text):,} sentences exceeds the clamp of {bound:.2f}"
        return
    assert (
        f"{100 * num_clamped / len(text.tokens):.1f} % of the tokens, in {100 * sentences / len(text):.0f} % of"
        in report
    )
    assert f"({len(types):,} types: " in report
    assert strength > 0.1  # the weakest spindle reaches every token of this corpus


def test_the_report_is_empty_without_a_spindle(tokenizer, text: TokenizedText) -> None:
    for args in (WordFreqArgs(spindle="none"), WordFreqArgs(word_freq_lambda=0.0)):
        schedule = SpindleSchedule(args, text.counts(len(tokenizer)))
        assert spindle_report(schedule, text, tokenizer) == ""
        assert not schedule.clamped(torch.tensor([[5, 6]]), torch.ones(1, 2, dtype=torch.bool)).any()


def test_padding_and_given_tokens_are_not_counted(tokenizer, text: TokenizedText) -> None:
    schedule = SpindleSchedule(WordFreqArgs(word_freq_lambda=1.0), text.counts(len(tokenizer)))
    batch = text.batch(np.arange(len(text) - 3, len(text)), tokenizer)
    nothing = replace(batch, target_mask=torch.zeros_like(batch.target_mask))
    assert schedule.clamped(batch.input_ids, batch.target_mask).any()
    assert not schedule.clamped(nothing.input_ids, nothing.target_mask).any()
