"""process=score without its output prior learns a small grammar in 1,200 steps.

Sentences like "the old cat sees the big dog by the sea" are tokenized by SentencePiece and packed into rows. The
thresholds are at or above the figures of the released modules on such a grammar: 0.55 of their Euler sampler's
sentences followed it.
"""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

import compute_elbo
import main
import predict
from benchmarks.grammar import GRAMMAR, SETTINGS, sentence, share_in_grammar, write_corpus
from checkpoint.folder import load_checkpoint
from data.batch import Batch
from data.tokenizers import encode
from tests.conftest import call


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, slow_setup: None) -> Path:
    """Return the folder of the trained model."""
    root = tmp_path_factory.mktemp("grammar")
    write_corpus(root)
    flags = [*SETTINGS, "-d", root, "-mdir", root / "run", "--cache_dir", root / "cache", "--max_steps", 1200]
    with pytest.MonkeyPatch.context() as patch:
        assert call(main.main, patch, *flags) == 0
    return root


def samples(folder: Path, monkeypatch, capsys, *flags: object) -> list[str]:
    fixed = ["--checkpoint", folder / "run", "--num_samples", 200, "--threads", 1]
    assert call(predict.main, monkeypatch, *fixed, *flags) == 0
    return capsys.readouterr().out.splitlines()


def test_the_grammar_accepts_its_sentences_and_rejects_another() -> None:
    assert all(GRAMMAR.fullmatch(sentence(random.Random(i))) for i in range(100))
    assert not GRAMMAR.fullmatch("the old cat sees the dog the")


def test_the_cross_entropy_rises_with_the_noise_level(folder: Path, monkeypatch, capsys) -> None:
    flags = ["--checkpoint", folder / "run", "--data", folder / "valid.txt", "--cache_dir", folder / "cache"]
    assert call(compute_elbo.main, monkeypatch, *flags, "--json", "true", "--threads", 1) == 0
    report = json.loads(capsys.readouterr().out)
    levels = [report[f"cross_entropy_at_{sigma}"] for sigma in (1, 2, 5, 10, 20, 50, 100)]
    assert levels[0] < 0.05 and levels[1] < 0.2 and levels[:5] == sorted(levels[:5])
    assert levels[-1] - levels[-2] < 0.02  # the highest noise level leaves no information
    assert levels[3] < 0.95 * levels[-1]  # the released sigma_max of 10 leaves some
    assert 0 < report["bits_per_token"] < 0.6 * report["unigram_bits_per_token"]


@pytest.mark.parametrize(
    ("sampler", "steps", "share"), [("renoise", 200, 0.98), ("euler", 50, 0.90), ("heun", 25, 0.90), ("sde", 100, 0.90)]
)
def test_samples_follow_the_grammar(sampler: str, steps: int, share: float, folder: Path, monkeypatch, capsys) -> None:
    texts = samples(folder, monkeypatch, capsys, "--sampler", sampler, "--num_steps", steps)
    assert share_in_grammar(texts) >= share
    assert len(set(texts)) > 120


def test_two_masked_tokens_are_filled_by_the_grammar(folder: Path, monkeypatch, capsys) -> None:
    template = "the old [MASK] sees [MASK] big dog by the sea"
    texts = samples(folder, monkeypatch, capsys, "--infill", template, "--sampler", "euler", "--num_steps", 50)
    assert share_in_grammar(texts) == 1 and len(set(texts)) >= 5
    assert all(re.fullmatch(r"the old \w+ sees the big dog by the sea", text) for text in texts)


def test_infilling_keeps_a_prefix(folder: Path, monkeypatch, capsys) -> None:
    template = "the old king" + " [MASK]" * 6
    texts = samples(folder, monkeypatch, capsys, "--infill", template, "--num_steps", 50)
    assert all(text.startswith("the old king ") for text in texts) and share_in_grammar(texts) >= 0.9


@torch.no_grad()
def test_the_learnt_warp_makes_the_cross_entropy_rise_linearly(folder: Path) -> None:
    run = load_checkpoint(str(folder / "run"), torch.device("cpu"))
    process, denoiser, shares = run.process, run.denoiser.eval(), torch.linspace(0, 1, 11)
    begin, end = [run.tokenizer.cls_token_id], [run.tokenizer.sep_token_id]
    texts = encode(run.tokenizer, (folder / "valid.txt").read_text().splitlines()[:100])["input_ids"]
    ids = pad_sequence([torch.tensor(begin + text + end) for text in texts], batch_first=True, padding_value=-1)
    inside = pad_sequence([torch.tensor([False, *[True] * len(text), False]) for text in texts], batch_first=True)
    batch, nats = Batch(ids.clamp(min=0), ids >= 0, inside), []
    for sigma in process.schedule(denoiser)(process.relative_levels(denoiser, shares)):
        level = sigma.float() * batch.noised
        hidden = process.noisy_forward(denoiser, batch, level, denoiser.table(), torch.Generator().manual_seed(0))
        nats.append(process.sentence_nats(denoiser, batch, hidden).sum() / inside.sum())
    assert nats[0] < 0.05 and nats[-1] > 1
    assert torch.corrcoef(torch.stack([shares, torch.stack(nats)]))[0, 1] ** 2 > 0.95
