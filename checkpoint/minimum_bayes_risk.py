"""BLEU of a text against another, and the choice of a candidate by minimum Bayes risk under it.

Words are whitespace words.
"""

from collections.abc import Sequence

import numpy as np
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

method4 = SmoothingFunction().method4


def bleu(hypothesis: str, reference: str) -> float:
    """Return BLEU-4 with smoothing method 4 (Chen and Cherry 2014), like DiffuSeq; 0 if either text is empty."""
    if not hypothesis.split() or not reference.split():
        return 0.0
    return float(sentence_bleu([reference.split()], hypothesis.split(), smoothing_function=method4))


def pairwise_bleu(samples: Sequence[str]) -> np.ndarray:
    """Return BLEU of each hypothesis i against each reference j, float64 [S, S]."""
    return np.array([[bleu(hypothesis, reference) for reference in samples] for hypothesis in samples])


def mbr_select(samples: Sequence[str], *, released: bool = False) -> int:
    """Return the index of the minimum Bayes risk candidate: highest mean BLEU against the others, the first of equals.

    Args:
        samples: candidates of one source, at least one.
        released: use the released program's rule: mean BLEU of all samples, itself included, with it as reference.
    """
    utility = pairwise_bleu(samples)
    if released:
        return int(utility.sum(0).argmax())
    np.fill_diagonal(utility, 0)
    return int(utility.sum(1).round(12).argmax())  # rounded, since the order of addition changes equal sums
