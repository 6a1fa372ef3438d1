"""main.py from command line to output folder."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import main
from checkpoint.folder import load_checkpoint
from data.corpus import held_out
from tests.conftest import ROOT, SENTENCES, TINY, call
from training.optim import AveragedWeights
from training.outcome import Figures, verdict_in_log
from training.output_folder import OUTPUTS, RECORDS

CPU = torch.device("cpu")


def records(folder: Path, kind: str) -> list[dict]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


def train(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path, *flags: object, name: str = "run"
) -> tuple[int, Path]:
    folder = tmp_path / name
    base = [
        *TINY,
        "--train_data",
        corpus,
        "--output_dir",
        folder,
        "--cache_dir",
        tmp_path / "cache",
        "--valid_fraction",
        0.1,
    ]
    return call(main.main, monkeypatch, *base, "--max_steps", 3, *flags), folder


@pytest.mark.slow
def test_fitlog_records_the_figures_of_a_real_run(monkeypatch, corpus: Path, tmp_path: Path, capsys) -> None:
    code, folder = train(monkeypatch, corpus, tmp_path, "--tracker", "fitlog")
    captured = capsys.readouterr()
    assert code == 0 and "warning" not in captured.err
    (log,) = (tmp_path / "fitlog").iterdir()
    valid = records(folder, "valid")[-1]
    assert str(valid["bits_per_token"])[:8] in (log / "metric.log").read_text()
    assert str(valid["bits_per_token"])[:8] in (log / "best_metric.log").read_text()
    assert f"fitlog log {tmp_path / 'fitlog'} --ip 127.0.0.1" in captured.out
    assert train(monkeypatch, corpus, tmp_path, "--tracker", "fitlog", "--overwrite", "true", "--max_steps", 1)[0] == 0
    (log,) = (tmp_path / "fitlog").iterdir()  # replaces the earlier record
    assert len((log / "loss.log").read_text().splitlines()) == 1


def test_a_diverged_run_is_reported_on_screen_and_in_every_record(
    monkeypatch, corpus: Path, tmp_path: Path, capsys
) -> None:
    flags = ["--learning_rate", 100, "--max_steps", 12, "--warmup_steps", 1]
    code, folder = train(monkeypatch, corpus, tmp_path, *flags)
    output = capsys.readouterr().out
    (verdict,) = [line.removeprefix("  WARNING").strip() for line in output.splitlines() if "WARNING" in line]
    assert code == 0 and "the training diverged: its best bound, " in verdict and "lower --learning_rate" in verdict
    assert records(folder, "note")[-1]["verdict"] == verdict == verdict_in_log(folder / "log.jsonl")
    assert load_checkpoint(str(folder), CPU).facts["verdict"] == verdict
    assert f"| verdict | {verdict} |" in (folder / "checkpoint" / "README.md").read_text()
    assert train(monkeypatch, corpus, tmp_path, *flags)[0] == 0
    assert f"  WARNING     {verdict}\n" in capsys.readouterr().out  # also for a finished run


def test_a_note_on_a_risen_bound_is_printed_and_logged(monkeypatch, corpus: Path, tmp_path: Path, capsys) -> None:
    """The note itself is tested in training/test_outcome.py: a network needs long to overfit."""
    monkeypatch.setattr(Figures, "risen_bound", lambda self, steps: f"it overfits after {steps} steps")
    for _ in range(2):  # the second time, the run is finished
        code, folder = train(monkeypatch, corpus, tmp_path)
        assert code == 0 and "  note        it overfits after 3 steps\n" in capsys.readouterr().out
    assert records(folder, "note")[-1]["risen_bound"] == "it overfits after 3 steps"


def test_a_run_learns_and_writes_every_output(trained: Path) -> None:
    valid = records(trained, "valid")
    assert valid[-1]["bits_per_token"] < 0.6 * valid[-1]["unigram_bits_per_token"]
    assert records(trained, "train")[0]["step"] == 1  # so that figures appear within seconds
    assert {p.name for p in trained.iterdir()} == {*OUTPUTS, "run.lock"} - set(RECORDS)
    run = load_checkpoint(str(trained), CPU)
    best = min(valid, key=lambda r: r["bits_per_token"])
    assert run.facts["step"] == best["step"] and run.facts["bits_per_token"] == best["bits_per_token"]
    assert sum(run.length_histogram) == sum(not held_out(0.1)(s) for s in SENTENCES)


@pytest.mark.parametrize(
    "flags",
    [
        ["--spindle", "released", "--schedule", "cosine", "--optimizer", "adamw", "--lr_schedule", "inverse_sqrt"],
        ["--posterior", "released", "--spindle", "released", "--hybrid_lambda", "0.01", "--max_grad_value", "5"],
        ["--spindle", "none", "--time_conditioning", "layerwise", "--warm_start", "0.5", "--max_length", "16"],
        [
            "--time_conditioning",
            "token",
            "--schedule",
            "linear",
            "--precision",
            "bf16",
            "--gradient_checkpointing",
            "true",
        ],
        [
            "--hybrid_lambda",
            "0.01",
            "--accumulation_steps",
            "2",
            "--ema_decay",
            "0.9",
            "--attn_implementation",
            "eager",
        ],
    ],
    ids=lambda flags: flags[1] + flags[3],
)
def test_combinations_of_settings_train_save_and_load(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path, flags: list[str]
) -> None:
    code, folder = train(monkeypatch, corpus, tmp_path, *flags)
    assert code == 0
    assert all(math.isfinite(r["bits_per_token"]) for r in records(folder, "train") + records(folder, "valid"))
    assert load_checkpoint(str(folder), CPU).facts["step"] == 3


KNOWN_GRADIENT = """
import sys

import torch

import main
from diffusion.process import Loss
from training import step
from utils.command_line import run_script

clip = step.clip


def loss(run, batch, *_):
    n = batch.target_mask.sum()
    return Loss(n * sum(p.sum() for p in run.denoiser.parameters()), n, {})


def check(model, *rest):
    for parameter in model.parameters():
        torch.testing.assert_close(parameter.grad, torch.ones_like(parameter))
    return clip(model, *rest)


step.training_loss, step.clip = loss, check
run_script(main.main)
"""


@pytest.mark.slow
def test_gradients_are_sums_divided_once_by_the_tokens_of_the_whole_step(corpus: Path, tmp_path: Path) -> None:
    """A loss of n tokens times the sum of all weights has gradient 1, however the tokens are distributed.

    They are distributed over three micro-batches of different sizes, and over two processes (torchrun, gloo).
    """
    (tmp_path / "known.py").write_text(KNOWN_GRADIENT)
    base = [*TINY, "--train_data", corpus, "--cache_dir", tmp_path / "cache", "--valid_fraction", 0.1, "--max_steps", 2]
    base += ["--output_dir", tmp_path / "run", "--batch_size", 16, "--accumulation_steps", 3, "--learning_rate", 1e-9]
    base += ["--eval_steps", 2]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [str(part) for part in [*launcher, tmp_path / "known.py", *base]], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 steps of 96 sentences" in done.stdout and done.stdout.count("trained 2 steps") == 1
    valid = records(tmp_path / "run", "valid")
    assert valid[-1]["num_sequences"] == sum(held_out(0.1)(s) for s in SENTENCES) > 10


@pytest.mark.slow
def test_fp16_training_follows_fp32(monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp16", "fp32"):
        flags = ["--precision", precision, "--optimizer", "muon", "--max_steps", 30, "--loss_weighting", "uniform"]
        code, folder = train(monkeypatch, corpus, tmp_path, *flags, name=precision)
        losses[precision] = [record["bits_per_token"] for record in records(folder, "train")]
        assert code == 0 and losses[precision][-1] < losses[precision][0]
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.01)


def test_the_learning_rate_warms_up(monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path) -> None:
    flags = ["--warmup_steps", 10, "--max_steps", 10, "--lr_schedule", "constant", "--learning_rate", 1e-3]
    _, folder = train(monkeypatch, corpus, tmp_path, *flags)
    rates = {r["step"]: r["learning_rate"] for r in records(folder, "train")}
    assert [rates[n] for n in (1, 2, 5, 10)] == pytest.approx([1e-4, 2e-4, 5e-4, 1e-3])


def test_the_averaged_weights_are_saved(monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path) -> None:
    averages = []
    real = AveragedWeights
    monkeypatch.setattr("training.step.AveragedWeights", lambda *args: averages.append(real(*args)) or averages[-1])
    _, folder = train(monkeypatch, corpus, tmp_path, "--ema_decay", 0.9)
    run = load_checkpoint(str(folder / "checkpoint-last"), CPU)
    saved = [p for p in run.denoiser.parameters() if p.requires_grad]
    assert all(torch.equal(p, average) for p, average in zip(saved, averages[0].shadow, strict=True))
    assert not all(torch.equal(p, parameter) for p, parameter in zip(saved, averages[0].parameters, strict=True))


def test_the_same_seed_gives_the_same_weights(monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        _, folder = train(monkeypatch, corpus, tmp_path, "--seed", seed, name=name)
        weights.append((folder / "checkpoint-last" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train_data", "missing.txt"], "missing.txt: no such file or folder"),
        (["--valid_data", "missing.txt"], "missing.txt: no such file or folder"),
        (["--batch_size", "500"], "training sentences are fewer than batch_size=500"),
        (["--tokenizer", "no/such"], "cannot load the tokenizer 'no/such'"),
        (["--tokenizer", "wordpiece", "--model_name_or_path", "no/such"], "cannot load the network 'no/such'"),
        (["--max_length", "5000"], "max_length=5000 exceeds the 512 positions"),
        (["--word_freq_file", "missing.json"], "word frequencies missing.json: cannot be read"),
        (["--attn_implementation", "magic"], "attn_implementation='magic' cannot be used here"),
        (["--device", "gpu9"], "device='gpu9' cannot be used here"),
        (["--device", "meta"], "device='meta' cannot be used here"),
        (["--optimizer", "sgd"], "invalid choice: 'sgd'"),
        (["--fp16", "true", "--precision", "bf16"], "fp16=true contradicts precision=bf16"),
        (["--threads", 10**12], "threads=1000000000000 must lie in 0..4096"),
        (["--seed", 2**64], "seed=18446744073709551616 must be 0 or more, and below 2**63"),
        (["--cache_dir", "/dev/null/c"], "cache_dir=/dev/null/c: /dev/null cannot be written to"),
        (["--output_dir", "/dev/null/c"], "output_dir=/dev/null/c: /dev/null cannot be written to"),
        (["--output_dir", ""], "output_dir is empty"),
        (["--posterior", "released", "--loss_weighting", "uniform"], "released excludes loss_weighting=uniform"),
    ],
)
def test_bad_input_is_a_one_line_error_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    corpus: Path,
    tmp_path: Path,
    flags: list[str],
    message: str,
) -> None:
    code, folder = train(monkeypatch, corpus, tmp_path, *flags)
    error = capsys.readouterr().err.strip()
    assert code == 2 and message in error and error.startswith("script.py: error: ") and "\n" not in error
    assert not folder.exists()
