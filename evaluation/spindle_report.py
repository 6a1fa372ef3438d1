"""Share of a corpus whose informativeness h (Eq. 12) is clamped to the bound that keeps alpha_bar monotone."""

import numpy as np
import torch
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.tokenized_text import Text
from diffusion_word_freq import SpindleSchedule

SAMPLE = 2000
"""Sentences in the sample; it determines the share to a few tenths of a percent."""
BATCH_SIZE = 100
NUM_NAMED = 9
"""Number of clamped tokens that are listed, by descending count."""


def spindle_report(schedule: SpindleSchedule, text: Text, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> str:
    """Describe the share of tokens, and of sentences, whose h is clamped; return "" without a spindle.

    Args:
        schedule: schedule with its word counts.
        text: text from which sentences are sampled.
        tokenizer: converts ids to tokens.
        seed: seed of the sample.
    """
    if not schedule.token_dependent:
        return ""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(text))[:SAMPLE])
    tokens = num_clamped = sentences = 0
    clamped_counts = torch.zeros(len(schedule.statistic), dtype=torch.int64)
    for start in range(0, len(chosen), BATCH_SIZE):
        batch = text.batch(chosen[start : start + BATCH_SIZE], tokenizer)
        clamped = schedule.clamped(batch.input_ids, batch.target_mask)
        tokens, num_clamped = tokens + int(batch.target_mask.sum()), num_clamped + int(clamped.sum())
        sentences += int(clamped.any(1).sum())
        clamped_counts += torch.bincount(batch.input_ids[clamped], minlength=len(clamped_counts))
    if not num_clamped:
        return f"spindle: no h of {len(chosen):,} sentences exceeds the clamp of {schedule.largest_h:.2f}"
    types = int((clamped_counts > 0).sum())
    commonest = clamped_counts.argsort(descending=True, stable=True)[: min(NUM_NAMED, types)]
    names = tokenizer.convert_ids_to_tokens(commonest.tolist())
    share, share_of_sentences = 100 * num_clamped / tokens, 100 * sentences / len(chosen)
    return (
        f"spindle: |h| is clamped to {schedule.largest_h:.2f} for {share:.1f} % of the tokens, in "
        f"{share_of_sentences:.0f} % of the sentences ({types:,} types: {' '.join(names)}); a lower "
        "--word_freq_lambda clamps fewer"
    )
