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


def lightning(path: Path, model: DitNetwork, average: DitNetwork, extra: object = None) -> Path:
    """Write a checkpoint as Lightning does, with settings that are objects of another package."""
    package = {name: types.ModuleType(name) for name in ("omegaconf", "omegaconf.dictconfig", "omegaconf.base")}

    class DictConfig:
        def __init__(self) -> None:
            self.__dict__["_content"] = {"lr": 3e-4, "kind": dict}

    class ContainerMetadata:
        pass

    for kind, module in ((DictConfig, "omegaconf.dictconfig"), (ContainerMetadata, "omegaconf.base")):
        kind.__module__, kind.__qualname__ = module, kind.__name__
        setattr(package[module], kind.__name__, kind)
    sys.modules.update(package)
    try:
        settings = DictConfig()
        settings.__dict__["_metadata"] = ContainerMetadata()
        shadow = [parameter.detach().clone() for parameter in average.backbone.parameters()]
        content = {
            "state_dict": {f"backbone.{name}": tensor for name, tensor in model.backbone.state_dict().items()},
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


def test_averaged_weights_are_mapped_by_position(tmp_path: Path) -> None:
    model, average = network(seed=1), network(seed=2)
    file = lightning(tmp_path / "mdlm.ckpt", model, average)
    for averaged, expected in ((False, model), (True, average)):
        loaded = network_of(read_weights(file, averaged=averaged), model_length=32).eval()
        torch.testing.assert_close(loaded(IDS), expected(IDS))
        assert loaded.config.n_heads == 2 and loaded.config.cond_dim == 8 and loaded.config.n_blocks == 2


def test_a_hub_folder_of_a_causal_network_is_converted(tmp_path: Path) -> None:
    model = network(causal=True)
    model.save_pretrained(tmp_path / "a")
    loaded = network_of(read_weights(tmp_path / "a", averaged=True), model_length=32).eval()
    torch.testing.assert_close(loaded(IDS), model(IDS))
    assert loaded.config.causal


class Bomb:
    """Object that creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


def test_unexpected_objects_in_a_file_are_refused_and_never_built(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    file = lightning(tmp_path / "a.ckpt", network(), network(), extra=Bomb(mark))
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps(Bomb(mark)))
    (tmp_path / "c.ckpt").write_bytes(b"PK\3\4 no zip")
    (tmp_path / "d.ckpt").write_bytes(b"")
    lightning(tmp_path / "e.ckpt", network(), network(), extra=re.compile("x"))  # harmless, but of an unexpected type
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


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    file = lightning(tmp_path / "a.ckpt", network(), network())
    read_weights(file, averaged=True)
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry))
        packed.writestr("a/data/bomb", bytes(50_000_000))
    with pytest.raises(UserError, match=r"b.ckpt: [0-9,]+ bytes that unpack to [0-9,]+; give a file that torch"):
        read_weights(tmp_path / "b.ckpt", averaged=True)


class Hex:
    """String that is encoded repeatedly: ten bytes of pickle double its length."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __reduce__(self) -> tuple:
        return codecs.encode, (Hex(self.times - 1) if self.times else b"x", "hex")


class Buffer:
    """Buffer of two gigabytes, described in a few bytes."""

    def __reduce__(self) -> tuple:
        return bytearray, (2**31 - 1,)


@pytest.mark.parametrize("content", ["hex", "buffer", "meta", "sparse", "quantised", "integer", "average", "blocks"])
def test_oversized_and_malformed_contents_are_refused_quickly(tmp_path: Path, content: str) -> None:
    weights: dict = {f"backbone.{name}": tensor for name, tensor in network().backbone.state_dict().items()}
    extra: dict = {}
    if content in ("hex", "buffer"):
        extra = {"extra": Hex(40) if content == "hex" else Buffer()}
    elif content == "meta":
        weights["backbone.vocab_embed.embedding"] = torch.zeros(8_000_000, 128, device="meta")
    elif content == "sparse":
        weights["backbone.vocab_embed.embedding"] = torch.eye(5).to_sparse()
    elif content == "quantised":
        weights["backbone.x"] = torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)
    elif content == "integer":
        weights = {3: torch.zeros(2)}
    elif content == "average":
        extra = {"ema": {"shadow_params": [1, 2]}}
    else:
        weights |= {f"backbone.blocks.{i}.x": torch.zeros(1) for i in range(1200)}
    torch.save({"state_dict": weights, **extra}, tmp_path / "a.ckpt")
    began = time.monotonic()
    with pytest.raises(UserError):
        network_of(read_weights(tmp_path / "a.ckpt", averaged=True), model_length=16)
    assert time.monotonic() - began < 5


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(UserError, match="not a regular file"):
            read_weights(path, averaged=True)
