"""Figures for people and programs: perplexities within a float's range, short numbers, valid JSON."""

import json
import math

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


def as_json(report: dict[str, object]) -> str:
    """Return a report as one JSON object.

    Raises:
        ValueError: for NaN and infinity, which JSON lacks; `errors.require_finite` gives a clear message first.
    """
    return json.dumps(report, allow_nan=False)
