"""bookkeeper.py: skipped steps, saved states, the lock of the output folder, and the log."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from tests.conftest import errors_of
from tests.test_main import records, train
from training.run_log import cut_log
from training.saved_state import states
from training.step import training_loss
from utils.files import held_alone


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int], quantity: str = "loss") -> None:
    """Make the loss of some steps infinite, or their gradient NaN."""
    real, calls = training_loss, []

    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * math.nan

    def loss(*args):
        calls.append(1)
        result = real(*args)
        if len(calls) not in steps:
            return result
        total = result.total * math.inf if quantity == "loss" else Spoilt.apply(result.total)
        return type(result)(total, result.num_tokens, result.terms)

    monkeypatch.setattr("training.step.training_loss", loss)


@pytest.mark.parametrize("quantity", ["loss", "gradient"])
@pytest.mark.slow
def test_a_step_with_a_non_finite_loss_or_gradient_is_skipped_and_counted(
    monkeypatch, corpus, tmp_path, capsys, quantity: str
) -> None:
    steps = ["--max_steps", 6, "--logging_steps", 1, "--max_skipped_steps", 3, "--ema_decay", 0.9]
    with monkeypatch.context() as patch:
        spoil(patch, {2, 3, 5}, quantity)
        code, folder = train(patch, corpus, tmp_path, *steps)
    output = capsys.readouterr().out
    assert code == 0 and "skipped     3 steps whose loss or gradient was not finite" in output
    logged = {r["step"]: r for r in records(folder, "train")}
    assert [logged[n].get("skipped_steps") for n in range(1, 7)] == [None, 1, 2, 2, 3, 3]
    assert logged[2]["bits_per_token"] is None and math.isfinite(logged[6]["bits_per_token"])
    facts = json.loads((folder / "state" / "step-000000000006" / "state.json").read_text())
    assert facts["average_updates"] == 3  # three of six steps were skipped


@pytest.mark.parametrize("quantity", ["loss", "gradient"])
def test_too_many_skipped_steps_end_the_run_and_name_the_text_lines(
    monkeypatch, corpus, tmp_path, capsys, quantity: str
) -> None:
    spoil(monkeypatch, {3, 4, 5}, quantity)
    flags = ["--max_steps", 9, "--max_skipped_steps", 3, "--save_every", 2, "--batch_size", 4]
    code, folder = train(monkeypatch, corpus, tmp_path, *flags)
    (message,) = errors_of(capsys.readouterr().err)
    assert code == 2
    assert f"the training {quantity} was not finite in 3 steps in a row, last on the batch of {corpus}:" in message
    lines = [int(part.split(",")[0].split(" ")[0]) for part in message.split(f"{corpus}:")[1:]]
    assert len(lines) == 3 and all(1 <= line <= 240 for line in lines) and "and 1 more" in message
    assert (folder / "state" / "step-000000000004").is_dir()


@pytest.mark.slow
def test_states_are_saved_after_given_steps_or_minutes(monkeypatch, corpus: Path, tmp_path: Path) -> None:
    common = ["--max_steps", 7, "--eval_steps", 100, "--keep_last", 100]
    for flags, expected in (
        (["--save_every", 3], [3, 6, 7]),
        (["--save_minutes", 1000], [7]),
        (["--save_minutes", 1e-9], [1, 2, 3, 4, 5, 6, 7]),
    ):
        _, folder = train(monkeypatch, corpus, tmp_path, *common, *flags, name=str(flags[1]))
        assert sorted(int(path.name[5:]) for path in (folder / "state").iterdir()) == expected


def test_a_step_of_infinite_loss_is_skipped_even_if_its_gradient_is_finite(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path
) -> None:
    real = training_loss

    def loss(*args):
        result = real(*args)
        return type(result)(result.total + math.inf, result.num_tokens, result.terms)

    monkeypatch.setattr("training.step.training_loss", loss)
    code, folder = train(monkeypatch, corpus, tmp_path, "--max_steps", 2, "--ema_decay", 0.9)
    facts = json.loads((folder / "state" / "step-000000000002" / "state.json").read_text())
    assert code == 0 and facts["average_updates"] == 0 and facts["figures"]["skipped"] == 2


def test_two_processes_do_not_train_into_one_folder(monkeypatch, corpus: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "run").mkdir()
    with held_alone(tmp_path / "run" / "run.lock", "not here"):
        code, folder = train(monkeypatch, corpus, tmp_path)
    assert code == 2 and "another process is training into this folder" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["run.lock"]
    assert train(monkeypatch, corpus, tmp_path)[0] == 0


@pytest.mark.slow
def test_with_max_minutes_the_clock_sets_warm_up_and_scored_sentences(
    monkeypatch, corpus: Path, tmp_path: Path
) -> None:
    """--max_steps is so large that a share of it would never end the warm-up."""
    code, folder = train(monkeypatch, corpus, tmp_path, "--max_minutes", 0.04, "--max_steps", 10**6, "--batch_size", 4)
    rates = [record["learning_rate"] for record in records(folder, "train")]
    (state,) = states(folder)
    figures = json.loads((state / "state.json").read_text())["figures"]
    assert code == 0 and max(rates) > 1e-3 and rates[-1] < 1e-3
    assert figures["warm_step"] >= 1 and 0 < figures["warm_seconds"] < 2.4
    assert records(folder, "valid")[-1]["num_sequences"] >= min(16, figures["eval_sequences"])
    assert figures["last_bound"] == figures["best"] and 0 < figures["unigram"] < figures["uniform"]


def test_cut_log_removes_damaged_lines_and_records_of_later_steps(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    records = [{"kind": "settings"}, *({"kind": "train", "step": n} for n in (1, 2, 3)), {"kind": "note", "steps": 3}]
    log.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"kind": "tr')
    cut_log(log, 2)
    assert [json.loads(line).get("step") for line in log.read_text().splitlines()] == [None, 1, 2]
    for line in ('{"kind": "train", "step": "x"}', '{"step": null}', "[" * 100_000, "[1]"):
        log.write_text(json.dumps(records[1]) + "\n" + line + "\n")
        cut_log(log, 2)
        assert [json.loads(kept)["step"] for kept in log.read_text().splitlines()] == [1]
    cut_log(tmp_path / "none.jsonl", 2)
    assert (tmp_path / "none.jsonl").read_text() == ""


def test_lines_are_printed_at_most_every_ten_seconds_and_all_are_logged(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path, capsys
) -> None:
    code, folder = train(monkeypatch, corpus, tmp_path, "--max_steps", 40, "--logging_steps", 4)
    printed = [line for line in capsys.readouterr().out.splitlines() if "training loss" in line]
    assert code == 0 and len(records(folder, "train")) == 14  # steps 1, 2, 5, 10 and every fourth
    assert [line.split(":")[0] for line in printed[:5]] == ["step 1", "step 2", "step 5", "step 10", "step 20"]
    assert printed[-1].startswith("step 40:") and len(printed) < 14
    assert all(re.search(r"epoch \d+, \d+ (s|min) left$", line) for line in printed[:5])
    assert "left" not in printed[-1]  # the training is over


def test_the_log_says_which_steps_are_the_warm_start(monkeypatch, corpus: Path, tmp_path: Path) -> None:
    code, folder = train(monkeypatch, corpus, tmp_path, "--max_steps", 8, "--logging_steps", 1, "--warm_start", 0.5)
    assert code == 0
    assert [record.get("warm_start", False) for record in records(folder, "train")] == [True] * 4 + [False] * 4
