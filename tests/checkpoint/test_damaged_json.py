"""A checkpoint with any JSON entry changed is either refused in one line or works."""

import itertools
import json
import math
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from checkpoint.folder import load_checkpoint
from checkpoint.model_parts import ModelParts
from checkpoint.requests import SampleRequest
from checkpoint.sampling import sample_rows
from data.batch import Batch
from data.tokenizers import encode, load_tokenizer
from data.word_counts import read_word_freq
from diffusion.options import SampleArgs
from models.factory import make_denoiser
from models.networks import load_network
from utils.errors import UserError

VALUES = [None, [], {}, "x", "", -1, 0, 3, 10**9, 10**18, 0.5, math.nan, math.inf, True, False, ["a"], [[1]], {"a": 1}]
CPU = torch.device("cpu")
MANY = 20
"""Number of entries above which three represent a uniform list or object."""
EntryPath = tuple[str | int, ...]


def entry_paths(value: object, path: EntryPath = ()) -> Iterator[EntryPath]:
    """Yield the path of every entry of a JSON value, at any depth."""
    if path:
        yield path
    entries = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, entry in entries if len(entries) < MANY or len(path) < 1 else [*entries[:2], entries[-1]]:
        yield from entry_paths(entry, (*path, key))


def changed(whole: object, path: EntryPath, value: object) -> object:
    """Return a copy with the entry at a path replaced, or removed if the value is REMOVED."""
    copy = json.loads(json.dumps(whole))
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    if value is REMOVED:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return copy


REMOVED = object()


def variants(file: Path, each: int) -> Iterator[str]:
    """Yield the file's content with each entry changed `each` times; all values occur over all entries."""
    whole, values = json.loads(file.read_text()), itertools.cycle([*VALUES, REMOVED])
    for path in entry_paths(whole):
        for value in itertools.islice(values, each):
            yield json.dumps(changed(whole, path, value))


@pytest.fixture
def folder(tmp_path: Path, trained: Path) -> Path:
    shutil.copytree(trained / "checkpoint", tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def use(run: ModelParts) -> None:
    """Sample a text and compute the bound of one sentence."""
    with torch.no_grad():
        sample_rows(run, SampleRequest(), SampleArgs(num_steps=4))
        ids = torch.tensor([[run.tokenizer.cls_token_id, 7, 8, run.tokenizer.sep_token_id]])
        attention_mask = torch.ones_like(ids, dtype=torch.bool)
        targets = torch.tensor([[False, True, True, False]])
        bound = run.process.bound(run.denoiser, Batch(ids, attention_mask, targets), 2).total
    assert bound.isfinite().all()


def test_a_damaged_process_json_is_refused_or_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, tokenizer = load_network(str(folder), whole=True), load_tokenizer(str(folder))
    monkeypatch.setattr("checkpoint.folder.load_network", lambda *_, **__: network)
    monkeypatch.setattr("checkpoint.folder.load_tokenizer", lambda *_: tokenizer)
    refused = used = 0
    for content in variants(folder / "process.json", len(VALUES) + 1):
        (folder / "process.json").write_text(content)
        try:
            run = load_checkpoint(str(folder), CPU)
        except UserError as error:
            assert str(folder) in str(error) and len(str(error)) < 700, content
            refused += 1
        else:
            used += 1
            if used % 10 == 0:
                use(run)
    assert refused > 300 and used > 30


def test_a_damaged_config_json_is_refused_or_works(folder: Path) -> None:
    refused = 0
    for content in variants(folder / "config.json", 7):
        (folder / "config.json").write_text(content)
        try:
            network = load_network(str(folder), whole=True)
            make_denoiser(network, "none", 64)
        except UserError as error:
            refused += 1
            assert len(str(error)) < 700, content
    assert refused > 20


@pytest.mark.parametrize(("name", "each"), [("tokenizer_config.json", 19), ("tokenizer.json", 8)])
def test_damaged_tokenizer_files_are_refused_or_work(folder: Path, name: str, each: int) -> None:
    refused = 0
    for content in variants(folder / name, each):
        (folder / name).write_text(content)
        try:
            tokenizer = load_tokenizer(str(folder))
            with warnings.catch_warnings(action="ignore"):
                encode(tokenizer, ["the cat sees [MASK] <s>"], note=False)
        except UserError as error:
            refused += 1
            assert len(str(error)) < 700, content
    assert refused > 20


def test_a_damaged_word_freq_json_is_refused_or_works(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    for content in variants(folder / "word_freq.json", len(VALUES) + 1):
        (folder / "word_freq.json").write_text(content)
        try:
            counts = read_word_freq(folder / "word_freq.json", tokenizer, 200)
        except UserError as error:
            assert len(str(error)) < 700
        else:
            assert counts.sum() > 0
