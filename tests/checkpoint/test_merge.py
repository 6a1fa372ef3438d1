"""merge.py: a checkpoint with adapters becomes one without, which computes the same and needs no other network."""

import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM

from checkpoint import TextModel, merge
from tests.checkpoint.test_adapter import base, train  # noqa: F401 (a fixture)
from tests.conftest import SENTENCES, call

pytest.importorskip("peft")


def test_a_merged_folder_computes_the_same_and_needs_no_other(
    monkeypatch: pytest.MonkeyPatch,
    base: Path,  # noqa: F811
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    folder = train(monkeypatch, base, corpus)
    capsys.readouterr()
    assert call(merge.main, monkeypatch, folder / "checkpoint", tmp_path / "merged") == 0
    assert "next: python predict.py --checkpoint" in capsys.readouterr().out
    apart = TextModel.load(folder)
    expected = apart.nll(SENTENCES[:5], num_steps=8).nats
    shutil.rmtree(base)
    merged = TextModel.load(tmp_path / "merged")
    assert merged.nll(SENTENCES[:5], num_steps=8).nats == pytest.approx(expected, rel=1e-4)
    assert merged.sample(3, num_steps=8) == apart.sample(3, num_steps=8)
    AutoModelForMaskedLM.from_pretrained(tmp_path / "merged")
    for arguments, message in (
        ([folder / "checkpoint", tmp_path / "merged"], "it exists; give a new folder"),
        ([tmp_path / "merged", tmp_path / "again"], "it holds no adapters, so there is nothing to merge"),
    ):
        assert call(merge.main, monkeypatch, *arguments) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "again").exists()
