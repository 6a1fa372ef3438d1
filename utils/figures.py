"""Figures for people and programs: perplexities within a float's range, short numbers, valid JSON."""

import json
import math
import statistics
from collections.abc import Sequence

MOST_NATS = 709.0
"""Largest argument whose exp is a finite float."""
MOST_DIGITS = 1e6
"""Largest figure that is written without an exponent."""


def perplexity(nats: float) -> float | None:
    """Return exp of a mean in nats; None beyond a float's range (1e308), as after divergence."""
    return None if nats > MOST_NATS else math.exp(nats)


def number(value: float | None, decimals: int) -> str:
    """Format a figure with `decimals` decimals, with an exponent if it is large, and None as n/a."""
    if value is None:
        return "n/a"
    return f"{value:.{decimals}f}" if not abs(value) > MOST_DIGITS else f"{value:.3e}"


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean of two values or more."""
    return statistics.stdev(values) / math.sqrt(len(values))


def spread(values: Sequence[float | None], decimals: int) -> str:
    """Format a mean with its standard error, without one for a single value; n/a if a value is missing."""
    if None in values:
        return "n/a"
    mean = number(statistics.mean(values), decimals)
    return mean if len(values) < 2 else f"{mean} ± {number(standard_error(values), decimals)}"


def duration(seconds: float) -> str:
    """Format a time to wait: "40 s", "12 min", "2 h 05 min"."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02} min"


def as_json(report: dict[str, object]) -> str:
    """Return a report as one JSON object.

    Raises:
        ValueError: for NaN and infinity, which JSON lacks; `errors.require_finite` gives a clear message first.
    """
    return json.dumps(report, allow_nan=False)
