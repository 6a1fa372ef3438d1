"""released_mdlm.py, import_mdlm.py: conversion of released weights; other contents are refused."""

import codecs
import os
import pickle
import re
import sys
import time
import types
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import BertTokenizerFast

from checkpoint.released_mdlm import network_of, read_weights
from models.dit import DitNetwork
from tests.models.test_dit import network
from utils.errors import UserError

IDS = torch.tensor([[5, 0, 7, 4]])


def lightning(path: Path, made: DitNetwork, average: DitNetwork, extra: object = None) -> Path:
    """Write a checkpoint in Lightning's form, with settings that are objects of another package."""
    package = {name: types.ModuleType(name) for name in ("omegaconf", "omegaconf.dictconfig", "omegaconf.base")}

    class DictConfig:
        def __init__(self) -> None:
            self.__dict__["_content"] = {"lr": 3e-4, "kind": dict}

    class ContainerMetadata:
        pass

    for kind, where in ((DictConfig, "omegaconf.dictconfig"), (ContainerMetadata, "omegaconf.base")):
        kind.__module__, kind.__qualname__ = where, kind.__name__
        setattr(package[where], kind.__name__, kind)
    sys.modules.update(package)
    try:
        settings = DictConfig()
        settings.__dict__["_metadata"] = ContainerMetadata()
        shadow = [parameter.detach().clone() for parameter in average.backbone.parameters()]
        content = {
            "state_dict": {f"backbone.{name}": tensor for name, tensor in made.backbone.state_dict().items()},
            "ema": {"decay": 0.9999, "num_updates": 7, "shadow_params": shadow},
            "hyper_parameters": {
                "config": settings,
                "tokenizer": BertTokenizerFast(vocab={"[UNK]": 0}),
                "extra": extra,
            },
            "epoch": 3,
        }
        torch.save(content, path)
    finally:
        for name in package:
            del sys.modules[name]
    return path


def test_the_average_is_mapped_by_position(tmp_path: Path) -> None:
    made, average = network(seed=1), network(seed=2)
    file = lightning(tmp_path / "mdlm.ckpt", made, average)
    for averaged, expected in ((False, made), (True, average)):
        found = network_of(read_weights(file, averaged=averaged), model_length=32).eval()
        torch.testing.assert_close(found(IDS), expected(IDS))
        assert found.config.n_heads == 2 and found.config.cond_dim == 8 and found.config.n_blocks == 2


def test_a_folder_of_the_hub_and_a_causal_network(tmp_path: Path) -> None:
    made = network(causal=True)
    made.save_pretrained(tmp_path / "a")
    found = network_of(read_weights(tmp_path / "a", averaged=True), model_length=32).eval()
    torch.testing.assert_close(found(IDS), made(IDS))
    assert found.config.causal


class Bomb:
    """Object that creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


def test_nothing_else_in_the_file_is_built(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    file = lightning(tmp_path / "a.ckpt", network(), network(), extra=Bomb(mark))
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps(Bomb(mark)))
    (tmp_path / "c.ckpt").write_bytes(b"PK\3\4 no zip")
    (tmp_path / "d.ckpt").write_bytes(b"")
    lightning(tmp_path / "e.ckpt", network(), network(), extra=re.compile("x"))  # harmless, but of no expected type
    for name in "abcde":
        with pytest.raises(UserError, match=f"{name}.ckpt: "):
            read_weights(tmp_path / f"{name}.ckpt", averaged=True)
    assert not mark.exists() and file.exists()


def test_other_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"model.weight": torch.ones(2)}}, tmp_path / "a.ckpt")
    torch.save({"weights": 1}, tmp_path / "b.ckpt")
    wider = network(hidden_dim=32)
    lightning(tmp_path / "c.ckpt", network(), wider)
    for name, message in (
        ("a", "it has no plain tensors named backbone"),
        ("b", "it has no state_dict"),
        ("c", "give --averaged false"),
    ):
        with pytest.raises(UserError, match=message):
            read_weights(tmp_path / f"{name}.ckpt", averaged=True)
    weights = read_weights(lightning(tmp_path / "d.ckpt", network(), network()), averaged=False)
    huge = {**weights, "vocab_embed.embedding": torch.ones(1).expand(10**8, 1024)}
    torch.save({"state_dict": {f"backbone.{name}": tensor for name, tensor in huge.items()}}, tmp_path / "e.ckpt")
    with pytest.raises(UserError, match="vocab_embed.embedding is larger than its stored data"):
        read_weights(tmp_path / "e.ckpt", averaged=False)
    for change, message in (
        ({"blocks.99999999.x": torch.ones(1)}, "blocks up to 99999999, but only 3 of them"),
        ({"blocks.1.norm1.weight": None}, "Missing key.*blocks.1.norm1.weight"),
        ({"blocks.1.extra": torch.ones(1)}, "Unexpected key.*blocks.1.extra"),
        ({"vocab_embed.embedding": torch.ones(3)}, "not the weights of MDLM's network"),
        ({"rotary_emb.inv_freq": None}, "give --n_heads"),
    ):
        changed = {name: tensor for name, tensor in {**weights, **change}.items() if tensor is not None}
        with pytest.raises(UserError, match=message):
            network_of(changed, model_length=32)


def test_an_archive_that_unpacks_to_far_more_is_refused_before_it_is(tmp_path: Path) -> None:
    file = lightning(tmp_path / "a.ckpt", network(), network())
    read_weights(file, averaged=True)
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry))
        packed.writestr("a/data/bomb", bytes(50_000_000))
    with pytest.raises(UserError, match=r"b.ckpt: [0-9,]+ bytes that unpack to [0-9,]+; give a file that torch"):
        read_weights(tmp_path / "b.ckpt", averaged=True)


class Hex:
    """String encoded repeatedly; each encoding doubles its length for ten bytes of pickle."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __reduce__(self) -> tuple:
        return codecs.encode, (Hex(self.times - 1) if self.times else b"x", "hex")


class Buffer:
    """Buffer of two gigabytes, described in a few bytes."""

    def __reduce__(self) -> tuple:
        return bytearray, (2**31 - 1,)


@pytest.mark.parametrize("what", ["hex", "buffer", "meta", "sparse", "quantised", "integer", "average", "blocks"])
def test_what_makes_much_of_little_is_refused(tmp_path: Path, what: str) -> None:
    weights: dict = {f"backbone.{name}": tensor for name, tensor in network().backbone.state_dict().items()}
    extra: dict = {}
    if what in ("hex", "buffer"):
        extra = {"extra": Hex(40) if what == "hex" else Buffer()}
    elif what == "meta":
        weights["backbone.vocab_embed.embedding"] = torch.zeros(8_000_000, 128, device="meta")
    elif what == "sparse":
        weights["backbone.vocab_embed.embedding"] = torch.eye(5).to_sparse()
    elif what == "quantised":
        weights["backbone.x"] = torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)
    elif what == "integer":
        weights = {3: torch.zeros(2)}
    elif what == "average":
        extra = {"ema": {"shadow_params": [1, 2]}}
    else:
        weights |= {f"backbone.blocks.{i}.x": torch.zeros(1) for i in range(1200)}
    torch.save({"state_dict": weights, **extra}, tmp_path / "a.ckpt")
    began = time.monotonic()
    with pytest.raises(UserError):
        network_of(read_weights(tmp_path / "a.ckpt", averaged=True), model_length=16)
    assert time.monotonic() - began < 5


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(UserError, match="not a regular file"):
            read_weights(path, averaged=True)
