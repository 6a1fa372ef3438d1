"""display.py: the states of a sample are shown as it is denoised, and its last one is the sample."""

from pathlib import Path

import pytest
import torch

from checkpoint.display import show
from checkpoint.folder import load_checkpoint
from checkpoint.requests import SampleRequest
from checkpoint.sampling import decode, sample_rows
from diffusion.options import SampleArgs

SAMPLING = SampleArgs(num_steps=16)


def test_the_states_have_ever_fewer_gaps_and_end_in_the_sample(trained: Path, capsys: pytest.CaptureFixture) -> None:
    model, request = load_checkpoint(trained, torch.device("cpu")), SampleRequest(length=6)
    show(model, request, SAMPLING)
    states = [line[7:] for line in capsys.readouterr().out.splitlines() if line.strip()]
    gaps = [state.count("·") for state in states]
    assert len(states) > 2 and gaps == sorted(gaps, reverse=True) and gaps[-1] == 0
    assert [decode(model, row) for row in sample_rows(model, request, SAMPLING)] == [states[-1]]


def test_several_samples_are_numbered(trained: Path, capsys: pytest.CaptureFixture) -> None:
    show(load_checkpoint(trained, torch.device("cpu")), SampleRequest(2, length=6), SAMPLING)
    numbers = [line[:2] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert set(numbers) == {"1:", "2:"} and numbers == sorted(numbers)
