"""main.py from its command line to its output folder."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SENTENCES, TINY, call

import checkpoint
import main
from config import parse
from corpus import held_out
from dataloader import DataArgs
from diffusion_word_freq import WordFreqArgs
from models.bert import BertArgs
from optim import OptimArgs

ROOT = Path(__file__).parent.parent
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


def test_a_run_learns_and_leaves_everything_behind(trained: Path) -> None:
    valid = records(trained, "valid")
    assert valid[-1]["bits_per_token"] < 0.6 * valid[-1]["unigram_bits_per_token"]
    assert records(trained, "train")[0]["step"] == 1  # figures within seconds
    assert {p.name for p in trained.iterdir()} == {"checkpoint", "checkpoint-last", "log.jsonl", "curve.png"}
    run = checkpoint.load(str(trained), CPU)
    best = min(valid, key=lambda r: r["bits_per_token"])
    assert run.facts["step"] == best["step"] and run.facts["bits_per_token"] == best["bits_per_token"]
    assert sum(run.length_histogram) == sum(not held_out(0.1)(s) for s in SENTENCES)


def test_the_saved_weights_give_the_recorded_bound(trained: Path, tmp_path: Path) -> None:
    """Scoring the checkpoint again on the same held-out sentences reproduces the log: it holds what was scored."""
    import likelihood
    from dataloader import load_splits

    run = checkpoint.load(str(trained), CPU)
    args = DataArgs(
        str(trained.parent / "corpus.txt"),
        valid_fraction=0.1,
        max_length=run.max_length,
        batch_size=32,
        cache_dir=str(tmp_path),
    )
    _, valid = load_splits(args, run.tokenizer)
    again = likelihood.score(
        run, valid, likelihood.pick(valid, 256), num_steps=8, batch_size=32, seed=42, device=CPU, progress=False
    )
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
    assert checkpoint.load(str(folder), CPU).facts["step"] == 3


def test_accumulation_gives_the_step_of_one_large_batch(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients are sums over sentences divided once by the tokens of the whole step, whatever the micro-batches."""
    kinds = [main.TrainArgs, DataArgs, BertArgs, WordFreqArgs, OptimArgs]
    words = [*TINY, "--train_data", corpus, "--output_dir", tmp_path, "--cache_dir", tmp_path / "cache"]
    settings = parse(kinds, "x", argv=list(map(str, words)))
    run, text, _ = main.prepare(settings, CPU)
    model = run.denoiser.eval()
    from dataloader import collate

    sentences = [text.tokens[text.offsets[i] : text.offsets[i + 1]] for i in range(12)]
    monkeypatch.setattr(
        "diffusion_word_freq.stratified_timesteps", lambda n, total, generator=None: torch.full((n,), 40)
    )
    monkeypatch.setattr(
        "diffusion_word_freq.uniform", lambda where, generator=None: torch.where(where, 0.3, 1.0).double()
    )
    gradients = []
    for parts in ([sentences], [sentences[:5], sentences[5:]]):
        tokens = sum(map(len, sentences))
        for part in parts:
            (run.process.loss(model, collate(part, run.tokenizer)).total / tokens).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad(set_to_none=True)
    for whole, split in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, split, atol=1e-6, rtol=1e-4)


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
    return sum(checkpoint.load(str(folder), CPU).length_histogram)


def test_frequencies_from_a_file_drive_the_spindle(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "f.json").write_text('{"the": 10, "a": 5}')
    code, folder = train(monkeypatch, corpus, tmp_path, "--word_freq_file", tmp_path / "f.json")
    assert code == 0 and checkpoint.load(str(folder), CPU).token_counts.sum() == 15


def test_two_processes_give_the_curve_of_one(corpus: Path, tmp_path: Path) -> None:
    """torchrun with gloo: the same sentences per step, so the first validation figures agree up to noise draws."""
    base = [*TINY, "--train_data", corpus, "--cache_dir", tmp_path / "cache", "--valid_fraction", 0.1, "--max_steps", 2]
    base += ["--output_dir", tmp_path / "run", "--batch_size", 16]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [str(w) for w in [*launcher, ROOT / "main.py", *base]]
    done = subprocess.run(
        words, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "2 steps of 32 sentences" in done.stdout and done.stdout.count("trained 2 steps") == 1
    valid = records(tmp_path / "run", "valid")
    assert valid[-1]["num_sequences"] == sum(held_out(0.1)(s) for s in SENTENCES) > 10


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
        (["--optimizer", "sgd"], "invalid choice: 'sgd'"),
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


def test_another_runs_folder_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, corpus: Path, tmp_path: Path
) -> None:
    _, folder = train(monkeypatch, corpus, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    code, _ = train(monkeypatch, corpus, tmp_path)
    assert code == 2 and "holds another run (checkpoint, checkpoint-last, log.jsonl" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    code, _ = train(monkeypatch, corpus, tmp_path, "--overwrite", "true")
    assert code == 0 and len(records(folder, "settings")) == 1


def test_a_loss_that_is_not_finite_stops_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, corpus: Path, tmp_path: Path
) -> None:
    code, _ = train(monkeypatch, corpus, tmp_path, "--learning_rate", "1e30", "--max_grad_norm", 0, "--max_steps", 20)
    assert code == 2 and "the training loss is not finite; lower --learning_rate" in capsys.readouterr().err
