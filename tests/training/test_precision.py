"""precision.py: `auto` takes the faster precision of this machine, and a run keeps it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.test_main import train
from training import precision
from training.precision import Precision, choose_precision, measured

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def config(name: str = "auto", fp16: bool = False) -> SimpleNamespace:
    """Return the settings that the choice depends on."""
    return SimpleNamespace(
        run=SimpleNamespace(precision=name, fp16=fp16), precision=lambda device: "fp16" if fp16 else name
    )


def model(parameters: int) -> SimpleNamespace:
    return SimpleNamespace(denoiser=nn.Linear(parameters, 1, bias=False))


@pytest.fixture
def with_bf16(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pretend that the processor has bf16 instructions; return the precisions of the trial steps, in turn."""
    trials: list[str] = []
    seconds = {"fp32": iter([9.0, 3.0, 2.0, 4.0]), "bf16": iter([9.0, 1.0, 5.0, 2.0])}

    def trial(_config: object, _model: object, _batch: object, _device: object, name: str) -> float:
        trials.append(name)
        return next(seconds[name])

    monkeypatch.setattr(precision, "pick_precision", lambda name, device: "bf16")
    monkeypatch.setattr(precision, "trial_batch", lambda *_: SimpleNamespace(to=lambda device: None))
    monkeypatch.setattr(precision, "_trial", trial)
    return trials


def test_the_faster_precision_is_taken_by_its_best_step_without_the_first(with_bf16: list[str]) -> None:
    found = choose_precision(config(), model(2_000_000), CPU, {})
    assert found == Precision("bf16", "2.0 times as fast as fp32 in a trial step")
    assert with_bf16 == ["fp32", "bf16"] * precision.ROUNDS


def test_fp32_is_taken_where_bf16_is_slower(with_bf16: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_trial", lambda *a: {"fp32": 1.0, "bf16": 1.3}[a[-1]])
    assert measured(config(), model(1), CPU) == Precision("fp32", "1.3 times as fast as bf16 in a trial step")


@pytest.mark.parametrize(
    ("settings", "size", "device", "earlier", "expected"),
    [
        (config("fp32"), 2_000_000, CPU, {}, "fp32"),  # a given precision is not questioned
        (config(fp16=True), 2_000_000, CPU, {}, "fp16"),
        (config(), 1_000, CPU, {}, "bf16"),  # a small network: the hardware's rule
        (config(), 2_000_000, CUDA, {}, "bf16"),
        (config(), 2_000_000, CPU, {"step": 3}, "bf16"),  # a run of an earlier version followed the rule
        (config(), 2_000_000, CPU, {"precision": "fp32 on cpu"}, "fp32"),  # a resumed run keeps its precision
        (config(), 2_000_000, CUDA, {"precision": "fp32 on cpu"}, "bf16"),  # on another device there is a new choice
        (config(), 2_000_000, CPU, {"precision": ["fp32"]}, "bf16"),  # a damaged entry
    ],
)
def test_nothing_is_measured_where_the_choice_is_given(
    with_bf16: list[str], settings: object, size: int, device: torch.device, earlier: dict, expected: str
) -> None:
    assert choose_precision(settings, model(size), device, earlier).name == expected
    assert not with_bf16


def test_a_choice_is_recorded_with_its_device() -> None:
    assert Precision("bf16", "measured").record(CPU) == "bf16 on cpu"


@pytest.mark.parametrize("faster", ["fp32", "bf16"])
def test_measuring_leaves_weights_and_random_streams_as_they_were(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path, faster: str
) -> None:
    """The trial steps are real. The run has the weights of one that is given the same precision."""
    trial = precision._trial

    def timed(*given: object) -> float:
        trial(*given)
        return 1.0 if given[-1] == faster else 2.0

    monkeypatch.setattr(precision, "SMALLEST", 0)
    monkeypatch.setattr(precision, "pick_precision", lambda name, device: "bf16")
    monkeypatch.setattr(precision, "_trial", timed)
    weights = []
    for name in ("auto", faster):
        code, folder = train(monkeypatch, corpus, tmp_path, "--precision", name, name=name)
        assert code == 0
        weights.append((folder / "checkpoint-last" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
