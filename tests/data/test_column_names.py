"""column_names.py: which names can be given together."""

import pytest

from data.column_names import ColumnNames
from utils.errors import UserError


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"source_column": "a"}, "source_column=a needs a target_column too"),
        ({"target_column": "a"}, "target_column=a needs a source_column too"),
        ({"text_column": "t", "source_column": "a", "target_column": "b"}, "leave one kind out"),
        ({"source_column": "a", "target_column": "a"}, "are both a; give two columns"),
    ],
)
def test_names_that_contradict_are_refused(names: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ColumnNames(**names)


def test_names_are_in_the_order_of_the_columns() -> None:
    assert ColumnNames().given == () and ColumnNames(text_column="t").given == ("t",)
    assert ColumnNames(target_column="b", source_column="a").given == ("a", "b")
