"""saved_state.py: states are restored exactly; damaged and foreign ones are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from training.arguments import OptimArgs
from training.optim import AveragedWeights, make_optimizers
from training.saved_state import OPTIMIZER, WEIGHTS, Learner, folder_of, newest_state, save_state
from utils.errors import UserError
from utils.files import MANIFEST, checksums, manifest_error


def facts_of(step: int) -> dict:
    """Return valid facts of a state."""
    named = {"torch": "2", "data": "a", "valid_data": "b", "word_freq": "c", "of_pairs": False, "finished": False}
    return {"step": step, "parts": 1, "position": [0, 0], "figures": {}, **named}


def make_learner(optimizer: str = "muon", decay: float = 0.9, width: int = 3, steps: int = 0) -> Learner:
    """Return a small network with an embedding, matrices and vectors, trained for `steps` steps."""
    torch.manual_seed(width)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, width), nn.LayerNorm(width))
    optimizers = make_optimizers(OptimArgs(optimizer=optimizer), model, [])
    learner = Learner(model, AveragedWeights(model, decay), optimizers, torch.amp.GradScaler("cpu", enabled=False))
    for _ in range(steps):
        train(learner)
    return learner


def train(learner: Learner) -> None:
    learner.model(torch.arange(5)).square().sum().backward()
    for optimizer in learner.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    learner.average.update()


def tensors_of(learner: Learner) -> dict[str, torch.Tensor]:
    return {
        f"{kind}:{name}": tensor.clone() for kind, part in learner.tensors().items() for name, tensor in part.items()
    }


def assert_same(one: Learner, other: Learner) -> None:
    ours, theirs = tensors_of(one), tensors_of(other)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("decay", [0.0, 0.9])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_restored_learner_continues_exactly(tmp_path: Path, optimizer: str, decay: float) -> None:
    first = make_learner(optimizer, decay, steps=3)
    save_state(tmp_path, first, facts_of(3), keep_last=1)
    path, facts = newest_state(tmp_path, pytest.fail)
    second = make_learner(optimizer, decay)
    second.restore(path, facts)
    assert facts["step"] == 3 and second.average.updates == first.average.updates
    for _ in range(2):
        assert_same(first, second)
        train(first)
        train(second)
    assert tensors_of(first).keys() == tensors_of(second).keys() and len(tensors_of(first)) >= 13


def test_a_learner_without_steps_saves_no_optimizer_state(tmp_path: Path) -> None:
    save_state(tmp_path, make_learner(), facts_of(0), keep_last=1)
    again = make_learner(steps=2)
    again.restore(*newest_state(tmp_path, pytest.fail))
    assert_same(again, make_learner())


def test_only_the_newest_states_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save_state(tmp_path, make_learner(), facts_of(step), keep_last=2)
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["step-000000000010", "step-000000000100"]


def test_folders_with_other_names_are_not_states(tmp_path: Path) -> None:
    """Copies under other names are neither used nor removed."""
    save_state(tmp_path, make_learner(), facts_of(3), keep_last=1)
    for name in ("step-000000000003-backup", "step-zzz"):
        shutil.copytree(folder_of(tmp_path, 3), tmp_path / "state" / name)
    save_state(tmp_path, make_learner(), facts_of(4), keep_last=1)
    assert newest_state(tmp_path, pytest.fail)[1]["step"] == 4
    names = ["step-000000000003-backup", "step-000000000004", "step-zzz"]
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == names


def test_states_of_other_networks_and_optimizers_are_refused(tmp_path: Path) -> None:
    save_state(tmp_path, make_learner(steps=1), facts_of(1), keep_last=1)
    path, facts = newest_state(tmp_path, pytest.fail)
    with pytest.raises(UserError, match="does not fit this network or optimizer"):
        make_learner(width=4).restore(path, facts)
    other = Learner(nn.Linear(2, 2), AveragedWeights(nn.Linear(1, 1), 0), [], torch.amp.GradScaler("cpu"))
    with pytest.raises(UserError, match="is only in one of them"):
        other.restore(path, facts)
    with pytest.raises(UserError, match="does not fit"):
        make_learner().restore(path, {"scaler": {}})


WRONG_FACTS = {
    "a word for a position": {"position": "abc"},
    "half a position": {"position": [1]},
    "a negative position": {"position": [-1, 0]},
    "words for positions": {"position": ["a", "b"]},
    "another kind of position": {"position": {"x": 1}},
    "no lanes": {"position": {"batches": 1, "lanes": 0, "pool": 1, "positions": {}}},
    "no figures": {"figures": None},
    "a list of figures": {"figures": []},
    "figures of words": {"figures": {"nats": "x"}},
    "too many parts": {"parts": 10**9},
    "no parts": {"parts": 0},
    "updates in words": {"average_updates": "x"},
    "finished in words": {"finished": "yes"},
    "no text": {"data": None},
    "another step": {"step": 7},
}


def damage(path: Path, how: str) -> None:
    """Damage a state in one way."""
    file = path / "weights.safetensors"
    if how == "bit":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif how == "missing":
        file.unlink()
    elif how == "no manifest":
        (path / MANIFEST).unlink()
    elif how == "manifest":
        (path / MANIFEST).write_text("[1]")
    elif how == "link":
        file.rename(path.parent / "elsewhere")
        file.symlink_to(path.parent / "elsewhere")
    else:  # invalid content with a valid manifest
        facts = json.loads((path / "state.json").read_text())
        changes = {"format": {"format": 9}, **WRONG_FACTS}.get(how, {})
        text = {"not JSON": "{", "no step": '{"format": 1}'}.get(how, json.dumps({**facts, **changes}))
        (path / "state.json").write_text(text)
        (path / MANIFEST).write_text(json.dumps(checksums(path)))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("bit", "weights.safetensors has changed: its checksum differs"),
        ("truncated", "bytes instead of"),
        ("missing", "weights.safetensors is missing"),
        ("no manifest", "manifest.json is missing"),
        ("manifest", "manifest.json is damaged"),
        ("link", "weights.safetensors is a link"),
        ("not JSON", "state.json is damaged"),
        ("format", "of format 9, this version reads 1"),
        ("no step", "state.json is damaged"),
        *((how, "state.json is damaged") for how in WRONG_FACTS),
    ],
)
def test_a_damaged_state_is_reported_and_passed_over(tmp_path: Path, how: str, message: str) -> None:
    for step in (1, 2):
        save_state(tmp_path, make_learner(), facts_of(step), keep_last=2)
    damage(folder_of(tmp_path, 2), how)
    messages = []
    path, _ = newest_state(tmp_path, messages.append)
    assert path.name == "step-000000000001" and len(messages) == 1 and message in messages[0]
    damage(path, "bit")
    assert newest_state(tmp_path, messages.append) is None and manifest_error(path) != ""


def test_pickles_in_a_state_are_never_loaded(tmp_path: Path) -> None:
    """The pickles have the usual file names and would run a program."""
    save_state(tmp_path, make_learner(steps=1), facts_of(1), keep_last=1)
    path, facts = newest_state(tmp_path, pytest.fail)
    bomb = b"cos\nsystem\n(S'touch " + str(tmp_path / "executed").encode() + b"'\ntR."
    for name in ("optimizer.pt", "pytorch_model.bin", "training_args.bin", "rng_state.pth", "scheduler.pt"):
        (path / name).write_bytes(bomb)
    make_learner().restore(path, facts)
    for name in (WEIGHTS, OPTIMIZER):
        (path / name).write_bytes(bomb)
        with pytest.raises(UserError):
            make_learner().restore(path, facts)
    assert not (tmp_path / "executed").exists()
