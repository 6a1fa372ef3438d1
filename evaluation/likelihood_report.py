"""Figures of a likelihood, and their text form."""

import math
from dataclasses import dataclass, field

from utils.figures import MOST_NATS, number, perplexity


@dataclass(frozen=True)
class Likelihood:
    """Totals over sentences, and the figures derived from them.

    Text tokens are counted, not [CLS], [SEP] and [PAD], unless the row format makes them content. With process=ar the
    end of a text adds nats but no token. In a pair, the target is scored given its source: nats are those of the whole
    target window, tokens are its text and [SEP].
    """

    nats: float
    """Sum of the bound over sentences."""
    nats_squared: float
    """Sum of the squared bound over sentences, for the standard error."""
    prior_nats: float
    reconstruction_nats: float
    unigram_nats: float
    """Nats of the same tokens under the training corpus's word frequencies."""
    num_sequences: int
    num_tokens: int
    num_words: float
    """Whitespace words; truncated texts count those that remain."""
    num_steps: float
    estimator: str = "windows"
    network_evaluations: float = 0
    """Mean number of forward passes per sentence."""
    row_format: str = ""
    """Row format of the texts (data/row_formats.py); empty for pairs."""
    detokenizer: str = ""
    length_nats: float | None = None
    """Sum over sentences of -log of their length's frequency in training; None if not applicable or unknown."""
    draws_variance: float | None = None
    """Variance of `nats` due to the draws of x_t; None after a single round."""
    profile: dict[str, float] = field(default_factory=dict)
    """Additional figures of the process: sums over sentences in nats, reported per token."""
    network_figures: dict[str, float] = field(default_factory=dict)
    """Additional figures of the network, reported unchanged."""
    sentence_nats: list[float] = field(default_factory=list)
    """The bound of each sentence; not in the report."""
    words_separated: bool = True
    """True if spaces separate words; otherwise there is no perplexity per word."""
    law: dict[str, float | int | str] = field(default_factory=dict)
    """Settings of the sampler whose exact likelihood this is, by name; empty for a bound of p_theta."""

    @property
    def num_excluded(self) -> int:
        """Sentences that the sampler never draws; their -log p is infinite."""
        if not self.law or any(map(math.isnan, self.sentence_nats)):
            return 0
        return sum(map(math.isinf, self.sentence_nats))

    def report(self) -> dict[str, float | int | str | None]:
        """Return all figures by name.

        ppl_word is the paper's: exp of the mean nats per sequence over the mean number of whitespace words; None for
        text without spaces between words. A perplexity beyond the range of a float is None. standard_error_nats is the
        standard error of nats_per_sequence over sentences and draws of x_t; None for a single sentence.
        draws_error_nats is the part due to the draws, which more evaluations reduce. An exact likelihood has no steps
        and no error of draws; if the sampler excludes a sentence, the figures over all are infinite, and None.
        """
        n = self.num_sequences
        mean = self.nats / n
        variance = max(self.nats_squared / n - mean**2, 0) * n
        found = {
            "nats_per_sequence": mean,
            "bits_per_token": self.nats / self.num_tokens / math.log(2),
            "ppl_token": perplexity(self.nats / self.num_tokens),
            "ppl_word": perplexity(self.nats / max(self.num_words, 1e-9)) if self.words_separated else None,
            "prior_nats": self.prior_nats / self.num_sequences,
            "reconstruction_nats": self.reconstruction_nats / self.num_sequences,
            "unigram_bits_per_token": self.unigram_nats / self.num_tokens / math.log(2),
            "num_steps": self.num_steps if math.isfinite(self.num_steps) else "inf",  # JSON has no infinity
            "num_sequences": self.num_sequences,
            "num_tokens": self.num_tokens,
            "num_words": round(self.num_words),
            "estimator": self.estimator,
            "protocol": self.row_format,
            "detokenizer": self.detokenizer,
            "length_nats": None if self.length_nats is None else self.length_nats / n,
            "network_evaluations": round(self.network_evaluations, 1),
            "standard_error_nats": math.sqrt(variance / (n - 1) / n) if n > 1 else None,
            "draws_error_nats": None if self.draws_variance is None else math.sqrt(self.draws_variance) / n,
            **{name: nats / self.num_tokens for name, nats in self.profile.items()},
            **self.network_figures,
        }
        if not self.law:
            return found
        found |= dict.fromkeys(("num_steps", "prior_nats", "reconstruction_nats")) | {"draws_error_nats": 0.0}
        found |= {**self.law, "excluded_sequences": self.num_excluded}
        infinite = [name for name, value in found.items() if isinstance(value, float) and not math.isfinite(value)]
        return found | (dict.fromkeys(infinite) if self.num_excluded else {})


FILTERS = {"temperature": 1, "top_k": 0, "top_p": 1}
"""Settings of sampler=ordered besides its order, and the values at which they change nothing."""


def format_report(report: dict[str, float | int | str | None]) -> str:
    """Format a report in a few lines."""
    if report.get("excluded_sequences"):
        excluded = f"{report['excluded_sequences']:,} of {report['num_sequences']:,} sequences"
        return f"infinite: the sampler never draws {excluded}\n{_how(report)}"
    error, draws = report["standard_error_nats"], report["draws_error_nats"]
    margin = "unknown" if error is None else number(error, 3)
    given = "" if report["length_nats"] is None else f" given their lengths ({number(report['length_nats'], 3)} more)"
    margin += "" if draws is None or "order" in report else f" (of the draws alone {number(draws, 3)})"
    terms = [f"{name} {number(report[f'{name}_nats'], 3)}" for name in ("prior", "reconstruction")]
    of_these = "" if "order" in report else f"; of these {', '.join(terms)}"
    return (
        f"{number(report['bits_per_token'], 3)} bits/token (unigram {number(report['unigram_bits_per_token'], 3)}), "
        f"PPL {_perplexities(report)}\n"
        f"{number(report['nats_per_sequence'], 3)} nats/sequence{given}, standard error {margin}"
        f"{of_these}\n{_how(report)}"
    )


def _how(report: dict[str, float | int | str | None]) -> str:
    """Return how the figures were computed, and of what."""
    of_estimator = "" if report["estimator"] == "windows" else f" by {report['estimator']}"
    how = f"{report['num_steps']} steps{of_estimator}"
    if "order" in report:
        each = report["tokens_per_step"]
        tokens = "token" if each == 1 else "tokens"
        how = f"exact -log p of sampler=ordered, order {report['order']}, {each} {tokens} a step"
        how += "".join(f", {name}={report[name]:g}" for name, none in FILTERS.items() if report[name] != none)
    return (
        f"{how}; {report['network_evaluations']:g} network evaluations a sequence; "
        f"{report['num_sequences']:,} sequences, {report['num_tokens']:,} tokens, {report['num_words']:,} words"
        + (f"; rows {report['protocol']}" if report["protocol"] else "")
        + (f", detokenized as {report['detokenizer']}" if report["detokenizer"] not in ("", "none") else "")
        + _by_level(report)
    )


def _perplexities(report: dict[str, float | int | str | None]) -> str:
    token, word = (None if report[name] is None else number(report[name], 2) for name in ("ppl_token", "ppl_word"))
    nats = report["nats_per_sequence"] * report["num_sequences"]
    beyond = nats > MOST_NATS * max(report["num_words"], 1e-9)
    no_number = "above 1e308 per word" if beyond else "none per word (no spaces between words)"
    return f"{token or 'above 1e308'} per token, " + (no_number if word is None else f"{word} per word")


def _by_level(report: dict[str, float | int | str | None]) -> str:
    prefix = "cross_entropy_at_"
    levels = [
        f"{name.removeprefix(prefix)}: {number(nats, 3)}" for name, nats in report.items() if name.startswith(prefix)
    ]
    return f"\ncross-entropy in nats per token, by noise level: {', '.join(levels)}" if levels else ""
