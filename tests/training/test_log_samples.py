"""log_samples.py: samples at each evaluation, those of predict.py, without influence on the training."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

import predict
from checkpoint.folder import load_checkpoint
from tests.conftest import call
from tests.test_main import records, train
from training import log_samples
from training.arguments import TrainArgs
from training.clock import Deadline
from training.log_samples import SampleLog, samples_in_log, shown_samples
from utils import distributed, job

FLAGS = ["--max_steps", 6, "--eval_steps", 3]


def test_the_samples_of_the_log_are_those_of_predict(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    code, folder = train(monkeypatch, corpus, tmp_path, *FLAGS, "--sample_steps", 16)
    output = capsys.readouterr().out
    found = records(folder, "samples")
    assert code == 0 and [r["step"] for r in found] == [3, 6] and all(len(r["texts"]) == 3 for r in found)
    flags = ["--num_samples", 3, "--num_steps", 16, "--seed", 42]
    assert call(predict.main, monkeypatch, "--checkpoint", folder / "checkpoint-last", *flags) == 0
    assert capsys.readouterr().out.splitlines() == found[-1]["texts"]
    assert f"  sample 1: {found[0]['texts'][0]}\n" in output
    closing = output[output.index("\ntrained 6 steps") :]
    assert f"  samples     after step 6\n              1: {found[1]['texts'][0]}\n" in closing
    assert f"  curve       {folder / 'curve.png'}\n" in closing
    assert output.count(found[1]["texts"][0]) == 1  # once, at the end
    assert train(monkeypatch, corpus, tmp_path, *FLAGS, "--sample_steps", 16)[0] == 0
    assert found[1]["texts"][0] in capsys.readouterr().out  # also for a finished run


def test_a_run_trains_the_same_with_and_without_samples_and_trackers(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path
) -> None:
    trackers = ["--tracker", "fitlog,tensorboard"]
    _, with_samples = train(monkeypatch, corpus, tmp_path, *FLAGS, *trackers, name="with")
    _, without = train(
        monkeypatch, corpus, tmp_path, *FLAGS, "--num_log_samples", 0, "--tracker", "none", name="without"
    )
    weights = [load_file(folder / "checkpoint-last" / "model.safetensors") for folder in (with_samples, without)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert not records(without, "samples")
    bounds = [[r["bits_per_token"] for r in records(folder, "valid")] for folder in (with_samples, without)]
    assert bounds[0] == bounds[1]


def test_failing_samples_cost_one_warning(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(log_samples, "draw_samples", fail)
    code, folder = train(monkeypatch, corpus, tmp_path, *FLAGS)
    error = capsys.readouterr().err
    assert code == 0 and error.count("warning: samples: RuntimeError: out of memory") == 1
    assert not records(folder, "samples") and (folder / "curve.png").exists()


def test_samples_that_do_not_fit_the_time_limit_are_given_up(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first forward passes show how long one takes; nothing was known before."""
    deadline, seconds = Deadline(1e6), iter([10.0, 10.0, 10.0, 0.0])
    monkeypatch.setattr(deadline, "left", lambda: next(seconds))
    model = load_checkpoint(trained, torch.device("cpu"))
    log = SampleLog(TrainArgs("-"), model, None, torch.nn.Identity(), deadline)
    assert log.draw() == [] and not log.failed
    monkeypatch.setattr(deadline, "left", lambda: 10.0)
    assert len(log.draw()) == 3


def test_other_processes_wait_and_do_not_count_the_time_as_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    deadline = Deadline(1)
    deadline.clock -= 1000
    monkeypatch.setattr(job, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "from_leader", lambda mine: ["of the first"])
    log = SampleLog(TrainArgs("-"), None, None, torch.nn.Identity(), deadline)
    assert log.draw() == ["of the first"]
    deadline.is_near()
    assert deadline.longest < 500


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sample_steps", 100], "sample_steps=100 must lie in 1..64"),
        (["--num_log_samples", 101], "num_log_samples=101"),
    ],
)
def test_more_steps_than_the_process_has_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    flags: list,
    message: str,
) -> None:
    assert train(monkeypatch, corpus, tmp_path, *flags)[0] == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run" / "log.jsonl").exists()


def test_samples_of_pairs_show_their_source(trained_pairs: Path) -> None:
    for record in records(trained_pairs, "samples"):
        for text in record["texts"]:
            source, arrow, target = text.partition(" -> ")
            assert source and arrow and target
    first = [[text.partition(" -> ")[0] for text in r["texts"]] for r in records(trained_pairs, "samples")]
    assert len(first) == 2 and first[0] == first[1]  # the same sources at every evaluation


def test_a_shown_sample_is_one_printable_line() -> None:
    assert shown_samples(["a\nb\x1b[2Jc", "x" * 500], "  ") == f"  1: a b\ufffd[2Jc\n  2: {'x' * 156} ..."


@pytest.mark.parametrize("content", ["", "no json\n", '{"kind": "samples"}\n', json.dumps([1]) + "\n"])
def test_a_log_without_samples_gives_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "log.jsonl").write_text(content)
    assert samples_in_log(tmp_path / "log.jsonl") == (0, []) == samples_in_log(tmp_path / "none")
