"""Metrics of generated text against references and among samples.

Words are whitespace words of the given strings. BLEU of a pair is in `checkpoint/minimum_bayes_risk.py`. BLEU against a
whole corpus equals nltk's and is much faster, since all samples share the counts of the references.
"""

import functools
import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from nltk.translate.bleu_score import brevity_penalty
from nltk.util import ngrams

from checkpoint.minimum_bayes_risk import bleu
from evaluation.words import rouge_words

MAX_ORDER = 4


# ---- one sentence against one ----------------------------------------------------------------------------------------


def rouge_l(hypothesis: str, reference: str, kind: str = "unicode") -> float:
    """Return F1 of the longest common subsequence of lower-case words (Lin 2004), like rouge-score.

    Args:
        hypothesis, reference: texts; the result is 0 if either has no word.
        kind: kind of words (`words.rouge_words`); rouge-score uses ascii.
    """
    a, b = (rouge_words(text, kind) for text in (hypothesis, reference))
    common = longest_common_subsequence(a, b)
    return 2 * common / (len(a) + len(b)) if common else 0.0


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Return its length by bit-parallel dynamic programming (Hyyro 2004).

    Each row of the table is one integer; a bit is 0 where the length increases.
    """
    a, b = sorted((a, b), key=len)
    positions: dict[str, list[int]] = defaultdict(list)
    for j, word in enumerate(b):
        positions[word].append(j)

    @functools.lru_cache(512)  # bounded: masks of all words would take quadratic memory
    def position_mask(word: str) -> int:
        bits = bytearray(len(b) // 8 + 1)
        for j in positions[word]:
            bits[j >> 3] |= 1 << (j & 7)
        return int.from_bytes(bits, "little")

    all_ones = row = (1 << len(b)) - 1
    for word in a:
        if word in positions:
            matches = row & position_mask(word)
            row = ((row + matches) | (row - matches)) & all_ones
    return len(b) - row.bit_count()


def distinct_1(text: str) -> float:
    """Return the share of distinct words in a sentence (dist-1 in DiffuSeq's tables); 0 if it is empty."""
    words = text.split()
    return len(set(words)) / len(words) if words else 0.0


# ---- several samples of one source -----------------------------------------------------------------------------------


def pairwise_self_bleu(samples: Sequence[str]) -> float:
    """Return the mean BLEU of sample i against sample j > i (self-BLEU in DiffuSeq's tables); needs two samples."""
    return float(np.mean([bleu(a, b) for i, a in enumerate(samples) for b in samples[i + 1 :]]))


def diverse_4(samples: Sequence[str]) -> float:
    """Return the share of distinct 4-grams over the samples of one source (div-4 in DiffuSeq's tables); 0 if none."""
    counts = Counter(gram for sample in samples for gram in ngrams(sample.split(), MAX_ORDER))
    return len(counts) / counts.total() if counts else 0.0


# ---- samples against a whole corpus ----------------------------------------------------------------------------------


def all_ngrams(words: Sequence[str]) -> Counter:
    """Count the n-grams of orders 1 to 4."""
    return Counter(gram for order in range(1, MAX_ORDER + 1) for gram in ngrams(words, order))


class ReferenceCorpus:
    """References with shared n-gram counts, for BLEU of many samples.

    BLEU clips an n-gram's count by its largest count in a single reference, and uses the closest reference length. The
    largest counts are collected once. The second largest is kept too, so that self-BLEU can exclude one reference.
    """

    def __init__(self, references: Iterable[Sequence[str]]) -> None:
        """Count the n-grams of tokenized references."""
        self.largest: dict[tuple[str, ...], tuple[int, int]] = {}
        """Largest count of each n-gram in one reference, and the index of that reference."""
        self.second: dict[tuple[str, ...], int] = {}
        """Second largest count of each n-gram."""
        self.lengths: list[int] = []
        for index, words in enumerate(references):
            self.lengths.append(len(words))
            for gram, count in all_ngrams(words).items():
                most, owner = self.largest.get(gram, (0, -1))
                if count > most:
                    self.largest[gram] = (count, index)
                    count = most if owner >= 0 else 0
                if count > self.second.get(gram, 0):
                    self.second[gram] = count
        self.sorted_lengths = sorted(self.lengths)

    def clipped(self, words: Sequence[str], without: int = -1) -> tuple[list[int], list[int]]:
        """Count matched and all n-grams of a hypothesis, by order; reference `without` is excluded."""
        matched, total = [0] * MAX_ORDER, [0] * MAX_ORDER
        for gram, count in all_ngrams(words).items():
            most, owner = self.largest.get(gram, (0, -1))
            if owner == without and owner >= 0:
                most = self.second.get(gram, 0)
            matched[len(gram) - 1] += min(count, most)
            total[len(gram) - 1] += count
        return matched, total

    def closest_length(self, length: int, without: int = -1) -> int:
        """Return the reference length closest to `length`, the shorter of two equally close ones."""
        lengths = self.sorted_lengths
        if without >= 0:
            lengths = lengths.copy()
            lengths.pop(bisect_left(lengths, self.lengths[without]))
        index = bisect_left(lengths, length)
        return min(lengths[max(0, index - 1) : index + 1], key=lambda n: (abs(n - length), n))

    def bleu(self, words: Sequence[str], without: int = -1) -> float:
        """Return unsmoothed BLEU-4 of one hypothesis against all references except `without`; nltk's corpus_bleu."""
        matched, total = self.clipped(words, without)
        return combine(matched, total, len(words), self.closest_length(len(words), without))

    def corpus_bleu(self, hypotheses: Iterable[Sequence[str]]) -> float:
        """Return BLEU-4 of all hypotheses with pooled counts, each against all references; nltk's corpus_bleu."""
        matched, total = np.zeros(MAX_ORDER, dtype=int), np.zeros(MAX_ORDER, dtype=int)
        length = closest = 0
        for words in hypotheses:
            matched_here, total_here = self.clipped(words)
            matched, total = matched + matched_here, total + np.maximum(1, total_here)  # at least 1, as in nltk
            length, closest = length + len(words), closest + self.closest_length(len(words))
        return combine(matched, total, length, closest)


def combine(matched: Sequence[int], total: Sequence[int], length: int, closest: int) -> float:
    """Return the brevity penalty times the geometric mean of the precisions (Papineni et al. 2002); 0 if one is 0."""
    if not all(matched):
        return 0.0
    mean = sum(math.log(m / n) for m, n in zip(matched, total, strict=True)) / MAX_ORDER
    return float(brevity_penalty(closest, length) * math.exp(mean))


def self_bleu(samples: Sequence[Sequence[str]]) -> list[float]:
    """Return unsmoothed BLEU-4 of each tokenized sample against all others (Zhu et al. 2018); needs two samples."""
    corpus = ReferenceCorpus(samples)
    return [corpus.bleu(words, without=i) for i, words in enumerate(samples)]


def distinct(samples: Iterable[Sequence[str]], order: int) -> float:
    """Return the share of distinct n-grams of an order, pooled over samples (Li et al. 2016); 0 if there are none."""
    counts = Counter(gram for words in samples for gram in ngrams(words, order))
    return len(counts) / counts.total() if counts else 0.0


def unigram_entropy(samples: Iterable[Sequence[str]]) -> float:
    """Return the entropy of the word frequencies of all samples, in bits per word; 0 if there are no words."""
    counts = np.array(list(Counter(word for words in samples for word in words).values()), dtype=float)
    p = counts / counts.sum() if len(counts) else counts
    return float(-(p * np.log2(p)).sum() + 0.0)


def repetition(words: Sequence[str], order: int = 2) -> float:
    """Return the share of a sample's n-grams that repeat an earlier one (seq-rep-n, Welleck et al. 2020); 0 if none."""
    grams = list(ngrams(words, order))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean over sentences and its standard error, None for a single sentence."""
    array = np.asarray(values, dtype=float)
    error = float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None
    return float(array.mean()), error


# ---- baselines -------------------------------------------------------------------------------------------------------


def nearest_targets(sources: Iterable[set[int]], train_sources: Sequence[set[int]]) -> list[int]:
    """Return for each source the index of the training source with the highest Jaccard similarity of word pieces.

    The first of equals is returned.
    """
    containing: dict[int, list[int]] = defaultdict(list)
    for index, pieces in enumerate(train_sources):
        for piece in pieces:
            containing[piece].append(index)
    sizes = np.array([len(pieces) for pieces in train_sources])
    nearest = []
    for pieces in sources:
        shared = np.zeros(len(train_sources))
        for piece in pieces:
            shared[containing.get(piece, [])] += 1
        nearest.append(int((shared / np.maximum(1, sizes + len(pieces) - shared)).argmax()))
    return nearest
