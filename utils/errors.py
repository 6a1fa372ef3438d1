"""Errors that a user can mend: one line that names the value, its bound and the remedy."""

import math
from dataclasses import fields


class UserError(ValueError):
    """Something the user gave cannot be used; the message names the value, the bound and the remedy."""


def check_choices(args: object) -> None:
    """Refuses a setting that is none of the choices its field names, however the dataclass was made.

    Raises:
        UserError: naming the setting and its choices.
    """
    for part in fields(args):
        choices, value = part.metadata.get("choices"), getattr(args, part.name)
        if choices and value not in choices:
            raise UserError(f"{part.name}={value!r} must be one of {', '.join(choices)}")


def check_ranges(args: object, **bounds: tuple[float, float]) -> None:
    """Refuses a setting outside its bounds, (least, most); one that is not a number is outside.

    Raises:
        UserError: naming the setting and its bounds.
    """
    for name, (least, most) in bounds.items():
        if not least <= getattr(args, name) <= most:
            raise UserError(f"{name}={getattr(args, name)} must lie in {least}..{most}")


MOST_SHOWN = 200
"""Characters of a refused value that an error quotes."""


def shown(value: object) -> str:
    """A value as an error message quotes it: its repr, the middle left out if it is long."""
    text = repr(value)
    half = MOST_SHOWN // 2
    return text if len(text) <= MOST_SHOWN else f"{text[:half]}...{text[-half:]} ({len(text):,} characters)"


def require_finite(report: dict[str, object], remedy: str) -> None:
    """Refuse to report a figure that is no number: JSON has no NaN, and a reader would take it for a result.

    Args:
        report: figures by name; what is not a float is left alone.
        remedy: ends the message.

    Raises:
        UserError: naming the first such figure.
    """
    for name, value in report.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} is {value}, not a finite number; {remedy}")
