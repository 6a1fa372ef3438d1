"""import_mdlm.py: released weights become a checkpoint that every script loads."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

import compute_elbo
import predict
from checkpoint import import_mdlm
from checkpoint.folder import load_checkpoint
from checkpoint.model_parts import PROCESSES, build_process
from data.options import TextFormat
from tests.checkpoint.test_released_mdlm import IDS, lightning
from tests.conftest import SENTENCES, call
from tests.models.test_dit import SMALL, network


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """Return the folder of a byte-level tokenizer without [MASK], like GPT-2's."""
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(SENTENCES, vocab_size=330, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trainer._tokenizer,
        **dict.fromkeys(("eos_token", "bos_token", "unk_token"), "<|endoftext|>"),
    )
    tokenizer.save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


@pytest.mark.parametrize("process", ["mdlm", "sedd", "ar"])
def test_imported_weights_work_in_all_scripts(monkeypatch, capsys, gpt2: Path, tmp_path: Path, process: str) -> None:
    vocab = json.loads((gpt2 / "tokenizer.json").read_text())["model"]["vocab"]
    expected = network(causal=process == "ar", vocab_size=len(vocab) + 1)
    file = lightning(tmp_path / "a.ckpt", network(causal=process == "ar", vocab_size=len(vocab) + 1, seed=5), expected)
    flags = ["--source", file, "--tokenizer", gpt2, "--output_dir", tmp_path / "out", "--process", process]
    flags += ["--max_length", 24, *(["--time_conditioning", "layerwise"] if process == "sedd" else [])]
    assert call(import_mdlm.main, monkeypatch, *flags) == 0
    assert f"{sum(p.numel() for p in expected.parameters()):,} parameters written" in capsys.readouterr().out
    run = load_checkpoint(str(tmp_path / "out"), torch.device("cpu"))
    torch.testing.assert_close(run.denoiser.network(IDS), expected(IDS))
    assert run.process_name == process and run.tokenizer.mask_token_id == len(vocab)
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES[:5]) + "\n")
    flags = ["--data", tmp_path / "text.txt", "--cache_dir", tmp_path / "cache"]
    assert call(compute_elbo.main, monkeypatch, "--checkpoint", tmp_path / "out", *flags) == 0
    assert call(predict.main, monkeypatch, "--checkpoint", tmp_path / "out", "--num_samples", 2, "--num_steps", 0) == 0


def test_the_end_of_text_is_drawn_and_scored_in_wrapped_rows_only(gpt2: Path) -> None:
    """GPT-2's only special token is its unknown token too. It must be drawn where texts follow each other."""
    tokenizer = import_mdlm.open_tokenizer(str(gpt2))
    size, end = len(tokenizer), tokenizer.eos_token_id
    for name, drawn in (("wrapped", True), ("unpadded", False), ("running", False)):
        settings = PROCESSES["mdlm"].settings()
        row_format = TextFormat(name)
        process = build_process(settings, torch.ones(size), tokenizer, size, text_format=row_format)
        assert bool(process.sampling_support[end].isfinite()) == bool(process.support[end].isfinite()) == drawn


def test_invalid_imports_are_one_line_errors_and_write_nothing(monkeypatch, capsys, gpt2: Path, tmp_path: Path) -> None:
    file = lightning(tmp_path / "a.ckpt", network(), network())
    base = {"--source": file, "--tokenizer": gpt2, "--output_dir": tmp_path / "out"}
    for change, message in (
        ({"--source": tmp_path / "none.ckpt"}, "no such file or folder"),
        ({"--process": "ar"}, "process=ar: the network has bidirectional attention"),
        ({"--process": "gan"}, "process"),
        ({"--process": "sedd"}, "a score depends on sigma; use layerwise"),
        ({}, f"more than the network's {SMALL['vocab_size']}"),
        ({"--tokenizer": tmp_path / "nowhere"}, "nowhere"),
        ({"--output_dir": tmp_path}, "is not empty; give a new folder"),
    ):
        flags = [item for pair in {**base, **change}.items() for item in pair]
        assert call(import_mdlm.main, monkeypatch, *flags) == 2
        stderr = capsys.readouterr().err.strip()
        assert message in stderr and "\n" not in stderr and not (tmp_path / "out").exists()
