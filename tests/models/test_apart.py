"""apart.py: a network on a device without float64, by a stand-in that refuses float64 as Apple's GPUs do."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file
from torch.overrides import TorchFunctionMode

import main
from checkpoint import TextModel, model_parts
from models.apart import METHODS, compute_apart
from tests.conftest import SENTENCES, TINY, call
from tests.test_main import records, train
from utils.device import lacks_float64, pick_device
from utils.errors import UserError

CPU = torch.device("cpu")


class ApartDevice(TorchFunctionMode):
    """Raise for every tensor of float64, and for every tensor that was not moved to the device or made there."""

    def __init__(self, denoiser) -> None:  # noqa: ANN001
        super().__init__()
        self.owned = {id(tensor) for tensor in (*denoiser.parameters(), *denoiser.buffers())}

    def __torch_function__(self, function, types, arguments=(), keywords=None):  # noqa: ANN001, ANN204
        result = function(*arguments, **(keywords or {}))
        for value in tensors_in((arguments, keywords or {}, result)):
            if value.dtype == torch.float64:
                raise TypeError(f"float64 in {function}")
        for value in tensors_in((arguments, keywords or {})):
            if value.dim() and id(value) not in self.owned and not hasattr(value, "is_there"):
                raise TypeError(f"a tensor of the CPU in {function}")
        mark(result)
        return result


def tensors_in(value: object) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(each)


def mark(value: object) -> None:
    """Mark tensors as being on the device."""
    for tensor in tensors_in(value):
        tensor.is_there = True


def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Treat the CPU as a device without float64; return a list of the methods that are called there."""
    called = []

    def on_the_device(denoiser, device: torch.device) -> None:
        for name in METHODS:
            inner = getattr(denoiser, name)

            def watched(*arguments: object, name: str = name, inner=inner) -> object:
                called.append(name)
                mark(arguments)  # models.apart has moved them
                with ApartDevice(denoiser):
                    return inner(*arguments)

            setattr(denoiser, name, watched)
        compute_apart(denoiser, device)

    monkeypatch.setattr(model_parts, "lacks_float64", lambda device: True)
    monkeypatch.setattr(model_parts, "compute_apart", on_the_device)
    return called


def test_only_apples_gpus_lack_float64() -> None:
    assert lacks_float64(torch.device("mps")) and not any(map(lacks_float64, (CPU, torch.device("cuda:1"))))


@pytest.mark.parametrize(
    "flags", [[], ["--process", "ar"], ["--process", "sedd"], ["--process", "mdlm", "--time_conditioning", "layerwise"]]
)
@pytest.mark.slow
def test_training_and_use_are_those_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path, flags: list
) -> None:
    at = TINY.index("--num_steps")
    base = [*TINY[:at], *TINY[at + 2 :]] if flags else TINY
    monkeypatch.setattr("tests.test_main.TINY", base)
    code, plain = train(monkeypatch, corpus, tmp_path, *flags, name="plain")
    model = TextModel.load(plain)
    steps = {} if {"ar", "sedd"} & {*flags} else {"num_steps": 8}
    expected = model.sample(3, **steps), model.nll(SENTENCES[:4], **steps).nats
    with monkeypatch.context() as patch:
        called = stand_in(patch)
        code_apart, apart = train(patch, corpus, tmp_path, *flags, name="apart")
        moved = TextModel.load(apart)
        assert (moved.sample(3, **steps), moved.nll(SENTENCES[:4], **steps).nats) == expected
    assert code == code_apart == 0 and {"encode" if "ar" in flags else "encode_at", "decode"} <= {*called}
    weights = [load_file(folder / "checkpoint-last" / "model.safetensors") for folder in (plain, apart)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    losses = [[r["bits_per_token"] for r in records(folder, "train")] for folder in (plain, apart)]
    assert losses[0] == losses[1]


def test_the_score_based_model_is_refused(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path, capsys
) -> None:
    stand_in(monkeypatch)
    flags = ["--process", "score", "--model_name_or_path", "score-lm-small", "--from_scratch", "true"]
    base = ["--tokenizer", "wordpiece", "--vocab_size", 200, "--train_data", corpus, "--output_dir", tmp_path / "run"]
    base += ["--cache_dir", tmp_path / "cache", "--max_steps", 2, "--batch_size", 8]
    assert call(main.main, monkeypatch, *base, *flags) == 2
    assert "has no float64, which process=score needs; use cpu or cuda" in capsys.readouterr().err


def test_a_device_that_is_not_here_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(UserError, match="^device='mps' cannot be used here: torch finds no Apple GPU; use cpu, cuda"):
        pick_device("mps")
    with pytest.raises(
        UserError, match=r"^device='meta' cannot be used here \(.*\); use cpu, cuda, cuda:N, mps or auto"
    ):
        pick_device("meta")
    with pytest.raises(UserError, match="^device='vulkan' cannot be used here") as error:
        pick_device("vulkan")
    assert len(str(error.value)) < 400
