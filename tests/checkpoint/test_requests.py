"""requests.py: samples, candidates and steps out of range are refused with their bounds."""

import math

import pytest

from checkpoint.requests import CandidateRequest, SampleRequest, check_steps
from utils.errors import UserError


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (SampleRequest, {"num_samples": 0}, "num_samples=0 must lie in 1..1000000"),
        (SampleRequest, {"length": 3, "infill": "a [MASK]"}, "give length or infill, not both"),
        (SampleRequest, {"infill_pieces": True}, "infill_pieces is for infill; leave it out"),
        (CandidateRequest, {"mbr_size": 1001}, "mbr_size=1001 must lie in 1..1000"),
        (CandidateRequest, {"seed": -1}, "seed=-1 must lie in 0.."),
    ],
)
def test_a_request_out_of_range_is_refused(kind: type, given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind(**given)


def test_reverse_steps_are_whole_numbers_or_infinite() -> None:
    for number in (0, 1, 128, 10**6, math.inf):
        check_steps(number)
    for number in (-1, 0.5, 10**6 + 1, math.nan, True, "128"):
        with pytest.raises(UserError, match="must be a whole number in 0..1000000, or inf"):
            check_steps(number)
