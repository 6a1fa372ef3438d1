"""pool.py: the recorded numbers of the released modules; weights, draws and mixtures as the formulas say."""

import json

import pytest
import torch
from torch import Generator, Tensor

from modular_prompts.options import PoolShape
from modular_prompts.pool import PromptPool, Router, normalised, relaxed_gates
from tests.conftest import GOLDEN
from utils.errors import UserError


def golden(name: str) -> dict:
    return json.loads((GOLDEN / f"mp2_{name}.json").read_text())


def pool_of(codes: list, projection: list, length: int) -> PromptPool:
    """Return the pool with these codes [K, d] and this projection [d, P * D], or with a layer more in both."""
    z, a = (torch.tensor(values) for values in (codes, projection))
    z, a = (z, a) if z.dim() == 3 else (z[None], a[None])
    pool = PromptPool(PoolShape(z.shape[1], length, a.shape[2] // length, len(z), z.shape[2]))
    with torch.no_grad():
        pool.codes.copy_(z)
        pool.projection.copy_(a)
    return pool


def weights_of(case: dict, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return gates and weights, [K] or [layers, K], of a recorded case."""
    logits = torch.tensor(case["logits"], dtype=dtype)
    drawn = case["mode"] == "train"
    uniform = torch.tensor(case["uniform"], dtype=dtype) if drawn else None
    gates = relaxed_gates(logits, uniform, case.get("temperature", 1.0)) if drawn else torch.sigmoid(logits)
    return gates, normalised(gates)


@pytest.mark.parametrize("case", golden("router")["cases"])
def test_gates_and_weights_are_the_recorded_ones(case: dict) -> None:
    gates, weights = weights_of(case)
    assert gates.tolist() == pytest.approx(case["gate"], abs=1e-6)
    assert weights.tolist() == pytest.approx(case["weights"], abs=1e-6)
    router = Router(2, 3)
    with torch.no_grad():
        router.logits[case["task"], 0] = torch.tensor(case["logits"])
    uniform = torch.tensor(case["uniform"]).expand(2, 1, 3) if case["mode"] == "train" else None
    found = router(torch.tensor([case["task"]]), uniform, case["temperature"])
    assert found[0, 0].tolist() == pytest.approx(case["weights"], abs=1e-6)


@pytest.mark.parametrize("case", golden("combined_prompt")["cases"])
def test_the_mixture_is_the_recorded_prompt(case: dict) -> None:
    recorded = golden("combined_prompt")
    pool = pool_of(recorded["z"], recorded["A"], recorded["prompt_length"])
    weights = weights_of(case)[1][None, None]
    expected = torch.tensor(case["combined_prompt"])
    assert torch.allclose(pool(weights)[0, 0], expected, atol=1e-6)
    assert torch.allclose(pool.freed()(weights)[0, 0], expected, atol=1e-6)


def test_free_prompts_mix_as_recorded() -> None:
    case = golden("full_prompts")["case"]
    pool = PromptPool(PoolShape(3, 2, 4))
    with torch.no_grad():
        pool.free.copy_(torch.tensor(case["prompt"])[None])
    weights = normalised(torch.sigmoid(torch.tensor(case["logits"])))
    assert torch.allclose(pool(weights[None, None])[0, 0], torch.tensor(case["added"]), atol=1e-6)


def test_one_module_is_plain_prompt_tuning() -> None:
    """The prompt does not depend on the router, which gets no gradient; this holds for deep prompts too."""
    recorded = golden("one_module")
    pool, router = pool_of(recorded["z"], recorded["A"], 2), Router(1, 1)
    for case in recorded["shallow"]:
        with torch.no_grad():
            router.logits.fill_(case["logit"])
        prompt = pool(router(torch.tensor([0])))
        assert torch.allclose(prompt[0, 0], torch.tensor(case["added"]), atol=1e-6)
        router.logits.grad = None
        prompt.square().sum().backward()
        assert router.logits.grad.abs().max() < 1e-5  # 0 up to rounding
    deep = PromptPool(PoolShape(1, 2, 4, num_layers=3))
    assert torch.allclose(deep(router(torch.tensor([0])))[0], deep.free.reshape(3, 2, 4))


def test_a_search_in_the_space_of_codes_starts_at_the_mixture() -> None:
    """With every code at x = sum_k w_k z_k the prompt is x A under any router, as for CMA-ES."""
    recorded = golden("black_box")
    pool = pool_of(recorded["z"], recorded["A"], 2)
    weights = normalised(torch.sigmoid(torch.tensor(recorded["router_logits"])))
    x = weights @ torch.tensor(recorded["z"])
    assert x.tolist() == pytest.approx(recorded["x0"], abs=1e-6)
    assert torch.allclose(pool(weights[None, None])[0, 0], torch.tensor(recorded["prompt_before"]), atol=1e-6)
    with torch.no_grad():
        pool.codes.copy_(x.expand_as(pool.codes))
    for other in (weights, torch.full((8,), 1 / 8)):
        assert torch.allclose(pool(other[None, None])[0, 0], torch.tensor(recorded["prompt_from_x0"]), atol=1e-6)


def test_weights_sum_to_one_and_are_not_negative() -> None:
    router, generator = Router(5, 8, 3), Generator().manual_seed(0)
    with torch.no_grad():
        router.logits.normal_(0, 20, generator=generator)
    for uniform in (None, *(router.draw(generator) for _ in range(20))):
        weights = router(torch.arange(5), uniform)
        assert (weights >= 0).all() and torch.allclose(weights.sum(-1), torch.ones(5, 3), atol=1e-6)


def test_equal_logits_give_the_mean_and_one_large_logit_its_module() -> None:
    pool = PromptPool(PoolShape(4, 3, 5, num_layers=2), Generator().manual_seed(0))
    modules = pool.free.reshape(2, 4, 3, 5)
    router = Router(2, 4)
    with torch.no_grad():
        router.logits[0], router.logits[1] = 0.7, -30.0
        router.logits[1, 0, 2] = 30.0
    mean, third = pool(router(torch.tensor([0, 1])))
    assert torch.allclose(mean, modules.mean(1), atol=1e-6) and torch.allclose(third, modules[:, 2], atol=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_a_gate_exceeds_one_half_with_the_probability_of_its_logit(temperature: float) -> None:
    logits, number = torch.tensor([-2.0, 0.0, 0.5, 3.0]), 20_000
    uniform = torch.rand(number, 4, generator=Generator().manual_seed(1))
    share = (relaxed_gates(logits, uniform, temperature) > 0.5).double().mean(0)
    p = torch.sigmoid(logits.double())
    assert ((share - p).abs() < 3 * (p * (1 - p) / number).sqrt()).all()


def test_modules_and_logits_permuted_together_change_nothing() -> None:
    generator = Generator().manual_seed(0)
    pool, router, order = PromptPool(PoolShape(4, 2, 3), generator), Router(1, 4), torch.tensor([2, 0, 3, 1])
    task = torch.tensor([0])
    with torch.no_grad():
        router.logits.normal_(generator=generator)
        before = pool(router(task))
        pool.free.copy_(pool.free[:, order])
        assert not torch.allclose(pool(router(task)), before, atol=1e-3)  # the modules alone
        router.logits.copy_(router.logits[..., order])
    assert torch.allclose(pool(router(task)), before, atol=1e-6)


def test_rows_of_two_tasks_are_mixed_as_each_alone() -> None:
    pool, router = PromptPool(PoolShape(3, 2, 4, 2, 5), Generator().manual_seed(0)), Router(2, 3, num_layers=2)
    uniform = router.draw(Generator().manual_seed(1))
    together = pool(router(torch.tensor([1, 0, 1]), uniform))
    for row, task in zip(together, (1, 0, 1), strict=True):
        assert torch.equal(row, pool(router(torch.tensor([task]), uniform))[0])


@pytest.mark.parametrize("sizes", [(0, 2, 3), (2, 0, 3), (2, 2, 3, 0), (2, 2, 3, 1, -1)])
def test_impossible_sizes_are_refused(sizes: tuple) -> None:
    with pytest.raises(UserError, match="must lie in"):
        PoolShape(*sizes)


@pytest.mark.parametrize("intrinsic_size", [0, 3])
def test_with_equal_modules_the_router_has_no_effect(intrinsic_size: int) -> None:
    """The search of the code relies on it: the released program writes a candidate into every module."""
    pool = PromptPool(PoolShape(4, 2, 3, 2, intrinsic_size))
    with torch.no_grad():
        modules = pool.codes if intrinsic_size else pool.free
        modules.copy_(torch.randn(2, 1, modules.shape[2]).expand_as(modules))
    first, second = (pool(normalised(torch.rand(1, 2, 4) + 0.1)) for _ in range(2))
    assert torch.allclose(first, second, atol=1e-6)
