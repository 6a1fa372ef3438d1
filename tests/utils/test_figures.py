"""figures.py: a figure has at most a dozen characters, and JSON holds no NaN."""

import math

import pytest

from utils.figures import as_json, duration, number, perplexity, spread


@pytest.mark.parametrize(
    ("value", "decimals", "shown"),
    [
        (3.14159, 2, "3.14"),
        (1e6, 1, "1000000.0"),
        (1e6 + 1, 1, "1.000e+06"),
        (-2.5e7, 3, "-2.500e+07"),
        (math.exp(700), 2, "1.014e+304"),
        (1e-9, 3, "0.000"),
        (None, 3, "n/a"),
    ],
)
def test_a_number_has_few_characters_at_any_size(value: float | None, decimals: int, shown: str) -> None:
    assert number(value, decimals) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.2, "0 s"), (59, "59 s"), (59.6, "1 min"), (3569, "59 min"), (3571, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_a_duration_has_the_unit_of_its_size(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_a_spread_is_the_mean_and_its_standard_error() -> None:
    assert spread([1.0, 2.0, 3.0], 2) == "2.00 ± 0.58"  # deviation 1, over sqrt(3)
    assert spread([2.5], 1) == "2.5" and spread([2.5, None], 1) == "n/a"


def test_an_overflowing_perplexity_is_none() -> None:
    assert perplexity(math.log(64)) == pytest.approx(64) and math.isfinite(perplexity(709))
    assert perplexity(710) is perplexity(1e9) is perplexity(math.inf) is None
    assert math.isnan(perplexity(math.nan))  # so that it is refused later, not left out


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_holds_no_non_finite_value(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        as_json({"a": value})
    assert as_json({"a": None, "notes": []}) == '{"a": null, "notes": []}'
