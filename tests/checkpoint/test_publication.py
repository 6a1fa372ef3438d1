"""publication.py: a checkpoint goes to the hub and comes back from it; nothing else of its folder does."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, close_session, constants

from checkpoint import TextModel, publication
from checkpoint.folder import load_checkpoint
from checkpoint.model_card import Publication, in_cell, model_card, without_folders
from checkpoint.publication import content_of, files_to_send, require_public_base
from tests.conftest import ROOT
from tests.mini_hub import MiniHub, running
from utils.errors import UserError

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz01234567"


def run(address: str, home: Path, *arguments: object, token: str = TOKEN) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT), "HF_TOKEN": token}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_checkpoint_is_sent_and_loaded_by_its_name(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for file in (trained / "checkpoint").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "secret.txt").write_text("mine")
    (folder / "weights.pt").write_bytes(b"pickle")
    hub = MiniHub({})
    hub.token, hub.room = TOKEN, tmp_path / "hub"
    (tmp_path / "home").mkdir()
    with running(hub) as address:
        flags = ["--data", "sentences of cats", "--license", "mit"]
        done = run(address, tmp_path / "home", "-m", "checkpoint.push", folder, "me/cats", *flags)
        assert done.returncode == 0 and done.stderr == "" and f"sent to {address}/me/cats" in done.stdout
        (names,) = hub.commits  # one commit
        assert {"model.safetensors", "process.json", "README.md"} < set(names) and "secret.txt" not in names
        assert not any(name.endswith((".pt", ".txt")) for name in names)
        card = (tmp_path / "hub" / "me" / "cats" / "README.md").read_text()
        assert 'license: "mit"' in card and "sentences of cats" in card and 'load("me/cats").sample(5)' in card
        (tmp_path / "hub" / "me" / "cats" / "evil.py").write_text("raise SystemExit('executed')")
        command = [ROOT / "predict.py", "--checkpoint", "me/cats", "--num_samples", 3]
        sampled = run(address, tmp_path / "home", *command, token="")
        assert sampled.returncode == 0 and sampled.stdout.splitlines() == TextModel.load(folder).sample(3, seed=0)
        assert not hub.sent["evil.py"] and hub.sent["model.safetensors"] == 1
        pinned = run(address, tmp_path / "home", *command[:2], "me/cats@v1", "--num_samples", 3, token="")
        assert pinned.stdout == sampled.stdout and any("revision/v1" in path for path in hub.asked)
        missing = run(address, tmp_path / "home", ROOT / "predict.py", "--checkpoint", "me/dogs")
        assert missing.returncode == 2 and missing.stderr.count("\n") == 1
        assert "checkpoint me/dogs: no such folder, and not on the hub" in missing.stderr


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MiniHub]:
    """Serve an empty hub that this process reaches."""
    hub = MiniHub({})
    hub.token, hub.room = TOKEN, tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(publication.hub, "check_hub", lambda: "")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    close_session()
    with running(hub) as address:
        monkeypatch.setattr(publication, "HfApi", lambda: HfApi(endpoint=address))
        yield hub
    close_session()


def send(tmp_path: Path, *names: str, **flags: bool) -> str:
    """Publish a folder with files of these names; each contains its name."""
    folder = tmp_path / "-".join(names).replace("/", "_")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"name": name}))
    return publication.send("me/cats", folder, files_to_send(folder), f"card of {names}", **flags)


def published(tmp_path: Path) -> set[str]:
    folder = tmp_path / "hub" / "me" / "cats"
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


ADAPTER, SHARD = "adapter/adapter_model.safetensors", "model-00001-of-00002.safetensors"


def test_a_checkpoint_takes_the_place_of_the_one_before(here: MiniHub, tmp_path: Path) -> None:
    """Otherwise an old adapter or an old part would be read with the new network."""
    assert send(tmp_path, "process.json", ADAPTER, SHARD, "vocab.txt").endswith("/me/cats")
    (tmp_path / "hub" / "me" / "cats" / "notes.md").write_text("the owner's")
    send(tmp_path, "process.json", "model.safetensors")
    assert published(tmp_path) == {"process.json", "model.safetensors", "README.md", "notes.md"}
    assert len(here.commits) == 2


def test_a_repository_of_something_else_is_left_alone(here: MiniHub, tmp_path: Path) -> None:
    (tmp_path / "hub" / "me" / "cats").mkdir(parents=True)
    (tmp_path / "hub" / "me" / "cats" / "pytorch_model.bin").write_text("other")
    here.repositories["me/cats"] = tmp_path / "hub" / "me" / "cats"
    with pytest.raises(
        UserError, match="me/cats holds 'pytorch_model.bin' and no checkpoint .process.json.; give another"
    ):
        send(tmp_path, "process.json")
    assert not here.commits


def test_private_is_never_public(here: MiniHub, tmp_path: Path) -> None:
    send(tmp_path, "process.json")
    with pytest.raises(UserError, match="private=true, but me/cats exists and is public; make it private on the hub"):
        send(tmp_path, "process.json", private=True)
    assert len(here.commits) == 1 and not here.private
    here.repositories.clear()
    send(tmp_path, "process.json", private=True)
    send(tmp_path, "process.json", private=True)
    assert here.private == {"me/cats"} and len(here.commits) == 3


@pytest.mark.parametrize(("dropped", "created"), [("whoami", False), ("create", False), ("commit", True)])
def test_a_broken_connection_is_one_line(here: MiniHub, tmp_path: Path, dropped: str, created: bool) -> None:
    here.drops = dropped
    with pytest.raises(UserError, match=r"me/cats could not be sent \(.+\).*; repeat the command$") as error:
        send(tmp_path, "process.json")
    assert "\n" not in str(error.value) and created == ("me/cats was created and is empty" in str(error.value))
    here.drops = ""
    send(tmp_path, "process.json")
    assert published(tmp_path) == {"process.json", "README.md"}


@pytest.mark.parametrize(
    ("token", "message"),
    [("hf_wrong", "me/cats could not be sent .*; set HF_TOKEN"), ("", "there is no token for the hub; set HF_TOKEN")],
)
def test_without_the_right_token_nothing_is_sent(
    here: MiniHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str, message: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=message):
        send(tmp_path, "process.json")
    assert not here.commits and not here.repositories


@pytest.mark.parametrize(
    "path", ["/home/alice/bert", "/home/alice/my models/bert/", "../alice/x/bert", "C:\\alice x\\bert", "//alice/bert"]
)
@pytest.mark.parametrize(
    "rest", ["", "; 2 of the head are new and random (e.g. cls/x; y)", "; 3 tensors of the file are unused"]
)
def test_folders_of_this_machine_are_not_published(tmp_path: Path, path: str, rest: str) -> None:
    """Origins of older checkpoints have the path."""
    before, after = (f"5 of 5 tensors from {name}{rest}" for name in (path, "bert"))
    assert without_folders(before) == after
    assert without_folders(f"5 of 5 tensors from google/bert{rest}") == f"5 of 5 tensors from google/bert{rest}"
    (tmp_path / "process.json").write_text(json.dumps({"format": 1, "facts": {"began_with": before, "step": 3}}))
    assert json.loads(content_of(tmp_path / "process.json"))["facts"] == {"began_with": after, "step": 3}
    (tmp_path / "config.json").write_text(json.dumps({"initialized_from": before}))
    assert json.loads(content_of(tmp_path / "config.json")) == {"initialized_from": after}
    assert content_of(tmp_path / "word_freq.json") == str(tmp_path / "word_freq.json")


def test_a_prompt_stays_in_its_cell() -> None:
    assert in_cell("a | {src}\n{trg}") == "a \\| {src} {trg}"


def test_adapters_of_a_local_network_are_refused(trained: Path) -> None:
    model = load_checkpoint(trained, torch.device("cpu"))
    from checkpoint.adapter import Base

    require_public_base(model)
    object.__setattr__(model, "adapter_base", Base("bert-base-uncased", "", ""))
    require_public_base(model)
    assert "with LoRA adapters" in model_card(model, Publication("a/b"))
    object.__setattr__(model, "adapter_base", Base("/home/alice/bert", "", ""))
    with pytest.raises(UserError, match="adapters of the network in /home/alice/bert, which others do not have"):
        require_public_base(model)


def test_only_the_files_of_a_checkpoint_are_sent(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model-1.safetensors", "process.json", "run.json", "a.bin", "notes.md"):
        (tmp_path / name).write_text("")
    assert [f.name for f in files_to_send(tmp_path)] == ["model-1.safetensors", "model.safetensors", "process.json"]
