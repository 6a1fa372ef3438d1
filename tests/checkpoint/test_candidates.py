"""candidates.py: each source is finished once, and its candidates depend on its number and the seed only."""

from pathlib import Path

import pytest
import torch

from checkpoint.candidates import draw_candidates
from checkpoint.folder import load_checkpoint
from checkpoint.model_parts import ModelParts
from checkpoint.requests import CandidateRequest
from diffusion.options import SampleArgs
from tests.conftest import PAIRS
from utils.errors import UserError

SOURCES = [pair["src"] for pair in PAIRS[1:71:10]]
HOT = SampleArgs(num_steps=8, temperature=3.0)


@pytest.fixture(scope="module")
def model(trained_pairs: Path) -> ModelParts:
    return load_checkpoint(trained_pairs, torch.device("cpu"))


def drawn(model: ModelParts, numbers: list[int] | None = None, **changes: int) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}

    def finish(i: int, texts: list[str]) -> None:
        assert i not in found
        found[i] = texts

    request = CandidateRequest(**{"mbr_size": 3, "seed": 4, **changes})
    draw_candidates(model, SOURCES, request, HOT, finish, numbers=numbers)
    return found


def test_neither_batches_nor_other_sources_change_candidates(model: ModelParts) -> None:
    every = drawn(model)
    assert sorted(every) == list(range(len(SOURCES))) and {len(texts) for texts in every.values()} == {3}
    assert drawn(model, batch_size=2) == every
    assert drawn(model, [5, 0]) == {i: every[i] for i in (0, 5)} and drawn(model, []) == {}
    assert drawn(model, seed=5) != every
    assert all(drawn(model, seed=4 + j, mbr_size=1)[2] == [every[2][j]] for j in range(3))


def test_ranges_are_checked() -> None:
    for changes in ({"mbr_size": 0}, {"mbr_size": 1001}, {"seed": -1}, {"batch_size": 0}):
        with pytest.raises(UserError, match="must lie in"):
            CandidateRequest(**changes)
