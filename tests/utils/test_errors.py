"""errors.py: values out of bounds are named with their bound; long values are cut; figures must be finite."""

import math
from dataclasses import dataclass, field

import pytest

from utils.errors import MOST_SHOWN, UserError, check_choices, check_ranges, require_finite, shown


@dataclass
class Settings:
    kind: str = field(default="a", metadata={"choices": ["a", "b"]})
    share: float = 0.5


def test_choices_and_ranges_are_checked() -> None:
    check_choices(Settings("b"))
    with pytest.raises(UserError, match="kind='c' must be one of a, b"):
        check_choices(Settings("c"))
    for share in (0.0, 1.0):
        check_ranges(Settings(share=share), share=(0, 1))
    for share in (-0.1, 1.5, math.nan):
        with pytest.raises(UserError, match=f"share={share} must lie in 0..1"):
            check_ranges(Settings(share=share), share=(0, 1))


def test_a_long_value_is_shown_by_its_ends() -> None:
    assert shown("x" * (MOST_SHOWN - 2)) == repr("x" * (MOST_SHOWN - 2))
    long = shown("a" + "x" * 9997 + "b")
    assert long.startswith("'ax") and "xb' (10,001 characters)" in long and len(long) < MOST_SHOWN + 30


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_is_refused_by_name(value: float) -> None:
    require_finite({"a": 1.0, "b": None, "c": "inf", "d": 3}, "train longer")
    with pytest.raises(UserError, match=f"b is {value}, .*; train longer"):
        require_finite({"a": 1.0, "b": value}, "train longer")
