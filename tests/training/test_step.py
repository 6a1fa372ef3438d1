"""step.py: the loss of a step, gradient clipping, and the random numbers of a step."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from diffusion.draws import WHOLE
from diffusion.time_density import UNIFORM, TimeDensity
from tests.test_main import train
from training.arguments import OptimArgs, TrainArgs
from training.step import clip, time_density, training_loss

CPU = torch.device("cpu")


def test_clipping_bounds_the_norm_and_the_values() -> None:
    model, scaler = torch.nn.Linear(3, 1), torch.amp.GradScaler("cpu", enabled=False)
    for optim, expected in (
        (OptimArgs(max_grad_norm=2.5), [1.5, 2.0, 0.0]),
        (OptimArgs(max_grad_norm=0, max_grad_value=3.5), [3.0, 3.5, 0.0]),
        (OptimArgs(max_grad_norm=0), [3.0, 4.0, 0.0]),
    ):
        model.weight.grad, model.bias.grad = torch.tensor([[3.0, 4.0, 0.0]]), torch.zeros(1)
        assert clip(model, optim, [], scaler)
        torch.testing.assert_close(model.weight.grad[0], torch.tensor(expected), atol=1e-4, rtol=1e-4)
    model.weight.grad[0, 0] = math.nan
    assert not clip(model, OptimArgs(), [], scaler)


def test_an_fp16_overflow_in_one_gradient_skips_the_step_of_every_optimizer() -> None:
    """Two optimizers share one gradient norm, so neither may step if it is not finite."""
    a, b = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    model = torch.nn.ParameterList([a, b])
    optimizers = [torch.optim.SGD([a], lr=0.1), torch.optim.SGD([b], lr=0.1)]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for bad, may_step in ((math.inf, False), (math.nan, False), (1.0, True)):
        for parameter, value in ((a, bad), (b, 1.0)):
            scaler.scale(value * parameter.sum()).backward()
        assert clip(model, OptimArgs(), optimizers, scaler) == may_step
        scaler.update()
        model.zero_grad()
    assert scaler.get_scale() == 2.0  # halved twice


def test_the_warm_start_uses_masked_lm_and_later_steps_the_process_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("training.step.masked_lm_loss", lambda *_, rates, **__: ("masked lm", rates))
    process = SimpleNamespace(loss=lambda *_, **__: "process")
    run = SimpleNamespace(process=process, denoiser=None)
    args = TrainArgs("x", warm_start=0.25, warm_start_rates="0.2,0.3")
    losses = [training_loss(run, None, args, progress, None, WHOLE) for progress in (0.0, 0.24, 0.25, 1.0)]
    assert losses == [("masked lm", (0.2, 0.3))] * 2 + ["process"] * 2


def test_dropout_and_noise_follow_from_seed_step_and_batch() -> None:
    from training.step import seed_batch

    def drawn(*indices: int) -> tuple:
        generator, shared = seed_batch(*indices)
        return torch.rand(1).item(), torch.rand(1, generator=generator).item(), shared

    first = drawn(1, 2, 3)
    assert first == drawn(1, 2, 3) and first[0] != first[1]
    for other in (drawn(0, 2, 3), drawn(1, 1, 3), drawn(1, 2, 0)):
        assert first[0] != other[0] and first[1] != other[1]
    assert first[2] == drawn(1, 2, 9)[2] != drawn(1, 3, 3)[2]


def test_a_head_without_weights_of_its_own_cannot_be_trained_apart(
    monkeypatch: pytest.MonkeyPatch, capsys, corpus: Path, tmp_path: Path
) -> None:
    flags = ["--process", "mdlm", "--model_name_or_path", "ddit-tiny", "--head_first", 0.5]
    given = ["--config_overrides", "hidden_dim=32,n_blocks=1,n_heads=2,cond_dim=8", "--eval_step_size", 64]
    code, _ = train(monkeypatch, corpus, tmp_path, *flags, *given)
    assert code == 2 and "the vocabulary head of DitNetwork has no weights of its own" in capsys.readouterr().err


def test_the_bell_ends_after_its_share_and_else_never() -> None:
    """The progress of a training that a time limit has ended, and that is prolonged, is 1."""
    bell = TrainArgs("x", time_sampling="bell", bell="0.4,0.3")
    assert time_density(bell, 0.0) == time_density(bell, 1.0) == TimeDensity(0.4, 0.3)
    half = TrainArgs("x", time_sampling="bell", bell_share=0.5)
    assert [time_density(half, progress).is_uniform for progress in (0.0, 0.49, 0.5, 1.0)] == [False, False, True, True]
    assert time_density(TrainArgs("x"), 0.2) is UNIFORM
