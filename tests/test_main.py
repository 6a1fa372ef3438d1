"""main.py from its command line to its output folder."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import main
from checkpoint.folder import load_checkpoint
from data.corpus import held_out
from data.splits import DataArgs
from diffusion.draws import WHOLE
from tests.conftest import ROOT, SENTENCES, TINY, call
from training.arguments import TrainArgs
from training.optim import AveragedWeights, OptimArgs
from training.outcome import said_of
from training.output_folder import OUTPUTS
from training.step import clip, training_loss

CPU = torch.device("cpu")


def records(folder: Path, kind: str) -> list[dict]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


def train(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path, *words: object, name: str = "run"
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
    return call(main.main, monkeypatch, *base, "--max_steps", 3, *words), folder


def test_fitlog_takes_every_figure_of_a_real_run(monkeypatch, corpus: Path, tmp_path: Path, capsys) -> None:
    code, folder = train(monkeypatch, corpus, tmp_path, "--fitlog", "true")
    said = capsys.readouterr()
    assert code == 0 and "warning" not in said.err
    (log,) = (tmp_path / "fitlog").iterdir()
    valid = records(folder, "valid")[-1]
    assert str(valid["bits_per_token"])[:8] in (log / "metric.log").read_text()
    assert str(valid["bits_per_token"])[:8] in (log / "best_metric.log").read_text()
    assert f"fitlog log {tmp_path / 'fitlog'} --ip 127.0.0.1" in said.out
    assert train(monkeypatch, corpus, tmp_path, "--fitlog", "true", "--overwrite", "true", "--max_steps", 1)[0] == 0
    (log,) = (tmp_path / "fitlog").iterdir()  # in the place of the other
    assert len((log / "loss.log").read_text().splitlines()) == 1


def test_a_run_that_diverged_says_so_wherever_it_is_looked_at(
    monkeypatch, corpus: Path, tmp_path: Path, capsys
) -> None:
    words = ["--learning_rate", 100, "--max_steps", 12, "--warmup_steps", 1]
    code, folder = train(monkeypatch, corpus, tmp_path, *words)
    said = capsys.readouterr().out
    (verdict,) = [line.removeprefix("  WARNING").strip() for line in said.splitlines() if "WARNING" in line]
    assert code == 0 and "the training diverged: its best bound, " in verdict and "lower --learning_rate" in verdict
    assert records(folder, "note")[-1]["verdict"] == verdict == said_of(folder / "log.jsonl")
    assert load_checkpoint(str(folder), CPU).facts["verdict"] == verdict
    assert f"| verdict | {verdict} |" in (folder / "checkpoint" / "README.md").read_text()
    assert train(monkeypatch, corpus, tmp_path, *words)[0] == 0
    assert f"  WARNING     {verdict}\n" in capsys.readouterr().out  # of a finished run, too


def test_a_run_learns_and_leaves_everything_behind(trained: Path) -> None:
    valid = records(trained, "valid")
    assert valid[-1]["bits_per_token"] < 0.6 * valid[-1]["unigram_bits_per_token"]
    assert records(trained, "train")[0]["step"] == 1  # figures within seconds
    assert {p.name for p in trained.iterdir()} == {*OUTPUTS, "run.lock"} - {"fitlog"}
    run = load_checkpoint(str(trained), CPU)
    best = min(valid, key=lambda r: r["bits_per_token"])
    assert run.facts["step"] == best["step"] and run.facts["bits_per_token"] == best["bits_per_token"]
    assert sum(run.length_histogram) == sum(not held_out(0.1)(s) for s in SENTENCES)


def test_the_saved_weights_give_the_recorded_bound(trained: Path, tmp_path: Path) -> None:
    """Scoring the checkpoint again on the same held-out sentences reproduces the log: it holds what was scored."""
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
    again = score_text(run, valid, pick(valid, 256), num_steps=8, batch_size=32, seed=42, device=CPU, progress=False)
    assert again.report()["bits_per_token"] == pytest.approx(run.facts["bits_per_token"], rel=1e-5)


@pytest.mark.parametrize(
    "words",
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
    ids=lambda words: words[1] + words[3],
)
def test_every_setting_trains_saves_and_loads(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path, words: list[str]
) -> None:
    code, folder = train(monkeypatch, corpus, tmp_path, *words)
    assert code == 0
    assert all(math.isfinite(r["bits_per_token"]) for r in records(folder, "train") + records(folder, "valid"))
    assert load_checkpoint(str(folder), CPU).facts["step"] == 3


KNOWN_GRADIENT = """
import sys

import torch

import main
import masked_prediction
from process import Loss
from runtime import run_script

clip = main.clip


def loss(run, batch, *_):
    n = batch.target_mask.sum()
    return Loss(n * sum(p.sum() for p in run.denoiser.parameters()), n, {})


def check(model, *rest):
    for parameter in model.parameters():
        torch.testing.assert_close(parameter.grad, torch.ones_like(parameter))
    return clip(model, *rest)


main.training_loss, main.clip = loss, check
run_script(main.main)
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_gradients_are_sums_divided_once_by_the_tokens_of_the_whole_step(
    corpus: Path, tmp_path: Path, ranks: int
) -> None:
    """A loss of n tokens times the sum of all weights: its gradient is 1, however the n are spread.

    Over three micro-batches of different sizes, and over two processes of torchrun (gloo).
    """
    (tmp_path / "known.py").write_text(KNOWN_GRADIENT)
    base = [*TINY, "--train_data", corpus, "--cache_dir", tmp_path / "cache", "--valid_fraction", 0.1, "--max_steps", 2]
    base += ["--output_dir", tmp_path / "run", "--batch_size", 16, "--accumulation_steps", 3, "--learning_rate", 1e-9]
    base += ["--eval_steps", 2]
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [str(word) for word in [*launcher, tmp_path / "known.py", *base]], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"2 steps of {48 * ranks} sentences" in done.stdout and done.stdout.count("trained 2 steps") == 1
    valid = records(tmp_path / "run", "valid")
    assert valid[-1]["num_sequences"] == sum(held_out(0.1)(s) for s in SENTENCES) > 10


def test_clipping_bounds_the_norm_and_the_values() -> None:
    model, scaler = torch.nn.Linear(3, 1), torch.amp.GradScaler("cpu", enabled=False)
    for optim, expected in (
        (OptimArgs(max_grad_norm=2.5), [1.5, 2.0, 0.0]),
        (OptimArgs(max_grad_norm=0, max_grad_value=3.5), [3.0, 3.5, 0.0]),
        (OptimArgs(max_grad_norm=0), [3.0, 4.0, 0.0]),
    ):
        model.weight.grad, model.bias.grad = torch.tensor([[3.0, 4.0, 0.0]]), torch.zeros(1)
        assert clip(model, optim, [], scaler)
        torch.testing.assert_close(model.weight.grad[0], torch.tensor(expected), atol=1e-4, rtol=1e-4)
    model.weight.grad[0, 0] = math.nan
    assert not clip(model, OptimArgs(), [], scaler)


def test_in_fp16_an_overflow_anywhere_leaves_every_weight_as_it_was() -> None:
    """Two optimizers share one norm; one that stepped on it alone would write NaN over its weights."""
    a, b = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    model = torch.nn.ParameterList([a, b])
    optimizers = [torch.optim.SGD([a], lr=0.1), torch.optim.SGD([b], lr=0.1)]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for bad, may_step in ((math.inf, False), (math.nan, False), (1.0, True)):
        for parameter, value in ((a, bad), (b, 1.0)):
            scaler.scale(value * parameter.sum()).backward()
        assert clip(model, OptimArgs(), optimizers, scaler) == may_step
        scaler.update()
        model.zero_grad()
    assert scaler.get_scale() == 2.0  # halved twice


def test_fp16_training_runs_and_learns(monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path) -> None:
    words = ["--precision", "fp16", "--optimizer", "muon", "--max_steps", 30, "--loss_weighting", "uniform"]
    code, folder = train(monkeypatch, corpus, tmp_path, *words)
    losses = [record["bits_per_token"] for record in records(folder, "train")]
    assert code == 0 and losses[-1] < 0.9 * losses[0]


def test_the_warm_start_is_masked_language_modelling_and_then_the_process_takes_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("training.step.masked_lm_loss", lambda *_, rates, **__: ("masked lm", rates))
    process = SimpleNamespace(loss=lambda *_, **__: "process")
    run = SimpleNamespace(process=process, denoiser=None)
    args = TrainArgs("x", warm_start=0.25, warm_start_rates="0.2,0.3")
    losses = [training_loss(run, None, args, progress, None, WHOLE) for progress in (0.0, 0.24, 0.25, 1.0)]
    assert losses == [("masked lm", (0.2, 0.3))] * 2 + ["process"] * 2


def test_the_learning_rate_warms_up(monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path) -> None:
    words = ["--warmup_steps", 10, "--max_steps", 10, "--lr_schedule", "constant", "--learning_rate", 1e-3]
    _, folder = train(monkeypatch, corpus, tmp_path, *words)
    rates = {r["step"]: r["learning_rate"] for r in records(folder, "train")}
    assert [rates[n] for n in (1, 2, 5, 10)] == pytest.approx([1e-4, 2e-4, 5e-4, 1e-3])


def test_the_averaged_weights_are_scored_and_saved(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path
) -> None:
    averages = []
    real = AveragedWeights
    monkeypatch.setattr("main.AveragedWeights", lambda *words: averages.append(real(*words)) or averages[-1])
    _, folder = train(monkeypatch, corpus, tmp_path, "--ema_decay", 0.9)
    run = load_checkpoint(str(folder / "checkpoint-last"), CPU)
    saved = [p for p in run.denoiser.parameters() if p.requires_grad]
    assert all(torch.equal(p, shadow) for p, shadow in zip(saved, averages[0].shadow, strict=True))
    assert not all(torch.equal(p, now) for p, now in zip(saved, averages[0].parameters, strict=True))


def test_the_same_seed_gives_the_same_weights(monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        _, folder = train(monkeypatch, corpus, tmp_path, "--seed", seed, name=name)
        weights.append((folder / "checkpoint-last" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_epochs_and_minutes_end_a_run(monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path) -> None:
    code, folder = train(monkeypatch, corpus, tmp_path, "--max_steps", 0, "--num_train_epochs", 2, "--batch_size", 64)
    assert code == 0 and records(folder, "note")[-1]["steps"] == round(2 * len_train(folder) / 64)
    code, folder = train(monkeypatch, corpus, tmp_path, "--max_steps", 100000, "--max_minutes", 0.03, name="short")
    note = records(folder, "note")[-1]
    assert code == 0 and note["steps"] < 1000 and records(folder, "train")[-1]["learning_rate"] < 1e-3
    assert records(folder, "valid")[-1]["step"] == note["steps"]


def len_train(folder: Path) -> int:
    return sum(load_checkpoint(str(folder), CPU).length_histogram)


def test_frequencies_from_a_file_drive_the_spindle(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "f.json").write_text('{"the": 10, "a": 5}')
    code, folder = train(monkeypatch, corpus, tmp_path, "--word_freq_file", tmp_path / "f.json")
    assert code == 0 and load_checkpoint(str(folder), CPU).token_counts.sum() == 15


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train_data", "missing.txt"], "missing.txt: no such file or folder"),
        (["--valid_data", "missing.txt"], "missing.txt: no such file or folder"),
        (["--batch_size", "500"], "training sentences are fewer than batch_size=500"),
        (["--tokenizer", "no/such"], "cannot load the tokenizer 'no/such'"),
        (["--tokenizer", "wordpiece", "--model_name_or_path", "no/such"], "cannot load the network 'no/such'"),
        (["--max_length", "5000"], "max_length=5000 is more than the 512 positions"),
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
        (["--posterior", "released", "--loss_weighting", "uniform"], "released trains on its own loss"),
    ],
)
def test_bad_input_ends_in_one_line_and_nothing_written(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    corpus: Path,
    tmp_path: Path,
    words: list[str],
    message: str,
) -> None:
    code, folder = train(monkeypatch, corpus, tmp_path, *words)
    said = capsys.readouterr().err.strip()
    assert code == 2 and message in said and said.startswith("script.py: error: ") and "\n" not in said
    assert not folder.exists()
