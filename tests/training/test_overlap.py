"""Two concurrent commands on one output folder, at any point of the first: nothing is lost or mixed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name

import pytest

from tests.test_main import records, train
from training import output_folder


def test_a_run_that_another_process_has_just_finished_is_not_erased(
    monkeypatch, capsys, corpus: Path, tmp_path: Path
) -> None:
    """Another process trains the whole run just before this one locks the folder."""
    real, calls = output_folder.exclusive_access, []

    def late(args: object) -> object:
        calls.append(args)
        if len(calls) == 1:
            with monkeypatch.context() as patch:
                assert train(patch, corpus, tmp_path)[0] == 0
        return real(args)

    monkeypatch.setattr(output_folder, "exclusive_access", late)
    assert train(monkeypatch, corpus, tmp_path)[0] == 0
    assert len(calls) == 2 and "this run is done" in capsys.readouterr().out
    assert len(records(tmp_path / "run", "settings")) == 1


STAGES = {
    "deciding": "training.resume.find_start",
    "tokenizing": "training.setup.load_data",
    "building": "training.setup.build_denoiser",
    "claiming": "training.bookkeeper.claim",
    "training": "training.step.training_loss",
    "evaluating": "training.validation.score_text",
    "saving": "training.bookkeeper.save_state",
    "ending": "training.bookkeeper.closing_message",
}


def test_a_second_run_is_refused_at_every_stage_and_changes_nothing(monkeypatch, capsys, corpus, tmp_path) -> None:
    """Repeat the command while the first is at each of its stages, with and without --overwrite."""
    refused = []

    def pausing(name: str, real: Callable) -> Callable:
        def paused(*arguments: object, **options: object) -> object:
            if name not in refused:
                refused.append(name)
                for force in ([], ["--overwrite", "true"]):
                    with monkeypatch.context() as patch:
                        assert train(patch, corpus, tmp_path, "--tracker", "fitlog", *force)[0] == 2, name
                    assert "another process is training into this folder" in capsys.readouterr().err
            return real(*arguments, **options)

        return paused

    for name, function in STAGES.items():
        monkeypatch.setattr(function, pausing(name, resolve_name(function)))
    code, folder = train(monkeypatch, corpus, tmp_path, "--tracker", "fitlog")
    assert code == 0 and refused == list(STAGES)
    monkeypatch.undo()
    code, whole = train(monkeypatch, corpus, tmp_path, name="reference")
    for name in ("checkpoint", "checkpoint-last"):
        ours, theirs = ((run / name / "model.safetensors").read_bytes() for run in (folder, whole))
        assert ours == theirs


@pytest.mark.parametrize("how", ["gone", "empty"])
def test_checkpoints_without_their_saved_states_are_not_overwritten(monkeypatch, capsys, corpus, tmp_path, how) -> None:
    _, folder = train(monkeypatch, corpus, tmp_path)
    shutil.rmtree(folder / "state")
    if how == "empty":
        (folder / "state").mkdir()
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert train(monkeypatch, corpus, tmp_path)[0] == 2
    assert "saved states (state/) were removed; give another folder, or" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert train(monkeypatch, corpus, tmp_path, "--overwrite", "true")[0] == 0
