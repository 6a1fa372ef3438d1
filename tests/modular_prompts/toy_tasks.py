"""A small network and tasks about the sentences of tests/conftest.py, as folders."""

import json
import random
from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from modular_prompts.__main__ import main
from modular_prompts.readouts import Readout, Verbaliser
from modular_prompts.saved import SavedPrompts
from modular_prompts.tasks import Card, Row
from tests.conftest import OBJECTS, SUBJECTS, VERBS, call, write_jsonl
from tests.modular_prompts.test_readouts import readout

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TINY = ("--threads", 1, "--device", "cpu", "--precision", "fp32")
WORDS = {"animal": ("cat", "dog"), "verb": ("likes", "sees")}
"""Labels of two tasks: the word that occurs in the text."""


def make_network(folder: Path, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> Path:
    """Save a random BERT with its tokenizer."""
    torch.manual_seed(seed)
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), initializer_range=0.5, **SHAPE)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_task(folder: Path, words: tuple[str, ...], *, split: str = "pretrain") -> Path:
    """Write a task: which of these words is in the text?"""
    texts = [f"{s} {v} {o}." for s in SUBJECTS for v in VERBS for o in OBJECTS]
    by_word = [[{"text": text, "label": word} for text in texts if f" {word} " in text] for word in words]
    rows = [row for each in zip(*by_word, strict=False) for row in each]
    write_jsonl(folder / "train.jsonl", rows[: len(rows) * 3 // 4])
    write_jsonl(folder / "test.jsonl", rows[len(rows) * 3 // 4 :])
    card = {"type": "classification", "labels": list(words), "question": "which?", "split": split}
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def make_tasks(folder: Path) -> Path:
    """Write both tasks."""
    for name, words in WORDS.items():
        make_task(folder / name, words)
    return folder


def command(monkeypatch, name: str, *flags: object) -> int:  # noqa: ANN001
    """Run `python -m modular_prompts NAME FLAGS`; return the exit code."""
    return call(main, monkeypatch, name, *flags)


def few_rows() -> tuple[Card, list[Row]]:
    """Return rows of the first task."""
    words = WORDS["animal"]
    texts = [(f"{s} {v} {o}.", i) for v in VERBS for o in OBJECTS for i, s in enumerate(("the cat", "a dog"))]
    random.Random(0).shuffle(texts)
    return Card("animal", "classification", words, "which?"), [Row((text,), words, label) for text, label in texts]


def toy_readout(tokenizer: PreTrainedTokenizerBase, kind: type = Verbaliser) -> Readout:
    """Return a read-out of a random network."""
    return readout(kind, tokenizer)


def saved_of(pool, reader: Readout) -> SavedPrompts:  # noqa: ANN001
    """Return prompts of a pool, without tasks."""
    return SavedPrompts(pool, {}, "verbaliser", reader.placeholders, reader.max_length)
