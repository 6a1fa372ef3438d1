"""sampling.py: lengths of samples, and the tokens that may be drawn."""

from pathlib import Path

import pytest
import torch

from checkpoint.folder import load_checkpoint
from checkpoint.requests import SampleRequest
from checkpoint.sampling import draw_length, sample_rows
from diffusion.options import SampleArgs


def test_lengths_are_those_of_the_training_text_or_of_the_length_flag(trained: Path) -> None:
    run = load_checkpoint(str(trained), torch.device("cpu"))
    possible = {n for n, count in enumerate(run.length_histogram) if count}
    drawn = sample_rows(run, SampleRequest(30), SampleArgs(num_steps=4))
    lengths = [len(row) - 2 for row in drawn]
    assert set(lengths) <= possible and len(set(lengths)) > 1
    assert {len(r) - 2 for r in sample_rows(run, SampleRequest(3, length=9), SampleArgs(num_steps=4))} == {9}


def test_lengths_follow_the_histogram() -> None:
    streams = [torch.Generator().manual_seed(seed) for seed in range(4000)]
    drawn = torch.tensor([draw_length([9, 1, 0, 3], stream) for stream in streams])
    assert set(drawn.tolist()) == {1, 3} and drawn.eq(3).double().mean().item() == pytest.approx(0.75, abs=0.03)


def test_the_released_posterior_draws_no_special_token(trained: Path) -> None:
    run = load_checkpoint(str(trained), torch.device("cpu"), posterior="released")
    hot = SampleArgs(num_steps=8, temperature=30)
    drawn = torch.stack(sample_rows(run, SampleRequest(60, length=12), hot))[:, 1:-1]
    assert not torch.isin(drawn, torch.tensor(run.tokenizer.all_special_ids)).any()
