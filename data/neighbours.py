"""Vectors of tokens from their neighbours in a text, by which a new embedding table may start.

Row v of a matrix has the positive pointwise mutual information of token v and the tokens one and two places to its left
and right. Its first singular vectors put tokens near each other that stand in like places: the network need not find
that out by gradient steps.
Source: Levy and Goldberg 2014, "Neural Word Embedding as Implicit Matrix Factorization"; context counts to the power of
0.75 and square roots of the singular values as in Levy, Goldberg and Dagan 2015, "Improving Distributional Similarity".
"""

import numpy as np
import torch
from scipy.sparse import csr_array, hstack
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.tokenized_text import Text

DISTANCES = (1, 2)
"""Distances of the neighbours that are counted."""
SMOOTHING = 0.75
"""Exponent of the counts of neighbours, which keeps rare ones from dominating."""
MOST_ROWS = 200_000
"""Rows of a large text that are counted, evenly spaced; of a stream, those of its sample."""
ROWS_AT_ONCE = 2048
OVERSAMPLED, ITERATIONS = 16, 3
"""Further directions, and iterations, of the randomised decomposition."""


def neighbour_counts(text: Text, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> csr_array:
    """Return how often tokens stand beside each other, float64 [V, 4 V]: after and before, at each distance."""
    rows = np.unique(np.linspace(0, len(text.widths) - 1, MOST_ROWS).astype(int))
    shape = (vocab_size, vocab_size)
    found = [csr_array(shape) for _ in DISTANCES]
    for start in range(0, len(rows), ROWS_AT_ONCE):
        batch = text.batch(rows[start : start + ROWS_AT_ONCE], tokenizer)
        ids = batch.input_ids.numpy()
        attended = batch.attention_mask.numpy().astype(bool) & (ids != tokenizer.pad_token_id)
        for i, distance in enumerate(DISTANCES):
            both = attended[:, :-distance] & attended[:, distance:]
            pair = ids[:, :-distance][both], ids[:, distance:][both]
            found[i] = found[i] + csr_array((np.ones(len(pair[0])), pair), shape)
    return hstack([side for counts in found for side in (counts, counts.T)], format="csr")


def mutual_information(counts: csr_array) -> csr_array:
    """Return the positive part of log p(v, c) / (p(v) p(c)), with smoothed p(c), for counts [V, C]."""
    found, total = counts.tocoo(), counts.sum()
    of_context = counts.sum(0) ** SMOOTHING
    of_context = of_context / max(of_context.sum(), 1)
    ratio = found.data / (counts.sum(1)[found.row] * of_context[found.col])
    positive = ratio > 1
    data, where = np.log(ratio[positive]), (found.row[positive], found.col[positive])
    return csr_array((data, where), counts.shape) if total else counts


def neighbour_vectors(
    text: Text, tokenizer: PreTrainedTokenizerBase, vocab_size: int, width: int
) -> tuple[Tensor, Tensor]:
    """Return vectors of the tokens, and which tokens have one.

    They are centred, turned by a random rotation, so that no coordinate stands out, and scaled to a mean square of 1.

    Args:
        text: training text.
        tokenizer: its tokenizer.
        vocab_size: V.
        width: E, size of a vector.

    Returns:
        float32 [V, E], and bool [V]: False for tokens without neighbours, whose vectors are 0.
    """
    information = mutual_information(neighbour_counts(text, tokenizer, vocab_size))
    draws = np.random.default_rng(0)
    size = min(vocab_size, width)
    left = information @ draws.standard_normal((information.shape[1], size + OVERSAMPLED))
    for _ in range(ITERATIONS):
        left = information @ (information.T @ np.linalg.qr(left)[0])
    basis = np.linalg.qr(left)[0]
    projected = information.T @ basis
    squares, u = np.linalg.eigh(projected.T @ projected)  # rising; of the singular values
    vectors = (basis @ (u * np.maximum(squares, 0) ** 0.25))[:, ::-1][:, :size]
    known = information.sum(1) > 0
    vectors = vectors - (vectors[known].mean(0) if known.any() else 0)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    known &= lengths[:, 0] > 1e-9  # a token may equal the mean
    rotation = np.linalg.qr(draws.standard_normal((width, width)))[0][:size]
    vectors = vectors / np.maximum(lengths, 1e-9) @ rotation * np.sqrt(width)
    vectors[~known] = 0
    return torch.from_numpy(vectors).float(), torch.from_numpy(known)
