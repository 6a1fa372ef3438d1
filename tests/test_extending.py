"""docs/extending.md: the process of its example is correct, by enumeration."""

import math

import pytest
import torch

from diffusion.process import Vocabulary
from tests.conftest import ROOT, TableDenoiser, all_sentences, text_batch
from tests.test_docs import code_blocks
from tests.toy_family import limit_bound
from tests.toy_process import COUNTS, MASK, TOKENS


@pytest.fixture(scope="module")
def example() -> dict:
    """Return the namespace of the page's Python block, executed."""
    (block,) = (block for kind, block in code_blocks((ROOT / "docs" / "extending.md").read_text()) if kind == "python")
    names: dict = {"__name__": "example"}
    exec(compile(block, "docs/extending.md", "exec"), names)
    return names


def make_example(example: dict, power: float):
    return example["PolynomialDiffusion"](example["PolynomialArgs"](power=power), Vocabulary(len(COUNTS), MASK))


@pytest.mark.parametrize("power", [1.0, 2.5])
def test_the_posterior_of_the_example_composes(example: dict, power: float) -> None:
    """The probability of staying masked from t to r is the product of those from t to s and from s to r."""
    process, x0 = make_example(example, power), torch.tensor([[0, 2, 4]])
    r, s, t = (torch.tensor([time], dtype=torch.float64) for time in (0.2, 0.5, 0.9))
    stay = [1 - process.posterior(x0, *pair, torch.ones_like(x0).bool()) for pair in ((r, t), (r, s), (s, t))]
    torch.testing.assert_close(stay[0], stay[1] * stay[2])
    alpha_bar = process.alpha_bar(t, x0, torch.ones_like(x0).bool())
    torch.testing.assert_close(alpha_bar, torch.full_like(alpha_bar, 1 - 0.9**power))


def test_exp_of_the_negative_bound_of_the_example_sums_to_at_most_one(example: dict) -> None:
    process, denoiser = make_example(example, 2.5), TableDenoiser(len(COUNTS))
    bounds = [limit_bound(process, denoiser, x0) for x0 in all_sentences(TOKENS, 2)]
    assert 0.5 < sum(math.exp(-bound) for bound in bounds) <= 1


def test_the_loss_of_the_example_estimates_its_bound(example: dict) -> None:
    process, denoiser, x0 = make_example(example, 2.5), TableDenoiser(len(COUNTS)), torch.tensor([0, 2, 4])
    batch = text_batch(x0.expand(20_000, 3))
    loss = process.loss(denoiser, batch, generator=torch.Generator().manual_seed(0))
    assert loss.total.item() / 20_000 == pytest.approx(limit_bound(process, denoiser, x0), rel=0.02)
    assert loss.num_tokens == 60_000 and loss.terms["cross_entropy"] > 0
