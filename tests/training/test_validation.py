"""validation.py: scored checkpoints, non-finite bounds, removed folders, time limits."""

import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from checkpoint.folder import load_checkpoint
from checkpoint.model_parts import PROCESSES
from data.options import DataArgs
from evaluation.likelihood_report import Likelihood
from tests.conftest import errors_of
from tests.test_main import CPU, records, train
from training.bookkeeper import Bookkeeper
from training.clock import Deadline
from training.saved_state import states
from training.setup import check_validation
from training.step import training_loss
from utils.errors import UserError


def test_the_saved_weights_give_the_recorded_bound(trained: Path, tmp_path: Path) -> None:
    """Scoring the checkpoint again on the same validation sentences reproduces the logged bound."""
    from checkpoint.rounds import Scoring
    from data.row_formats import load_texts
    from evaluation.likelihood import pick, score_text

    run = load_checkpoint(str(trained), CPU)
    args = DataArgs(
        str(trained.parent / "corpus.txt"),
        valid_fraction=0.1,
        max_length=run.max_length,
        batch_size=32,
        cache_dir=str(tmp_path),
    )
    _, valid = load_texts(args, run.tokenizer)
    again = score_text(run, valid, pick(valid, 256), Scoring(8, batch_size=32, seed=42), progress=False)
    assert again.report()["bits_per_token"] == pytest.approx(run.facts["bits_per_token"], rel=1e-5)


def test_a_non_finite_bound_ends_the_run(monkeypatch, capsys, corpus: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(Likelihood, "report", lambda self: {"nats_per_sequence": math.nan})
    code, folder = train(monkeypatch, corpus, tmp_path)
    assert code == 2 and "the validation bound is not finite; lower" in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == {"log.jsonl", "run.json", "run.lock", "state", "tokenizer"}


def test_a_removed_output_folder_ends_the_run_with_a_one_line_error(
    monkeypatch, capsys, corpus: Path, tmp_path: Path
) -> None:
    real = training_loss
    monkeypatch.setattr("training.step.training_loss", lambda *a: shutil.rmtree(tmp_path / "run", True) or real(*a))
    code, folder = train(monkeypatch, corpus, tmp_path)
    (message,) = errors_of(capsys.readouterr().err)
    assert code == 2 and "was removed or emptied during the run" in message
    assert not folder.exists()


def test_a_deleted_checkpoint_is_written_again(monkeypatch, corpus: Path, tmp_path: Path) -> None:
    real, calls = training_loss, []

    def loss(*args):
        calls.append(1)
        if len(calls) == 3:
            shutil.rmtree(tmp_path / "run" / "checkpoint-last")
            shutil.rmtree(tmp_path / "run" / "state")
        return real(*args)

    monkeypatch.setattr("training.step.training_loss", loss)
    code, folder = train(monkeypatch, corpus, tmp_path, "--max_steps", 4, "--eval_steps", 2)
    assert code == 0 and (folder / "checkpoint-last" / "model.safetensors").exists()
    assert [path.name for path in (folder / "state").iterdir()] == ["step-000000000004"]


def test_an_evaluation_cut_by_the_time_limit_is_done_by_the_next_process(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The step is saved; the next process begins with the evaluation and ends with the same results."""
    flags = ["--max_steps", 4, "--eval_steps", 2, "--time_limit", 60]
    _, whole = train(monkeypatch, corpus, tmp_path, *flags, name="whole")
    for stop in (2, 4):
        with monkeypatch.context() as patch:
            answers = [True] * (stop == 4) + [False] * 9
            patch.setattr(Deadline, "part_check", lambda self, answers=answers: lambda: answers.pop(0))
            code, folder = train(patch, corpus, tmp_path, *flags)
        assert code == 0 and f"the time limit is near: stopped after step {stop}" in capsys.readouterr().out
        assert [record["step"] for record in records(folder, "valid")] == [2] * (stop == 4)
    with monkeypatch.context() as patch:
        patch.setattr(Deadline, "part_check", lambda self: lambda: False)
        assert train(patch, corpus, tmp_path, *flags)[0] == 2
        assert "time_limit=60.0 is too short for an evaluation of" in capsys.readouterr().err
    assert train(monkeypatch, corpus, tmp_path, *flags)[0] == 0
    assert "trained 4 steps" in capsys.readouterr().out
    assert [record["step"] for record in records(folder, "valid")] == [2, 4]
    for name in ("checkpoint", "checkpoint-last"):
        ours, theirs = ((run / name / "model.safetensors").read_bytes() for run in (folder, whole))
        assert ours == theirs


def test_timed_evaluations_are_counted_from_the_end_of_the_last_one(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path
) -> None:
    """A clock of one minute per step; step n begins after n - 1 minutes."""
    real, steps = Bookkeeper.agree, []
    monkeypatch.setattr(Bookkeeper, "agree", lambda *given: steps.append(1) or real(*given))
    monkeypatch.setattr(Bookkeeper, "seconds", lambda self: 60.0 * max(0, len(steps) - 1))
    code, folder = train(monkeypatch, corpus, tmp_path, "--max_steps", 7, "--eval_minutes", 2)
    assert code == 0
    assert [record["step"] for record in records(folder, "valid")] == [3, 6, 7]


def test_the_trajectory_estimator_validates_the_same_bound(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path
) -> None:
    reports = []
    for name in ("windows", "trajectory"):
        code, folder = train(monkeypatch, corpus, tmp_path, "--eval_estimator", name, name=name)
        reports += records(folder, "valid")[-1:]
        assert code == 0
    windows, trajectory = reports
    assert trajectory["estimator"] == "trajectory" and trajectory["draws_error_nats"] > 0
    assert trajectory["nats_per_sequence"] == pytest.approx(windows["nats_per_sequence"], rel=0.05)


def test_an_estimator_that_does_not_suit_the_network_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, capsys, corpus: Path, tmp_path: Path
) -> None:
    flags = ["--eval_estimator", "trajectory", "--time_conditioning", "layerwise"]
    code, folder = train(monkeypatch, corpus, tmp_path, *flags)
    (message,) = errors_of(capsys.readouterr().err)
    assert code == 2 and "eval_estimator=trajectory does not suit a network with time conditioning" in message
    assert not folder.exists() or not (folder / "run.json").exists()  # so that the corrected command may follow


@pytest.mark.parametrize("num_steps", [1, math.inf])
@pytest.mark.parametrize("name", ["ar", "score"])
def test_a_process_without_masks_refuses_the_trajectory_estimator(name: str, num_steps: float) -> None:
    kind = PROCESSES[name].process
    process = kind.__new__(kind)
    process.num_steps = num_steps
    config = SimpleNamespace(run=SimpleNamespace(eval_estimator="trajectory", process=name))
    with pytest.raises(UserError, match=f"eval_estimator=trajectory does not suit process={name}"):
        check_validation(config, process, SimpleNamespace(time_conditioned=False))


def test_a_timed_evaluation_leaves_a_state_to_resume_from(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path
) -> None:
    """Killed in the step after an evaluation, before any state was due, the run resumes from that evaluation."""
    flags = ["--max_steps", 6, "--eval_minutes", 1e-9, "--lr_schedule", "constant"]
    real, calls = training_loss, []

    def die(*args):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("killed")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr("training.step.training_loss", die)
        with pytest.raises(RuntimeError, match="killed"):
            train(patch, corpus, tmp_path, *flags)
    code, folder = train(monkeypatch, corpus, tmp_path, *flags)
    assert code == 0 and [record["step"] for record in records(folder, "valid")] == [1, 3, 5, 6]


def test_a_timed_evaluation_that_the_time_limit_cuts_is_done_by_the_next_process(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path
) -> None:
    flags = ["--max_steps", 4, "--eval_minutes", 1e-9, "--time_limit", 60]
    with monkeypatch.context() as patch:
        patch.setattr(Deadline, "part_check", lambda self: lambda: False)
        code, folder = train(patch, corpus, tmp_path, *flags)
    assert code == 0 and states(folder) and not records(folder, "valid")
    assert train(monkeypatch, corpus, tmp_path, *flags)[0] == 0
    assert records(folder, "valid")[0]["step"] == 1 and records(folder, "valid")[-1]["step"] == 4
