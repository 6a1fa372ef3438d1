"""wandb_record.py: kept in the run's folder without a key, and nothing else is recorded or asked for."""

import sys
import types
from pathlib import Path

import pytest

from tests.training.test_fitlog_record import REPORT
from training import wandb_record
from training.tracking import Tracker
from training.wandb_record import command

KEYS = ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "WANDB_DATA_DIR", "WANDB_CACHE_DIR")


class Recorder(types.ModuleType):
    """Stand-in for wandb that keeps what it is given."""

    def __init__(self, *, key: bool) -> None:
        super().__init__("wandb")
        self.key, self.begun, self.lines, self.summary, self.ended = key, {}, [], {}, 0
        self.id = ""
        self.url = "https://wandb.example/run" if key else None

    def login(self, *, prompt: bool) -> bool:
        assert not prompt
        return self.key

    def Settings(self, **settings: object) -> dict:  # noqa: N802 (wandb's name)
        return settings

    def Table(self, columns: list, data: list) -> list:  # noqa: N802
        return data

    def init(self, **arguments: object) -> "Recorder":
        self.begun, self.id = arguments, str(arguments["id"])
        return self

    def define_metric(self, *names: str, step_metric: str = "") -> None:
        assert names in (("step",), ("*",)) and step_metric in ("", "step")

    def log(self, values: dict) -> None:
        self.lines.append(values)

    def finish(self) -> None:
        self.ended += 1


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


def run(monkeypatch: pytest.MonkeyPatch, output: Path, steps: range, *, key: bool = False) -> Recorder:
    wandb = Recorder(key=key)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    tracker = Tracker(output, {"seed": 1, "folder": output}, trackers=("wandb",))
    for step in steps:
        tracker.train(step, {"bits_per_token": 10.0 - step, "learning_rate": 0.1})
        tracker.valid(step, {**REPORT, "bits_per_token": 9.0 - step}, best=step == 1)
        tracker.samples(step, [f"text {step}"])
    tracker.close()
    return wandb


def test_without_a_key_a_run_is_kept_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = run(monkeypatch, tmp_path / "run", range(1, 3))
    assert wandb.begun["mode"] == "offline" and wandb.begun["dir"] == str(tmp_path / "run")
    assert wandb.begun["config"]["folder"] == str(tmp_path / "run") and wandb.begun["project"] == "diffusionbert"
    assert wandb.begun["settings"]["disable_git"] and wandb.begun["settings"]["disable_code"]
    assert {"step": 1, "train/bits_per_token": 9.0, "train/learning_rate": 0.1} in wandb.lines
    assert {"step": 2, "samples": [[2, "text 2"]]} in wandb.lines
    assert wandb.summary["best/bits_per_token"] == 8.0 and wandb.ended == 1
    assert Path(wandb_record.os.environ["WANDB_DATA_DIR"]).is_relative_to(tmp_path / "run")


def test_a_key_or_a_mode_of_the_environment_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, tmp_path / "a", range(1, 2), key=True).begun["mode"] == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert run(monkeypatch, tmp_path / "b", range(1, 2), key=True).begun["mode"] == "disabled"


def test_a_mode_that_needs_a_key_is_not_asked_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for mode in ("online", "shared", "run"):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert run(monkeypatch, tmp_path / mode, range(1, 2)).begun["mode"] == "offline"
        assert f"wandb: WANDB_MODE={mode}, but there is no key" in capsys.readouterr().err


@pytest.mark.parametrize(("first", "second"), [("offline", "online"), ("online", "offline")])
def test_another_mode_gets_a_record_of_its_own_with_all_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    """What one process sent is not sent again, and what it did not send is not lost."""
    monkeypatch.setenv("WANDB_MODE", first)
    before = run(monkeypatch, tmp_path / "run", range(1, 3), key=True)
    kept = tmp_path / "run" / "wandb" / f"{'run' if first == 'online' else 'offline-run'}-1"
    kept.mkdir()
    monkeypatch.setenv("WANDB_MODE", second)
    after = run(monkeypatch, tmp_path / "run", range(3, 4), key=True)
    assert after.id != before.id and after.begun["resume"] is None and kept.is_dir()
    assert [line["step"] for line in after.lines if "train/bits_per_token" in line] == [1, 2, 3]


def test_a_process_without_a_record_leaves_that_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for mode, step in (("offline", 1), ("disabled", 2), ("offline", 3)):
        monkeypatch.setenv("WANDB_MODE", mode)
        wandb = run(monkeypatch, tmp_path / "run", range(step, step + 1))
        ids.append(wandb.id)
        (tmp_path / "run" / "wandb" / f"offline-run-{step}-{wandb.id}").mkdir()
    assert ids[0] == ids[2] and [line["step"] for line in wandb.lines if "train/bits_per_token" in line] == [1, 2, 3]
    kept = sorted(path.name for path in (tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert kept == [f"offline-run-2-{ids[1]}", f"offline-run-3-{ids[0]}"]
    assert command(tmp_path / "run").endswith(f"offline-run-3-{ids[0]}")


def test_each_run_of_a_process_has_its_own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_record, "_staged", {})
    for name in ("a", "b"):
        run(monkeypatch, tmp_path / name, range(1, 2))
        assert Path(wandb_record.os.environ["WANDB_DATA_DIR"]).is_relative_to(tmp_path / name)
    monkeypatch.setenv("WANDB_CACHE_DIR", "mine")
    run(monkeypatch, tmp_path / "c", range(1, 2))
    assert wandb_record.os.environ["WANDB_CACHE_DIR"] == "mine"


def test_the_address_of_a_run_that_is_sent_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, tmp_path / "run", range(1, 2), key=True)
    assert command(tmp_path / "run") == "https://wandb.example/run"
    assert command(tmp_path / "none") == ""


@pytest.mark.parametrize("key", [False, True])
def test_a_resumed_run_keeps_its_identity_and_holds_no_step_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: bool
) -> None:
    first = run(monkeypatch, tmp_path / "run", range(1, 3), key=key)
    second = run(monkeypatch, tmp_path / "run", range(3, 4), key=key)
    assert second.id == first.id and second.begun["resume"] == ("allow" if key else None)
    steps = [line["step"] for line in second.lines if "train/bits_per_token" in line]
    assert steps == ([3] if key else [1, 2, 3])  # the server has the first two
    if key:  # a run that was not recorded before is sent whole
        (tmp_path / "run" / "wandb" / "id.txt").unlink()
        third = run(monkeypatch, tmp_path / "run", range(4, 5), key=True)
        assert [line["step"] for line in third.lines if "train/bits_per_token" in line] == [1, 2, 3, 4]
    (tmp_path / "run" / "log.jsonl").unlink()
    assert run(monkeypatch, tmp_path / "run", range(1, 2), key=key).id != first.id


@pytest.mark.slow
def test_the_real_program_keeps_a_run_that_can_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    tracker = Tracker(tmp_path / "run", {"seed": 1}, trackers=("wandb",))
    tracker.train(1, {"bits_per_token": 9.0})
    tracker.valid(1, {**REPORT, "bits_per_token": 5.0}, best=True)
    tracker.samples(1, ["a text"])
    tracker.close()
    output, error = capfd.readouterr()
    assert output == "" and error == ""
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    assert b"train/bits_per_token" in content and b"valid/ppl_word" in content
    assert b"table-file" in content or list(file.parent.rglob("*.table.json"))
    assert command(tmp_path / "run") == f"wandb sync {file.parent}"
    assert not list(tmp_path.rglob("requirements.txt")) and not list((tmp_path / "home").iterdir())
