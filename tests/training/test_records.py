"""records.py: names of trackers, and what the log gives to each record."""

import math
from pathlib import Path

import pytest

from training.records import charted, open_record, replay, trackers_of, view_commands
from utils.errors import UserError


def test_trackers_are_named_by_comma() -> None:
    assert trackers_of("none") == ()
    assert trackers_of("fitlog") == ("fitlog",)
    assert trackers_of("wandb, tensorboard") == ("wandb", "tensorboard")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mlflow", "'mlflow' must be one of fitlog, tensorboard, wandb; or none alone"),
        ("", "'' must be one of"),
        ("fitlog,none", "'none' must be one of"),
        ("wandb,wandb", "names a tracker twice"),
    ],
)
def test_an_unknown_tracker_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        trackers_of(text)


def test_only_finite_figures_are_drawn() -> None:
    values = {"bits_per_token": 3, "ppl_word": math.inf, "ppl_token": None, "num_steps": 8, "nats_per_sequence": True}
    assert charted("valid", values) == {"valid/bits_per_token": 3.0, "valid/nats_per_sequence": 1.0}


class Listed:
    """Record that lists its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def train(self, step: int, values: dict) -> None:
        self.calls.append(("train", step, values["bits_per_token"]))

    def valid(self, step: int, values: dict, *, best: bool) -> None:
        self.calls.append(("valid", step, values["bits_per_token"], best))

    def samples(self, step: int, texts: list[str]) -> None:
        self.calls.append(("samples", step, texts))


def test_a_replayed_log_gives_every_figure_and_knows_the_best(tmp_path: Path) -> None:
    record = Listed()
    log = [
        {"kind": "settings", "seed": 1},
        {"kind": "train", "step": 1, "bits_per_token": 8.0},
        {"kind": "valid", "step": 1, "bits_per_token": 6.0},
        {"kind": "samples", "step": 1, "texts": ["a"]},
        {"kind": "valid", "step": 2, "bits_per_token": 7.0},
        {"kind": "valid", "step": 3, "bits_per_token": 5.0},
        {"kind": "note", "steps": 3},
    ]
    replay(record, log)
    bounds = [call[1:] for call in record.calls if call[0] == "valid"]
    assert bounds == [(1, 6.0, True), (2, 7.0, False), (3, 5.0, True)]
    assert ("train", 1, 8.0) in record.calls and ("samples", 1, ["a"]) in record.calls and len(record.calls) == 5


def test_a_program_that_is_not_installed_is_named_with_its_remedy(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ImportError, match="pip install wandb"):
        open_record("wandb", tmp_path, {}, None)
    assert view_commands(("fitlog", "tensorboard", "wandb"), tmp_path / "run") == []


def test_records_that_cannot_be_read_have_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(output: Path) -> str:
        raise PermissionError(output)

    monkeypatch.setattr("training.fitlog_record.command", fail)
    monkeypatch.setattr("training.tensorboard_record.command", lambda output: "tensorboard ...")
    assert view_commands(("fitlog", "tensorboard"), tmp_path) == ["tensorboard ..."]
