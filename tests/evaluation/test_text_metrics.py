"""text_metrics.py: figures recorded from DiffuSeq, nltk's figures on random corpora, properties of each metric."""

import math
import random
import time
import warnings

import numpy as np
import pytest
from nltk.translate.bleu_score import corpus_bleu

from checkpoint.minimum_bayes_risk import bleu
from evaluation import text_metrics
from evaluation.text_metrics import ReferenceCorpus

FRIENDS = ["how can i make friends ?", "how do i make friends ?", "what is the best way to make friends ?"]
RECORDED = [
    ("how can i make friends ?", "how to make friends ?", 0.251198, 0.263504, 0.666667),
    ("the cat sat on the mat", "the cat is on the mat today", 0.248820, 0.242792, 0.769231),
]


@pytest.mark.parametrize(("hypothesis", "reference", "right", "swapped", "rouge"), RECORDED)
def test_the_figures_of_one_pair_are_the_recorded_ones(
    hypothesis: str, reference: str, right: float, swapped: float, rouge: float
) -> None:
    assert bleu(hypothesis, reference) == pytest.approx(right, abs=1e-6)
    assert bleu(reference, hypothesis) == pytest.approx(swapped, abs=1e-6)
    assert text_metrics.rouge_l(hypothesis, reference) == pytest.approx(rouge, abs=1e-6)


def test_the_figures_of_three_candidates_are_the_recorded_ones() -> None:
    assert text_metrics.pairwise_self_bleu(FRIENDS) == pytest.approx(0.273619, abs=1e-6)
    assert text_metrics.diverse_4(FRIENDS) == pytest.approx(0.916667, abs=1e-6)
    assert text_metrics.distinct_1("a b a c") == 0.75


def test_equal_texts_score_one_and_empty_texts_zero() -> None:
    assert text_metrics.rouge_l("", "a") == text_metrics.rouge_l("", "") == text_metrics.distinct_1("") == 0
    assert text_metrics.diverse_4(["a b c"]) == text_metrics.distinct([], 1) == text_metrics.unigram_entropy([]) == 0
    assert text_metrics.rouge_l("A, b!", "a B") == 1  # lower case, no punctuation


def sentences(seed: int, count: int, longest: int, words: str = "abcdefgh") -> list[list[str]]:
    rng = random.Random(seed)
    return [rng.choices(words, range(1, len(words) + 1), k=rng.randint(0, longest)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_bleu_against_a_corpus_agrees_with_nltk(seed: int) -> None:
    hypotheses, references = sentences(seed, 8, 12), sentences(seed + 100, 15, 12)
    corpus = ReferenceCorpus(references)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nltk warns where an order has no match, and returns 1e-77
        for words in hypotheses:
            assert corpus.bleu(words) == pytest.approx(corpus_bleu([references], [words]), abs=1e-9)
        expected = corpus_bleu([references] * len(hypotheses), hypotheses)
        assert corpus.corpus_bleu(hypotheses) == pytest.approx(expected, abs=1e-9)
        for i, value in enumerate(text_metrics.self_bleu(hypotheses)):
            others = hypotheses[:i] + hypotheses[i + 1 :]
            assert value == pytest.approx(corpus_bleu([others], [hypotheses[i]]), abs=1e-9)


def test_the_comparison_with_nltk_includes_values_above_zero() -> None:
    corpus = ReferenceCorpus(sentences(100, 15, 12))
    values = [corpus.bleu(words) for seed in range(20) for words in sentences(seed, 8, 12)]
    assert sum(v > 0.05 for v in values) > 10


@pytest.mark.slow
def test_a_thousand_samples_against_ten_thousand_references_take_seconds() -> None:
    words = [f"w{i}" for i in range(3000)]
    rng = random.Random(0)

    def text(count: int) -> list[list[str]]:
        weights = [1 / (rank + 1) for rank in range(len(words))]
        return [rng.choices(words, weights, k=rng.randint(5, 40)) for _ in range(count)]

    samples, references = text(1000), text(10_000)
    begin = time.process_time()
    corpus = ReferenceCorpus(references)
    values = [corpus.bleu(sample) for sample in samples]
    text_metrics.self_bleu(samples)
    assert time.process_time() - begin < 10
    assert max(values) > 0


def test_the_longest_common_subsequence_agrees_with_plain_recursion() -> None:
    def recursive(a: str, b: str) -> int:
        if not a or not b:
            return 0
        if a[0] == b[0]:
            return 1 + recursive(a[1:], b[1:])
        return max(recursive(a[1:], b), recursive(a, b[1:]))

    rng = random.Random(0)
    for _ in range(50):
        a, b = ("".join(rng.choices("abc", k=rng.randint(0, 7))) for _ in range(2))
        assert text_metrics.longest_common_subsequence(a, b) == recursive(a, b)


def test_the_longest_common_subsequence_agrees_with_dynamic_programming() -> None:
    def dynamic_programming(a: list[str], b: list[str]) -> int:
        row = [0] * (len(b) + 1)
        for word in a:
            diagonal = 0
            for j, other in enumerate(b, start=1):
                diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
        return row[-1]

    rng = random.Random(0)
    for trial in range(300):
        a, b = (rng.choices(range(1 + trial % 9), k=rng.randint(0, 70)) for _ in range(2))
        assert text_metrics.longest_common_subsequence(a, b) == dynamic_programming(a, b)


def test_texts_of_twenty_thousand_words_are_scored_in_seconds() -> None:
    rng = random.Random(0)
    a, b = (" ".join(f"w{rng.randrange(5000)}" for _ in range(20_000)) for _ in range(2))
    begin = time.process_time()
    assert 0 < text_metrics.rouge_l(a, b) < 1 and 0 < bleu(a, b) < 1
    assert time.process_time() - begin < 5  # dynamic programming takes more than a minute


# ---- other metrics ---------------------------------------------------------------------------------------------------


def test_distinct_entropy_and_repetition_agree_with_hand_counts() -> None:
    texts = [["a", "b", "a", "b"], ["a", "c"]]
    assert text_metrics.distinct(texts, 1) == 3 / 6
    assert text_metrics.distinct(texts, 2) == 3 / 4  # ab, ba, ab, ac
    p = np.array([3, 2, 1]) / 6
    assert text_metrics.unigram_entropy(texts) == pytest.approx(-(p * np.log2(p)).sum())
    assert text_metrics.unigram_entropy([["a", "a"]]) == 0
    assert text_metrics.repetition(["a", "b", "a", "b"]) == pytest.approx(1 / 3)
    assert text_metrics.repetition(["a"]) == 0


def test_mean_and_error_follow_their_formulas() -> None:
    mean, error = text_metrics.mean_and_error([1, 2, 3, 4])
    assert mean == 2.5 and error == pytest.approx(math.sqrt(5 / 3 / 4))
    assert text_metrics.mean_and_error([7]) == (7, None)


def test_the_nearest_source_shares_the_most_pieces() -> None:
    train = [{1, 2, 3, 4, 5, 6, 7, 8}, {1, 2, 3}, {4, 5}, {4, 5}, set()]
    assert text_metrics.nearest_targets([{1, 2}, {4, 5}, {9}, {1, 2, 3, 4, 5, 6, 7}], train) == [1, 2, 0, 0]
