"""router_map.py: the weights are those of the pool, tasks of one module stand together, the picture is written."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modular_prompts.router_map import ordered, weights_of
from tests.modular_prompts.test_frozen import saved
from tests.modular_prompts.toy_tasks import command, make_network


def test_weights_are_the_normalised_gates_and_their_mean_over_layers() -> None:
    assert weights_of(torch.tensor([[0.0, 0.0]])).tolist() == pytest.approx([0.5, 0.5])
    logits = torch.tensor([[30.0, -30.0], [0.0, 0.0]])
    assert weights_of(logits).tolist() == pytest.approx([0.75, 0.25])


def test_similar_tasks_are_neighbours() -> None:
    logits = {"a": [[0.0, 9.0]], "b": [[30.0, -30.0]], "c": [[0.1, 9.0]], "d": [[30.0, -29.0]]}
    order = list(ordered({name: torch.tensor(own) for name, own in logits.items()}))
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset("ac"), frozenset("bd")}


def test_a_line_a_task_is_printed_and_a_picture_written(tokenizer, tmp_path: Path, monkeypatch, capsys) -> None:  # noqa: ANN001
    network = make_network(tmp_path / "net", tokenizer)
    folder, picture = saved(network, tmp_path / "p", tasks=("one", "another")), tmp_path / "new" / "map.png"
    capsys.readouterr()
    assert command(monkeypatch, "routers", "--prompts", folder, "--picture", picture) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["task", "m1", "m2"] and [line[0] for line in lines[1:3]] == ["another", "one"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert command(monkeypatch, "routers", "--prompts", saved(network, tmp_path / "q")) == 2
    assert "no task with a prompt; pre-train some" in capsys.readouterr().err


def test_a_task_without_a_prompt_has_no_weights(tokenizer, tmp_path: Path, monkeypatch, capsys) -> None:  # noqa: ANN001
    network = make_network(tmp_path / "net", tokenizer)
    folder = saved(network, tmp_path / "p", tasks=("one", "another"))
    tensors = load_file(folder / "prompts.safetensors")
    save_file({**tensors, "prompt.another": torch.zeros(1, 0, 32)}, folder / "prompts.safetensors")
    capsys.readouterr()
    assert command(monkeypatch, "routers", "--prompts", folder) == 0
    _, line, last = capsys.readouterr().out.splitlines()
    assert line.split()[0] == "one" and last == "without a prompt: another"
