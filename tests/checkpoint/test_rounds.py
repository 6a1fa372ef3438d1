"""rounds.py: the number of rounds, steps of the bound; evaluation/test_likelihood.py tests the sums."""

import math

import pytest
import torch

from checkpoint.rounds import Tally, bound_steps, rounds_for, rounds_wanted
from diffusion.options import BoundArgs
from diffusion.process import Bound
from utils.errors import UserError

CPU = torch.device("cpu")


def test_a_bound_that_is_not_finite_is_refused() -> None:
    for value in (math.nan, math.inf):
        tally, one = Tally(1, CPU), torch.ones(1, dtype=torch.float64)
        for nats in (one, one * value):
            tally.add(torch.tensor([0]), Bound(one * 0, nats, one * 0, one))
            tally.rounds += 1
        with pytest.raises(UserError, match="not finite"):
            rounds_for(tally, 0.1)


def test_one_round_suffices_for_every_window_and_a_target_error_needs_degrees_of_freedom() -> None:
    assert rounds_wanted(BoundArgs("windows"), 5) == 1 and rounds_wanted(BoundArgs("stratified"), 5) == 2
    assert rounds_wanted(BoundArgs("stratified", target_se=0.1), 1) == 21


def test_the_steps_of_a_bound_are_those_of_the_flag_or_the_default() -> None:
    assert [bound_steps(2048), bound_steps(64), bound_steps(math.inf)] == [128, 64, math.inf]
    assert bound_steps(2048, 512) == bound_steps(2048, 0, 4) == 512 and bound_steps(2048, math.inf) == math.inf
    with pytest.raises(UserError):
        bound_steps(64, 128)
