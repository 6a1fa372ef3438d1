"""push.py: a checkpoint goes to the hub and comes back from it; nothing else of its folder does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from checkpoint import TextModel, push
from checkpoint.folder import load_checkpoint
from checkpoint.model_card import Publication, model_card, without_folders
from checkpoint.push import PushArgs, content_of, files_to_send, require_public_base, with_flags
from tests.conftest import ROOT, call
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
        assert "license: mit" in card and "sentences of cats" in card and 'load("me/cats").sample(5)' in card
        (tmp_path / "hub" / "me" / "cats" / "evil.py").write_text("raise SystemExit('executed')")
        command = [ROOT / "predict.py", "--checkpoint", "me/cats", "--num_samples", 3]
        sampled = run(address, tmp_path / "home", *command, token="")
        assert sampled.returncode == 0 and sampled.stdout.splitlines() == TextModel.load(folder).sample(3, seed=0)
        assert not hub.sent["evil.py"] and hub.sent["model.safetensors"] == 1
        missing = run(address, tmp_path / "home", ROOT / "predict.py", "--checkpoint", "me/dogs")
        assert missing.returncode == 2 and missing.stderr.count("\n") == 1
        assert "checkpoint me/dogs: no such folder, and not on the hub" in missing.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "message"),
    [("hf_wrong", "the hub refuses me/cats"), ("", "there is no token for the hub; set HF_TOKEN")],
)
def test_without_the_right_token_nothing_is_sent(trained: Path, tmp_path: Path, token: str, message: str) -> None:
    hub = MiniHub({})
    hub.token, hub.room = TOKEN, tmp_path / "hub"
    with running(hub) as address:
        done = run(address, tmp_path, "-m", "checkpoint.push", trained, "me/cats", token=token)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr
    assert "HF_TOKEN" in done.stderr and not hub.commits and not hub.repositories


def test_a_dry_run_prints_files_and_card(trained: Path, monkeypatch, capsys) -> None:
    assert call(push.main, monkeypatch, trained, "me/cats", "--dry_run", "true") == 0
    output = capsys.readouterr().out
    assert "MB  model.safetensors\n" in output and "MB  README.md\n" in output
    assert "**Training text:** not stated." in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_folder", "me/cats"], "no such folder"),
        (["TRAINED", "cats"], "name='cats' must be USER/NAME"),
        (["TRAINED", "me/cats", "--license", "my own"], "license one word"),
        (["TRAINED"], "required: --name"),
        (["TRAINED", "me/cats", "extra"], "unexpected argument 'extra'"),
    ],
)
def test_bad_arguments_are_refused(trained: Path, monkeypatch, capsys, arguments: list, message: str) -> None:
    given = [trained if word == "TRAINED" else word for word in arguments]
    assert call(push.main, monkeypatch, *given) == 2
    assert message in capsys.readouterr().err


def test_arguments_without_a_flag_are_checkpoint_and_name() -> None:
    expected = ["--checkpoint", "a", "--data", "x", "--name", "b/c", "--private=true"]
    assert with_flags(["a", "--data", "x", "b/c", "--private=true"]) == expected


def test_folders_of_this_machine_are_not_published(tmp_path: Path) -> None:
    origin = "5 of 5 tensors from /home/alice/my models/bert; 2 of the head are new"
    assert without_folders("5 of 5 tensors from /home/alice/bert; 2 are new") == "5 of 5 tensors from bert; 2 are new"
    assert without_folders("5 of 5 tensors from google/bert") == "5 of 5 tensors from google/bert"
    assert "/home/alice" not in without_folders(origin)
    (tmp_path / "process.json").write_text(json.dumps({"format": 1, "facts": {"began_with": "from /a/b/c", "step": 3}}))
    assert json.loads(content_of(tmp_path / "process.json"))["facts"] == {"began_with": "from c", "step": 3}
    (tmp_path / "config.json").write_text(json.dumps({"initialized_from": "all from /a/b"}))
    assert json.loads(content_of(tmp_path / "config.json")) == {"initialized_from": "all from b"}
    assert content_of(tmp_path / "word_freq.json") == str(tmp_path / "word_freq.json")


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
    with pytest.raises(UserError, match="must be USER/NAME"):
        PushArgs("a", "../b")
