"""What is measured of generated text: against references, among samples, and which candidate to take.

Words are whitespace words of the strings as given. BLEU of a pair is nltk's; against a whole corpus it is nltk's number
without its cost, since all samples share the same reference counts.
"""

import functools
import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from nltk.translate.bleu_score import SmoothingFunction, brevity_penalty, sentence_bleu
from nltk.util import ngrams

from evaluation.words import rouge_words

MAX_ORDER = 4
method4 = SmoothingFunction().method4


# ---- one sentence against one ----------------------------------------------------------------------------------------


def bleu(hypothesis: str, reference: str) -> float:
    """BLEU-4 with smoothing method 4 (Chen and Cherry 2014), as DiffuSeq's evaluation has it; 0 if either is empty."""
    if not hypothesis.split() or not reference.split():
        return 0.0
    return float(sentence_bleu([reference.split()], hypothesis.split(), smoothing_function=method4))


def rouge_l(hypothesis: str, reference: str, kind: str = "unicode") -> float:
    """F1 of the longest common subsequence of lower-cased words of letters and digits (Lin 2004), as in rouge-score.

    Args:
        hypothesis, reference: texts; 0 if either has no word.
        kind: of words, see `words.rouge_words`; rouge-score's own is ascii.
    """
    a, b = (rouge_words(text, kind) for text in (hypothesis, reference))
    common = longest_common_subsequence(a, b)
    return 2 * common / (len(a) + len(b)) if common else 0.0


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Its length, by the usual table, a row of which is one integer (Hyyro 2004): a bit is 0 where the row goes up."""
    a, b = sorted((a, b), key=len)
    places: dict[str, list[int]] = defaultdict(list)
    for j, word in enumerate(b):
        places[word].append(j)

    @functools.lru_cache(512)  # of all words, it would be the square of their number in memory
    def standing(word: str) -> int:
        bits = bytearray(len(b) // 8 + 1)
        for j in places[word]:
            bits[j >> 3] |= 1 << (j & 7)
        return int.from_bytes(bits, "little")

    everywhere = row = (1 << len(b)) - 1
    for word in a:
        if word in places:
            matches = row & standing(word)
            row = ((row + matches) | (row - matches)) & everywhere
    return len(b) - row.bit_count()


def distinct_1(text: str) -> float:
    """Share of a sentence's words that are distinct (dist-1 of DiffuSeq's tables); 0 if it is empty."""
    words = text.split()
    return len(set(words)) / len(words) if words else 0.0


# ---- several samples of one source -----------------------------------------------------------------------------------


def pairwise_bleu(samples: Sequence[str]) -> np.ndarray:
    """float64 [S, S]: entry (i, j) is BLEU of hypothesis i against reference j."""
    return np.array([[bleu(hypothesis, reference) for reference in samples] for hypothesis in samples])


def mbr_select(samples: Sequence[str], *, released: bool = False) -> int:
    """Minimum Bayes risk: the sample with the highest mean BLEU against the others; the first of equals.

    Args:
        samples: the candidates for one source, at least one.
        released: the released program's rule instead: each sample as the reference of the others, itself included.
    """
    utility = pairwise_bleu(samples)
    if released:
        return int(utility.sum(0).argmax())
    np.fill_diagonal(utility, 0)
    return int(utility.sum(1).round(12).argmax())  # rounded: equal sums must not be told apart by their order of adding


def pairwise_self_bleu(samples: Sequence[str]) -> float:
    """Mean BLEU of sample i against reference j, i < j (self-BLEU of DiffuSeq's tables); for at least two samples."""
    return float(np.mean([bleu(a, b) for i, a in enumerate(samples) for b in samples[i + 1 :]]))


def diverse_4(samples: Sequence[str]) -> float:
    """Distinct over all 4-grams of the samples of one source (div-4 of DiffuSeq's tables); 0 if there are none."""
    counts = Counter(gram for sample in samples for gram in ngrams(sample.split(), MAX_ORDER))
    return len(counts) / counts.total() if counts else 0.0


# ---- samples against a whole corpus ----------------------------------------------------------------------------------


def all_ngrams(words: Sequence[str]) -> Counter:
    """Every n-gram of orders 1 to 4, with its count."""
    return Counter(gram for order in range(1, MAX_ORDER + 1) for gram in ngrams(words, order))


class ReferenceCorpus:
    """A set of references that any number of samples are compared with.

    BLEU clips an n-gram's count by its largest count in any single reference, and takes the reference whose length is
    closest. Both need only the maximum over references, gathered once; with the runner-up and its owner kept too, the
    references of self-BLEU (all samples but one) cost no more.
    """

    def __init__(self, references: Iterable[Sequence[str]]) -> None:
        """Count the n-grams of tokenised references."""
        self.largest: dict[tuple[str, ...], tuple[int, int]] = {}  # n-gram -> its largest count, and in which reference
        self.second: dict[tuple[str, ...], int] = {}
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
        """Matched and all n-grams of a hypothesis, by order; one reference may be left out."""
        matched, total = [0] * MAX_ORDER, [0] * MAX_ORDER
        for gram, count in all_ngrams(words).items():
            most, owner = self.largest.get(gram, (0, -1))
            if owner == without and owner >= 0:
                most = self.second.get(gram, 0)
            matched[len(gram) - 1] += min(count, most)
            total[len(gram) - 1] += count
        return matched, total

    def closest_length(self, length: int, without: int = -1) -> int:
        """The reference length closest to `length`, the shorter of two equally close ones."""
        lengths = self.sorted_lengths
        if without >= 0:
            lengths = lengths.copy()
            lengths.pop(bisect_left(lengths, self.lengths[without]))
        place = bisect_left(lengths, length)
        return min(lengths[max(0, place - 1) : place + 1], key=lambda n: (abs(n - length), n))

    def bleu(self, words: Sequence[str], without: int = -1) -> float:
        """BLEU-4 of one hypothesis, unsmoothed, against every reference (but `without`): nltk's corpus_bleu."""
        matched, total = self.clipped(words, without)
        return combine(matched, total, len(words), self.closest_length(len(words), without))

    def corpus_bleu(self, hypotheses: Iterable[Sequence[str]]) -> float:
        """BLEU-4 of all hypotheses together, their counts pooled, each against every reference: nltk's corpus_bleu."""
        matched, total = np.zeros(MAX_ORDER, dtype=int), np.zeros(MAX_ORDER, dtype=int)
        length = closest = 0
        for words in hypotheses:
            more_matched, more = self.clipped(words)
            matched, total = matched + more_matched, total + np.maximum(1, more)  # a short one counts 1, as in nltk
            length, closest = length + len(words), closest + self.closest_length(len(words))
        return combine(matched, total, length, closest)


def combine(matched: Sequence[int], total: Sequence[int], length: int, closest: int) -> float:
    """Brevity penalty times the geometric mean of the precisions (Papineni et al. 2002); 0 if one of them is 0."""
    if not all(matched):
        return 0.0
    mean = sum(math.log(m / n) for m, n in zip(matched, total, strict=True)) / MAX_ORDER
    return float(brevity_penalty(closest, length) * math.exp(mean))


def self_bleu(samples: Sequence[Sequence[str]]) -> list[float]:
    """BLEU-4 of each tokenised sample against all the others (Zhu et al. 2018), unsmoothed; for at least two."""
    corpus = ReferenceCorpus(samples)
    return [corpus.bleu(words, without=i) for i, words in enumerate(samples)]


def distinct(samples: Iterable[Sequence[str]], order: int) -> float:
    """Distinct over all n-grams of that order, pooled over the samples (Li et al. 2016); 0 if there are none."""
    counts = Counter(gram for words in samples for gram in ngrams(words, order))
    return len(counts) / counts.total() if counts else 0.0


def unigram_entropy(samples: Iterable[Sequence[str]]) -> float:
    """Entropy of the word frequencies of all samples together, in bits a word; 0 if there are no words."""
    counts = np.array(list(Counter(word for words in samples for word in words).values()), dtype=float)
    p = counts / counts.sum() if len(counts) else counts
    return float(-(p * np.log2(p)).sum() + 0.0)


def repetition(words: Sequence[str], order: int = 2) -> float:
    """Share of a sample's n-grams that have stood in it before (seq-rep-n, Welleck et al. 2020); 0 if it has none."""
    grams = list(ngrams(words, order))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean over sentences and its standard error; None for a single sentence."""
    array = np.asarray(values, dtype=float)
    error = float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None
    return float(array.mean()), error


# ---- what a model must beat ------------------------------------------------------------------------------------------


def nearest_targets(sources: Iterable[set[int]], train_sources: Sequence[set[int]]) -> list[int]:
    """For each source the training pair whose source shares most word pieces with it (Jaccard); first of equals."""
    holders: dict[int, list[int]] = defaultdict(list)
    for index, pieces in enumerate(train_sources):
        for piece in pieces:
            holders[piece].append(index)
    sizes = np.array([len(pieces) for pieces in train_sources])
    nearest = []
    for pieces in sources:
        shared = np.zeros(len(train_sources))
        for piece in pieces:
            shared[holders.get(piece, [])] += 1
        nearest.append(int((shared / np.maximum(1, sizes + len(pieces) - shared)).argmax()))
    return nearest
