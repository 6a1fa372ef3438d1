"""prediction.py: sums and gradient equal the formulas, evaluated over [B, L, V]."""

import pytest
import torch
from torch import Tensor, nn

from benchmarks import matrix_formulation
from data.batch import Batch
from tests.diffusion.test_chunked_logits import V
from tests.toy_process import MASK, make, steps


class Learner(nn.Module):
    """Denoiser with one learned logit for every position and token."""

    time_conditioned = False

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.logits = nn.Parameter(3 * torch.randn(*shape, V, dtype=dtype))

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits."""
        return self.logits

    def decode(self, hidden: Tensor) -> Tensor:
        """Return a copy, which may be changed in place."""
        return hidden.clone()


def case(dtype: torch.dtype) -> tuple[Learner, Batch, Tensor]:
    """Return four sentences with a given token and padding; some, none or all targets are masked."""
    x0 = torch.tensor([[0, 1, 2, 4, 4, 0], [2, 2, 0, 0, 1, 4], [4, 0, 1, 1, 0, 0], [0, 0, 2, 1, 4, 4]])
    on = torch.arange(6) < torch.tensor([6, 6, 4, 5])[:, None]
    targets = on & (torch.arange(6) > 0)
    masked = torch.tensor([[0, 1, 0, 1, 0, 1], [0] * 6, [0, 1, 1, 1, 0, 0], [0, 0, 1, 0, 1, 0]]).bool()
    return Learner(x0.shape, dtype), Batch(x0, on, targets), x0.masked_fill(masked & targets, MASK)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("spindle", ["paper", "released", "none"])
@pytest.mark.parametrize("hybrid", [0.0, 0.3])
@pytest.mark.parametrize("fused", [False, True])
def test_loss_and_gradient_are_those_of_the_formulas(
    dtype: torch.dtype, tolerance: float, spindle: str, hybrid: float, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion.chunked_logits.MAX_LOGITS", 5 * V)
    process = make(16, spindle, fused_loss=fused)
    learner, batch, xt = case(dtype)
    for s, t in ((8, 9), (0, 1), (3, 16)):
        found = []
        for terms in (process.token_terms, lambda *rest: matrix_formulation.terms_at(process, *rest)):
            kl, cross_entropy = terms(learner, batch, xt, steps(4, s), steps(4, t))
            (gradient,) = torch.autograd.grad(kl.sum() + hybrid * cross_entropy.sum(), learner.logits)
            found.append((kl.detach().double(), cross_entropy.detach().double(), gradient))
        for ours, reference in zip(*found, strict=True):
            torch.testing.assert_close(ours, reference, atol=tolerance, rtol=tolerance)
        assert found[0][2].abs().max() > 1e-3


def test_the_gradient_flows_through_the_sentence_mean() -> None:
    """A masked token's gradient depends on its neighbours' predictions: they share the sentence mean."""
    process = make(16, "paper")
    learner, batch, xt = case(torch.float64)

    def gradient_at_first() -> Tensor:
        kl, _ = process.token_terms(learner, batch, xt, steps(4, 8), steps(4, 9))
        return torch.autograd.grad(kl[0, 1], learner.logits)[0][0]

    before = gradient_at_first()
    assert before[3].abs().max() > 1e-6 and before[2].abs().max() == 0  # position 3 is masked, position 2 is not
    with torch.no_grad():
        learner.logits[0, 3] += torch.tensor([2.0, 0, 0, 0, 0])
    assert not torch.allclose(before[1], gradient_at_first()[1])
