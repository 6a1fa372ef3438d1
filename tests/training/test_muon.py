"""muon.py: the same updates as torch's Muon, up to the rounding of bf16, also where bf16 would be slow."""

import pytest
import torch

from training import muon
from training.muon import Muon, orthogonalized

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def updated(kind: str, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]) -> tuple[torch.Tensor, dict]:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(shape))
    group = {"params": [weight], "weight_decay": 0.1}
    if kind == "torch":
        optimizer = torch.optim.Muon([group], lr=0.01, adjust_lr_fn="match_rms_adamw")
    else:
        monkeypatch.setattr(muon, "pick_precision", lambda name, device: kind)
        optimizer = Muon([group], 0.01)
    for _ in range(3):
        weight.grad = torch.randn(shape)
        optimizer.step()
    return weight.detach(), optimizer.state_dict()


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_updates_are_those_of_torch(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]) -> None:
    expected, state = updated("torch", monkeypatch, shape)
    same, _ = updated("bf16", monkeypatch, shape)
    assert torch.equal(same, expected)
    weight, own_state = updated("fp32", monkeypatch, shape)
    start = updated("torch", monkeypatch, shape)[0] - expected  # zero: the runs are repeatable
    assert not start.any() and not torch.equal(weight, expected)
    step = 0.01 * 0.2 * max(shape) ** 0.5  # size of an orthogonal update
    assert (weight - expected).abs().max() < 3 * 0.02 * step
    # momentum and settings are stored alike, so a run can resume on other hardware
    assert own_state["param_groups"] == state["param_groups"]
    assert own_state["state"][0].keys() == state["state"][0].keys()
    assert torch.equal(own_state["state"][0]["momentum_buffer"], state["state"][0]["momentum_buffer"])


@pytest.mark.parametrize("shape", [(40, 10), (10, 40)])
def test_singular_values_become_near_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    result = orthogonalized(matrix, COEFFICIENTS, 5, 1e-7)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6 and values.max() < 1.3
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    between = u.T @ result @ v.T  # diagonal: only the singular values have changed
    assert (between - between.diag().diag()).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(6, 6), (6, 11), (6, 12), (30, 6)])
@pytest.mark.parametrize("rank", [2, 6])
def test_the_iteration_on_the_gram_matrix_is_the_one_on_the_matrix(shape: tuple[int, int], rank: int) -> None:
    """In float64 the two agree to rounding, for singular values of any size, zeros among them."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(shape[0], rank, generator=generator), torch.randn(rank, shape[1], generator=generator)
    matrix = (left * torch.logspace(-4, 0, rank)).double() @ right.double()
    a, b, c = COEFFICIENTS
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    torch.testing.assert_close(orthogonalized(matrix, COEFFICIENTS, 5, 1e-7), x, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("shape", [(16, 16), (16, 64)])
def test_rounding_in_single_precision_is_small(shape: tuple[int, int]) -> None:
    """Singular values down to 1e-5 of the largest are near the precision of the Gram matrix."""
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    matrix = u * torch.logspace(-5, 0, 16) @ v
    exact = orthogonalized(matrix.double(), COEFFICIENTS, 5, 1e-7)
    assert (orthogonalized(matrix, COEFFICIENTS, 5, 1e-7) - exact).abs().max() < 1e-3


def test_a_weight_without_gradient_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "pick_precision", lambda name, device: "fp32")
    weight = torch.nn.Parameter(torch.ones(2, 2))
    Muon([{"params": [weight], "weight_decay": 0.1}], 0.01).step()
    assert torch.equal(weight.detach(), torch.ones(2, 2))
