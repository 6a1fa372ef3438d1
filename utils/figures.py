"""Figures as people and programs read them: perplexities that fit a float, numbers without 300 digits, valid JSON."""

import json
import math

MOST_NATS = 709.0
"""What exp still takes to a float."""
MOST_DIGITS = 1e6
"""From here on a figure is written with an exponent."""


def perplexity(nats: float) -> float | None:
    """Exp of a mean in nats; None beyond the range of a float (1e308): that of a network which has diverged."""
    return None if nats > MOST_NATS else math.exp(nats)


def number(value: float | None, decimals: int) -> str:
    """A figure with so many decimals, an exponent if it is large, n/a where it does not exist."""
    if value is None:
        return "n/a"
    return f"{value:.{decimals}f}" if not abs(value) > MOST_DIGITS else f"{value:.3e}"


def as_json(report: dict[str, object]) -> str:
    """One JSON object.

    Raises:
        ValueError: of NaN and infinity, which JSON has not; `process.require_finite` refuses them in words.
    """
    return json.dumps(report, allow_nan=False)
