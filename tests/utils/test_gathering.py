"""gathering.py: tensors without shards stay unchanged, tied tensors are saved once. Shards: test_parallel.py."""

import pytest
import torch
from torch import nn

from utils.gathering import full, held_by_leader, shard_like, state_to_save


def test_a_tensor_without_shards_is_returned_unchanged() -> None:
    tensor = torch.arange(3)
    assert full(tensor) is tensor and shard_like(tensor, torch.zeros(3)) is tensor


def test_tied_tensors_are_saved_once() -> None:
    network = nn.ModuleDict({"a": nn.Embedding(4, 3), "b": nn.Linear(3, 4)})
    network["b"].weight = network["a"].weight
    saved = state_to_save(network)
    assert set(saved) == {"a.weight", "b.bias"} and torch.equal(saved["a.weight"], network["a"].weight)
    assert not saved["a.weight"].requires_grad


@pytest.mark.parametrize(("rank", "device"), [(0, "cpu"), (1, "meta")])
def test_only_the_first_process_holds_the_values(monkeypatch: pytest.MonkeyPatch, rank: int, device: str) -> None:
    monkeypatch.setattr("utils.gathering.rank", lambda: rank)
    held = held_by_leader({"a": torch.ones(4, 2).T})["a"]
    assert held.device.type == device and held.shape == (2, 4) and held.is_contiguous()
