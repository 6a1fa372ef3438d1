"""setup.py: preparation of a run before the first step."""

from pathlib import Path

import pytest

from checkpoint.folder import load_checkpoint
from tests.test_main import CPU, train


def test_the_word_freq_file_replaces_the_counts_of_the_corpus(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "f.json").write_text('{"the": 10, "a": 5}')
    code, folder = train(monkeypatch, corpus, tmp_path, "--word_freq_file", tmp_path / "f.json")
    assert code == 0 and load_checkpoint(str(folder), CPU).token_counts.sum() == 15
