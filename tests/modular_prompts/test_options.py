"""options.py: sizes of a pool out of range are refused; a stage can be lengthened."""

import pytest

from modular_prompts.options import PoolShape, Stage
from utils.errors import UserError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((0, 10, 32), "num_modules=0 must lie in 1..100000"),
        ((8, 10, 32, 0), "num_layers=0 must lie in 1..100000"),
        ((8, 10, 32, 1, -1), "intrinsic_size=-1 must lie in 0..100000; 0: free modules"),
        ((8.0, 10, 32), "num_modules=8.0 must be a whole number"),
    ],
)
def test_a_size_out_of_range_is_refused(given: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PoolShape(*given)


def test_a_longer_stage_differs_in_its_steps_only() -> None:
    assert Stage(40, 0.1, 32, 10).longer(60) == Stage(100, 0.1, 32, 10)
