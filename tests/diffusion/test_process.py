"""process.py: barred tokens are never predicted or drawn, and take no part in a softmax."""

import math

import torch

from diffusion.autoregressive import Autoregressive
from diffusion.process import Bound, Vocabulary
from diffusion.process_options import AutoregressiveArgs


def test_barred_tokens_have_probability_0_and_unsampled_ones_are_scored() -> None:
    process = Autoregressive(AutoregressiveArgs(), Vocabulary(6, mask_id=3, excluded_ids=(0, 5), unsampled_ids=(4,)))
    probs = process.within_support(torch.zeros(2, 6)).softmax(-1)
    assert probs[0].tolist() == torch.tensor([0, 1, 1, 0, 1, 0]).div(3).tolist()
    assert process.support.tolist() == [-math.inf, 0, 0, -math.inf, 0, -math.inf]
    assert process.sampling_support.tolist() == [-math.inf, 0, 0, -math.inf, -math.inf, -math.inf]


def test_logits_are_at_least_float32() -> None:
    process = Autoregressive(AutoregressiveArgs(), Vocabulary(4, mask_id=3))
    assert process.within_support(torch.zeros(1, 4, dtype=torch.bfloat16)).dtype == torch.float32
    assert process.within_support(torch.zeros(1, 4, dtype=torch.float64)).dtype == torch.float64


def test_tables_move_with_the_network() -> None:
    process = Autoregressive(AutoregressiveArgs(), Vocabulary(4, mask_id=3)).to(torch.device("meta"))
    assert process.barred.device.type == process.sampling_support.device.type == "meta"


def test_a_bound_is_the_sum_of_its_terms() -> None:
    one, two, three = torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([4.0])
    assert Bound(one, two, three, forwards=one).total.item() == 7
