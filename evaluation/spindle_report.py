"""How often the bound on the informativeness h bites: how much of a corpus the spindle of Eq. 12 does not reach."""

import numpy as np
import torch
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.tokenized_text import Text
from diffusion_word_freq import WordFreqDiffusion

SAMPLE = 2000
"""Sentences that stand for all: the share is then known to a few tenths of a percent."""
AT_ONCE = 100
NAMED = 9
"""Tokens that are named, the commonest first."""


def spindle_report(process: WordFreqDiffusion, text: Text, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> str:
    """The share of tokens, and of sentences, whose h is held at its bound, in words; "" without a spindle.

    Args:
        process: with its schedule and word counts.
        text: of which a sample is looked at.
        tokenizer: names the tokens.
        seed: of the sample.
    """
    if process.flat:
        return ""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(text))[:SAMPLE])
    tokens = held = sentences = 0
    seen = torch.zeros(len(process.statistic), dtype=torch.int64)
    for start in range(0, len(chosen), AT_ONCE):
        batch = text.batch(chosen[start : start + AT_ONCE], tokenizer)
        back = process.held_back(batch.input_ids, batch.target_mask)
        tokens, held = tokens + int(batch.target_mask.sum()), held + int(back.sum())
        sentences += int(back.any(1).sum())
        seen += torch.bincount(batch.input_ids[back], minlength=len(seen))
    if not held:
        return f"spindle: every h of {len(chosen):,} sentences lies within its bound of {process.largest_h:.2f}"
    types = int((seen > 0).sum())
    names = tokenizer.convert_ids_to_tokens(seen.argsort(descending=True, stable=True)[: min(NAMED, types)].tolist())
    share, share_of_sentences = 100 * held / tokens, 100 * sentences / len(chosen)
    return (
        f"spindle: the h of {share:.1f} % of the tokens, in {share_of_sentences:.0f} % of the sentences, is held at "
        f"its bound of {process.largest_h:.2f} ({types:,} types: {' '.join(names)}); a lower "
        "--word_freq_lambda holds fewer"
    )
