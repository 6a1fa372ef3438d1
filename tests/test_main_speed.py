"""Settings of main.py for speed and memory: their effects, and unchanged losses."""

import re
from pathlib import Path

import torch

from checkpoint.folder import load_checkpoint
from diffusion.chunked_logits import checkpoint
from diffusion_word_freq import WordFreqDiffusion
from tests.test_main import CPU, train


def test_max_tokens_limits_the_slots_of_a_batch(monkeypatch, corpus: Path, tmp_path: Path, capsys) -> None:
    shapes = []
    original = WordFreqDiffusion.loss

    def recorded_loss(self, denoiser, batch, **kwargs):
        shapes.append(tuple(batch.input_ids.shape))
        return original(self, denoiser, batch, **kwargs)

    monkeypatch.setattr(WordFreqDiffusion, "loss", recorded_loss)
    code, _ = train(monkeypatch, corpus, tmp_path, "--max_tokens", 200, "--max_length", 32, "--max_steps", 12)
    assert code == 0 and "% of their slots held tokens" in capsys.readouterr().out
    assert all(rows * width <= 200 for rows, width in shapes) and len({rows for rows, _ in shapes}) > 1
    code, _ = train(monkeypatch, corpus, tmp_path, "--max_tokens", 20, "--max_length", 32, name="small")
    assert code == 2 and "max_tokens=20 is less than max_length" in capsys.readouterr().err


def test_packed_training_fills_rows_and_reports_the_share(monkeypatch, corpus: Path, tmp_path: Path, capsys) -> None:
    flags = ("--packing", "true", "--max_length", 32, "--batch_size", 8, "--max_steps", 12)
    code, _ = train(monkeypatch, corpus, tmp_path, *flags)
    output = capsys.readouterr().out
    share = float(re.search(r"batches +([\d.]+) % of their slots", output)[1])
    assert code == 0 and 90 < share < 98  # these lengths leave some slots empty
    per_step = float(re.search(r"12 steps of (\d+) sentences", output)[1])
    assert 8 * 32 / 15 < per_step < 8 * 32 / 5  # rows of 32 slots, sentences of 8 to 15
    flags = ("--packing", "true", "--max_length", 32, "--timestep", "token")
    assert train(monkeypatch, corpus, tmp_path, *flags, name="token")[0] == 2
    assert "packing=true and time_conditioning=token" in capsys.readouterr().err


def test_a_fused_loss_trains_to_the_same_weights(monkeypatch, corpus: Path, tmp_path: Path, capsys) -> None:
    weights, kinds = [], []
    original = checkpoint

    def recorded_checkpoint(terms, *rest, **settings):
        kinds.append(int("masked_lm" not in terms.__qualname__))
        return original(terms, *rest, **settings)

    monkeypatch.setattr("diffusion.chunked_logits.checkpoint", recorded_checkpoint)
    monkeypatch.setattr("diffusion.chunked_logits.MAX_LOGITS", 20 * 300)
    for fused in ("false", "true"):
        flags = ("--fused_loss", fused, "--warm_start", 0.5, "--max_steps", 8)
        code, folder = train(monkeypatch, corpus, tmp_path, *flags, name=fused)
        assert code == 0 and sorted(set(kinds)) == ([0, 1] if fused == "true" else [])  # 0: warm start, 1: process
        weights.append(load_checkpoint(folder / "checkpoint-last", CPU).denoiser.state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-4, rtol=1e-3, msg=name)
    code, _ = train(monkeypatch, corpus, tmp_path, "--fused_loss", "true", "--posterior", "released", name="released")
    assert code == 2 and "fused_loss=true excludes posterior=released" in capsys.readouterr().err


def test_attention_and_compilation_are_chosen_and_reported(monkeypatch, corpus: Path, tmp_path: Path, capsys) -> None:
    compiled = []
    monkeypatch.setattr("models.attention.compile_network", lambda denoiser, device: compiled.append(device))
    for precision, attention in (("fp32", "sdpa"), ("bf16", "eager")):
        flags = ("--precision", precision, "--compile", "true", "--max_steps", 1)
        assert train(monkeypatch, corpus, tmp_path, *flags, name=precision)[0] == 0
        assert f"on cpu in {precision}, {attention} attention" in capsys.readouterr().out
    assert compiled == [CPU, CPU]
