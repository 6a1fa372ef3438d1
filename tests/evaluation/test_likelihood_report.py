"""likelihood_report.py: every figure follows from sums; an overflowing perplexity is reported in words."""

import math

import pytest

from evaluation.likelihood_report import Likelihood, format_report


def test_perplexity_is_exp_of_nats_per_sequence_over_words_per_sequence() -> None:
    """The author's example: a bound of 110 nats over 26 words is 4.23 nats per word."""
    totals = Likelihood(110.0 * 50, 110.0**2 * 50, 0, 0, 0, 50, 30 * 50, 26 * 50, 128)
    assert totals.report()["ppl_word"] == pytest.approx(math.exp(110 / 26))
    assert totals.report()["standard_error_nats"] == pytest.approx(0, abs=1e-4)


def test_one_sentence_has_no_standard_error() -> None:
    report = Likelihood(9.0, 81.0, 0.0, 1.0, 12.0, 1, 3, 2, 8).report()
    assert report["standard_error_nats"] is None and "standard error unknown" in format_report(report)
    assert report["ppl_word"] == pytest.approx(math.exp(4.5)) and report["ppl_token"] == pytest.approx(math.exp(3))


def test_an_overflowing_perplexity_is_reported_as_large() -> None:
    report = Likelihood(5e3, 25e6, 0.0, 1.0, 12.0, 1, 5, 4, 8).report()
    assert report["ppl_token"] is report["ppl_word"] is None and report["bits_per_token"] > 1000
    assert "PPL above 1e308 per token, above 1e308 per word\n" in format_report(report)
    description = format_report(Likelihood(2e9, 4e18, 0.0, 1.0, 12.0, 1, 10**8, 10**7, 8).report())
    assert "PPL 4.852e+08 per token, 7.226e+86 per word\n2.000e+09 nats/sequence" in description
