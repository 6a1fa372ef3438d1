"""optim.py: learning rates against their formulas, the optimizer of each weight, averaged weights."""

import math

import pytest
import torch
from torch import nn

from training.arguments import OptimArgs
from training.optim import AveragedWeights, learning_rate, make_optimizers
from utils.errors import UserError


def rate(schedule: str, step: int, progress: float = 0.0, warmup: int = 10_000) -> float:
    return learning_rate(OptimArgs(lr_schedule=schedule, learning_rate=2.0), step, progress, warmup) / 2.0


def test_inverse_sqrt_is_the_released_schedule() -> None:
    """n/1e4 + 1e-3 below 1e4, then 100/sqrt(n)."""
    for n in (1, 5000, 9999):
        assert rate("inverse_sqrt", n) == pytest.approx(n / 1e4 + 1e-3)
    for n in (10_000, 40_000, 1_900_000):
        assert rate("inverse_sqrt", n) == pytest.approx(100 / math.sqrt(n))


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_warm_up_is_linear_and_meets_the_peak(schedule: str) -> None:
    assert rate(schedule, 2500) == pytest.approx(0.25)
    assert rate(schedule, 10_000) == pytest.approx(1)


def test_schedules_decay_by_their_formulas() -> None:
    assert [rate("constant", 20_000, p) for p in (0.5, 1)] == [1, 1]
    assert rate("cosine", 20_000, 0.5) == pytest.approx(0.51) and rate("cosine", 20_000, 1) == pytest.approx(0.02)
    assert rate("linear", 20_000, 0.25) == pytest.approx(0.75) and rate("linear", 20_000, 1) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("step", "expected"), [(15_000, 5e-5), (30_000, 1e-4), (515_000, 5.235532e-5), (1_000_000, 2.219018e-7)]
)
def test_late_cosine_follows_the_schedule_of_the_score_based_lm(step: int, expected: float) -> None:
    assert 5e-5 * rate("late_cosine", step, (step - 1) / 1e6, 30_000) * 2 == pytest.approx(expected, rel=1e-6)


def test_the_weight_average_follows_that_of_the_score_based_lm() -> None:
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 2.0]])
    average = AveragedWeights(model, 0.95)
    average.updates = 10_000  # its warm-up is over
    model.weight.data = torch.tensor([[3.0, 4.0]])
    average.update()
    with average.swapped_in():
        assert model.weight.flatten().tolist() == pytest.approx([1.1, 2.1])


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.inner = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 7)


def names_of(model: Toy, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


def test_muon_updates_the_inner_matrices_and_adamw_all_other_weights() -> None:
    model = Toy()
    args = OptimArgs(optimizer="muon", adam_beta1=0.8, adam_beta2=0.999)
    muon, adamw = make_optimizers(args, model, [model.head])
    assert muon.param_groups[0]["adjust_lr_fn"] == "match_rms_adamw"  # both optimizers share one learning rate
    assert isinstance(muon, torch.optim.Muon) and set(names_of(model, muon)) == {"inner.weight"}
    decay = names_of(model, adamw)
    assert {n for n, d in decay.items() if d} == {"embedding.weight", "head.weight"}
    assert all(group["betas"] == (0.8, 0.999) for group in adamw.param_groups)
    assert {n for n, d in decay.items() if not d} == {"inner.bias", "norm.weight", "norm.bias", "head.bias"}


def test_adamw_alone_updates_every_weight_once() -> None:
    model = Toy()
    (adamw,) = make_optimizers(OptimArgs(), model, [model.head])
    assert all(group["betas"] == (0.9, 0.98) for group in adamw.param_groups)
    assert set(names_of(model, adamw)) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_either_optimizer_lowers_a_loss(optimizer: str) -> None:
    model, x = Toy(), torch.arange(7)
    optimizers = make_optimizers(OptimArgs(optimizer=optimizer, learning_rate=0.02), model, [model.head])
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(model.head(model.norm(model.inner(model.embedding(x)))), x)
        loss.backward()
        for o in optimizers:
            o.step()
            o.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_the_weight_average_equals_values_recorded_from_mdlm() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    average, shadows = AveragedWeights(module, 0.9999), []
    for value in range(1, 6):
        torch.nn.init.constant_(module.weight, value)
        average.update()
        shadows.append(average.shadow[0].item())
    assert shadows == pytest.approx([0.818182, 1.704545, 2.601399, 3.500499, 4.4002], rel=1e-5)


def test_averaged_weights_follow_their_definition_and_are_swapped_out_again() -> None:
    model = nn.Linear(1, 1, bias=False)
    average, expected = AveragedWeights(model, 0.5), model.weight.item()
    for n in range(1, 6):
        with torch.no_grad():
            model.weight.fill_(float(n))
        average.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    with average.swapped_in():
        assert model.weight.item() == pytest.approx(expected, rel=1e-6)
    assert model.weight.item() == 5
    with AveragedWeights(model, 0.0).swapped_in():
        assert model.weight.item() == 5


@pytest.mark.parametrize(
    "setting",
    [
        {"learning_rate": 0.0},
        {"ema_decay": 1.0},
        {"weight_decay": -1.0},
        {"max_grad_norm": -1.0},
        {"warmup_steps": -5},
        {"adam_beta1": 1.0},
        {"adam_beta2": -0.1},
        {"adam_beta2": math.nan},
    ],
)
def test_settings_out_of_range_are_refused(setting: dict) -> None:
    (name,) = setting
    with pytest.raises(UserError, match=f"{name}="):
        OptimArgs(**setting)


HEAD = {"head.weight", "head.bias"}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("settings", [{"head_learning_rate": 1e-3}, {"head_first": 0.1}])
def test_a_head_treated_apart_has_groups_of_its_own(optimizer: str, settings: dict) -> None:
    model = Toy()
    args = OptimArgs(optimizer=optimizer, **settings)
    groups = [
        (
            group["of_head"],
            set(names_of(model, o)) & {n for n, p in model.named_parameters() if any(p is q for q in group["params"])},
        )
        for o in make_optimizers(args, model, [model.head], list(model.head.parameters()))
        for group in o.param_groups
    ]
    assert set().union(*(names for of_head, names in groups if of_head)) == HEAD
    assert not any(names & HEAD for of_head, names in groups if not of_head)
    assert sorted(name for _, names in groups for name in names) == sorted(name for name, _ in model.named_parameters())


def test_without_such_settings_the_groups_are_as_before() -> None:
    model = Toy()
    (adamw,) = make_optimizers(OptimArgs(), model, [model.head], list(model.head.parameters()))
    assert len(adamw.param_groups) == 2 and not any(group["of_head"] for group in adamw.param_groups)


def test_the_body_waits_and_the_head_has_its_own_rate() -> None:
    args = OptimArgs(learning_rate=1e-4, head_learning_rate=3e-4, head_first=0.25)
    assert [args.factor(of_head=False, progress=p) for p in (0, 0.24, 0.25, 1)] == [0, 0, 1, 1]
    assert [args.factor(of_head=True, progress=p) for p in (0, 0.24, 0.25, 1)] == pytest.approx([3, 3, 3, 3])
    assert OptimArgs().factor(of_head=True, progress=0) == OptimArgs().factor(of_head=False, progress=0) == 1


@pytest.mark.parametrize(("name", "value"), [("head_learning_rate", -1.0), ("head_first", 1.0), ("head_first", -0.1)])
def test_settings_of_the_head_have_bounds(name: str, value: float) -> None:
    with pytest.raises(UserError, match=name):
        OptimArgs(**{name: value})
