"""options.py: settings of metrics and of the table of samplers."""

import pytest

from diffusion.options import ORDERS
from evaluation.options import MetricArgs, RefereeArgs, whole_numbers
from utils.errors import UserError


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (MetricArgs, {"predictions": "x", "mbr_size": 1001}, "mbr_size=1001 must lie in 0..1000"),
        (MetricArgs, {"predictions": "x", "text_column": "t"}, "t names a column of --references or --train_data"),
        (MetricArgs, {"predictions": "x", "rouge_tokens": "bytes"}, "rouge_tokens='bytes'"),
        (RefereeArgs, {"picture": "a.png"}, "picture is for the table of samplers; add --referee"),
        (RefereeArgs, {"referee": True, "picture": "a.jpg"}, "picture=a.jpg: must end in .png"),
        (RefereeArgs, {"referee": True, "table_orders": "best"}, "table_orders=best: 'best' is none of confidence"),
        (RefereeArgs, {"referee": True, "table_steps": "0"}, "table_steps=0: each must lie in 1..1000000"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(kind: type, given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind(**given)


def test_the_table_has_every_order_unless_some_are_named() -> None:
    assert RefereeArgs(referee=True).orders == list(ORDERS)
    assert RefereeArgs(referee=True, table_orders="margin, entropy,margin").orders == ["margin", "entropy"]


def test_numbers_are_separated_by_commas() -> None:
    assert whole_numbers("steps", "4,8,4") == [4, 8]
    with pytest.raises(UserError, match="steps=4;8: must be whole numbers, separated by commas"):
        whole_numbers("steps", "4;8")
