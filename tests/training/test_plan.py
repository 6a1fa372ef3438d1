"""plan.py: a run ends after its steps, its epochs or its minutes."""

from pathlib import Path

import pytest

from checkpoint.folder import load_checkpoint
from tests.test_main import CPU, records, train


def test_epochs_and_minutes_end_a_run(monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path) -> None:
    code, folder = train(monkeypatch, corpus, tmp_path, "--max_steps", 0, "--num_train_epochs", 2, "--batch_size", 64)
    assert code == 0 and records(folder, "note")[-1]["steps"] == round(2 * len_train(folder) / 64)
    code, folder = train(monkeypatch, corpus, tmp_path, "--max_steps", 100000, "--max_minutes", 0.03, name="short")
    note = records(folder, "note")[-1]
    assert code == 0 and note["steps"] < 1000 and records(folder, "train")[-1]["learning_rate"] < 1e-3
    assert records(folder, "valid")[-1]["step"] == note["steps"]


def len_train(folder: Path) -> int:
    return sum(load_checkpoint(str(folder), CPU).length_histogram)
