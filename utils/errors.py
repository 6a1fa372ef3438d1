"""Errors that a user can correct: one line with the value, its bound and the remedy."""

import math
from dataclasses import fields
from numbers import Integral


class UserError(ValueError):
    """Input that cannot be used; the message names the value, the bound and the remedy."""


def check_choices(args: object) -> None:
    """Check each setting against the choices in its field's metadata.

    Raises:
        UserError: with the setting and its choices.
    """
    for part in fields(args):
        choices, value = part.metadata.get("choices"), getattr(args, part.name)
        if choices and value not in choices:
            raise UserError(f"{part.name}={value!r} must be one of {', '.join(filter(None, choices))}")


def check_ranges(args: object, **bounds: tuple[float, float]) -> None:
    """Check settings against bounds (least, most), both included; NaN is out of bounds.

    Raises:
        UserError: with the setting and its bounds.
    """
    for name, (least, most) in bounds.items():
        if not least <= getattr(args, name) <= most:
            raise UserError(f"{name}={getattr(args, name)} must lie in {least}..{most}")


def check_whole(**values: object) -> None:
    """Check that values given from Python are whole numbers; those of a command line are by their parser.

    Raises:
        UserError: with the name of the first that is not.
    """
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise UserError(f"{name}={shown(value)} must be a whole number")


MOST_SHOWN = 200
"""Characters of a value that an error message quotes."""


def shown(value: object) -> str:
    """Return a value's repr for an error message, without its middle if it is long."""
    text = repr(value)
    half = MOST_SHOWN // 2
    return text if len(text) <= MOST_SHOWN else f"{text[:half]}...{text[-half:]} ({len(text):,} characters)"


def require_finite(report: dict[str, object], remedy: str) -> None:
    """Check that the figures of a report are finite: JSON has no NaN, and a reader would take it for a result.

    Args:
        report: figures by name; values that are not floats are ignored.
        remedy: end of the message.

    Raises:
        UserError: with the first figure that is not finite.
    """
    for name, value in report.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} is {value}, not a finite number; {remedy}")
