"""minimum_bayes_risk.py: the recorded choice, and the definition on random candidates."""

import random

import numpy as np
import pytest

from checkpoint.minimum_bayes_risk import bleu, mbr_select, pairwise_bleu

FRIENDS = ["how can i make friends ?", "how do i make friends ?", "what is the best way to make friends ?"]


def test_the_choice_among_three_candidates_is_the_recorded_one() -> None:
    sums = pairwise_bleu(FRIENDS).sum(1) - 1
    assert sums == pytest.approx([0.679071, 0.679071, 0.288995], abs=1e-6)
    assert mbr_select(FRIENDS) == 0


def test_equal_texts_have_bleu_one_and_empty_texts_zero() -> None:
    assert bleu("a b c d e", "a b c d e") == pytest.approx(1)
    assert bleu("", "a b") == bleu("a b", "") == bleu("", "") == 0


def test_a_single_candidate_is_selected() -> None:
    assert mbr_select(["whatever it is"]) == mbr_select([""]) == 0


def test_the_selected_candidate_has_the_largest_mean_bleu_with_the_others() -> None:
    rng, differ = random.Random(1), 0
    for _ in range(60):
        samples = [" ".join(rng.choices(["a", "b", "c", "d"], k=rng.randint(1, 7))) for _ in range(5)]
        means = [np.mean([bleu(a, b) for j, b in enumerate(samples) if j != i]) for i, a in enumerate(samples)]
        assert means[mbr_select(samples)] == pytest.approx(max(means))
        assert mbr_select(samples) == next(i for i, m in enumerate(means) if m > max(means) - 1e-12)
        differ += int(pairwise_bleu(samples).sum(1).argmax()) != mbr_select(samples)
    assert differ > 3  # BLEU of a candidate with itself, below 1 for short texts, would change the choice


def test_the_released_rule_selects_other_candidates() -> None:
    rng = random.Random(3)
    differ = 0
    for _ in range(200):
        samples = [" ".join(rng.choices(["a", "b", "c", "d", "e"], k=rng.randint(1, 9))) for _ in range(3)]
        sums = [sum(bleu(other, reference) for other in samples) for reference in samples]
        assert mbr_select(samples, released=True) == int(np.argmax(sums))
        differ += mbr_select(samples, released=True) != mbr_select(samples)
    assert differ > 10
