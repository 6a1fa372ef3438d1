"""saved.py: prompts come back with the same scores, and only for the network that they belong to."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Generator
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from modular_prompts.options import PoolShape
from modular_prompts.pool import PromptPool
from modular_prompts.readouts import Verbaliser
from modular_prompts.saved import SavedPrompts, load_prompts, save_prompts
from modular_prompts.tasks import Card
from modular_prompts.tuning import prompt_of
from tests.modular_prompts.test_readouts import CARD, ROWS, P, readout
from utils.errors import UserError


@pytest.fixture(params=[0, 5])
def folder(request, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Path:  # noqa: ANN001
    """Return saved prompts of a small network; of free modules, and of codes."""
    reader, generator = readout(Verbaliser, tokenizer), Generator().manual_seed(0)
    pool = PromptPool(PoolShape(4, P, 32, 2, request.param), generator)
    routers = {"my task": torch.randn(1, 4, generator=generator), "zh_ü": torch.randn(2, 4, generator=generator)}
    (tmp_path / "nobody's" / "bert").mkdir(parents=True)
    saved = SavedPrompts(
        pool, routers, "verbaliser", reader.placeholders, 40, dict.fromkeys(routers, Card("", "multiple-choice", ()))
    )
    save_prompts(tmp_path / "my prompts", saved, reader.denoiser, reader.tokenizer, str(tmp_path / "nobody's" / "bert"))
    scores = reader.examples((CARD, ROWS)).scores(torch.arange(3), prompt_of(pool, routers["zh_ü"])).detach()
    save_file({"scores": scores}, tmp_path / "scores.safetensors")
    return tmp_path / "my prompts"


def test_prompts_give_the_same_scores_in_a_fresh_wrapper(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    reader = readout(Verbaliser, tokenizer)
    prompts = load_prompts(folder, reader.denoiser, reader.tokenizer)
    assert sorted(prompts.routers) == ["my task", "zh_ü"] and prompts.placeholders == reader.placeholders
    scores = reader.examples((CARD, ROWS)).scores(torch.arange(3), prompt_of(prompts.pool, prompts.routers["zh_ü"]))
    assert torch.equal(scores, load_file(folder.parent / "scores.safetensors")["scores"])
    assert sorted(file.name for file in folder.iterdir()) == ["prompts.json", "prompts.safetensors"]
    assert str(folder.parent) not in (folder / "prompts.json").read_text()


def test_another_network_is_refused(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    reader = readout(Verbaliser, tokenizer)
    with torch.no_grad():
        next(reader.denoiser.network.parameters())[0, 0] += 1e-3
    with pytest.raises(UserError, match=r"they belong to the network .*bert \(SHA-256 .*this one has other weights"):
        load_prompts(folder, reader.denoiser, reader.tokenizer)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": {"num_modules": 5, "length": 3, "hidden_size": 32, "num_layers": 2}},
        {"shape": {"num_modules": 10**5, "length": 10**5, "hidden_size": 10**5, "num_layers": 10**5}},
        {"shape": {"num_modules": 10**9, "length": 10**9, "hidden_size": 32, "num_layers": 2}},
        {"shape": {"num_modules": 4.0, "length": 3, "hidden_size": 32, "num_layers": 2}},
        {"shape": {"num_modules": 4}},
        {"shape": []},
        {"tasks": {}},
        {"tasks": 3},
        {"tasks": {"my task": {"type": "generation"}, "zh_ü": {"type": "multiple-choice"}}},
        {"tasks": {"my task": {"type": ["pair"]}, "zh_ü": {"type": "multiple-choice"}}},
        {"max_length": "long"},
        {"network_sha256": None},
        {"readout": []},
        {"placeholders": "123"},
        {"placeholders": [1, 2]},
        {"placeholders": [1, 2, -3]},
        {"placeholders": [1, 2, 10**6]},
        {"format": 2},
    ],
)
def test_a_damaged_description_is_refused(folder: Path, tokenizer: PreTrainedTokenizerBase, change: dict) -> None:
    about = json.loads((folder / "prompts.json").read_text())
    (folder / "prompts.json").write_text(json.dumps({**about, **change}))
    with pytest.raises(UserError, match="prompts .*my prompts: "):
        load_prompts(folder, readout(Verbaliser, tokenizer).denoiser, tokenizer)


def test_damaged_and_missing_files_are_refused(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    denoiser = readout(Verbaliser, tokenizer).denoiser
    whole = (folder / "prompts.safetensors").read_bytes()
    for content in (b"", whole[:-4], whole[:40]):
        (folder / "prompts.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            load_prompts(folder, denoiser, tokenizer)
    with pytest.raises(UserError, match="no prompts.json there; give a folder of python -m modular_prompts"):
        load_prompts(folder.parent, denoiser, tokenizer)
