"""released_mdlm.py, import_mdlm.py: released weights in, our checkpoint out, and nothing else is believed."""

import codecs
import json
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
from tokenizers import ByteLevelBPETokenizer
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

import compute_elbo
import predict
from checkpoint import import_mdlm
from checkpoint.folder import load_checkpoint
from checkpoint.released_mdlm import network_of, read_weights
from checkpoint.text_model import PROCESSES, build_process
from data.row_formats import RowFormat
from models.dit import DitNetwork
from tests.conftest import SENTENCES, call
from tests.models.test_dit import SMALL, network
from utils.errors import UserError

IDS = torch.tensor([[5, 0, 7, 4]])


def lightning(path: Path, made: DitNetwork, average: DitNetwork, extra: object = None) -> Path:
    """A checkpoint as Lightning writes it: settings that are objects of another package among the tensors."""
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
    """Would leave a mark if it were unpickled."""

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
    lightning(tmp_path / "e.ckpt", network(), network(), extra=re.compile("x"))  # harmless, but not expected
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
        ("a", "no plain tensors named backbone"),
        ("b", "no state_dict in it"),
        ("c", "give --averaged false"),
    ):
        with pytest.raises(UserError, match=message):
            read_weights(tmp_path / f"{name}.ckpt", averaged=True)
    weights = read_weights(lightning(tmp_path / "d.ckpt", network(), network()), averaged=False)
    huge = {**weights, "vocab_embed.embedding": torch.ones(1).expand(10**8, 1024)}
    torch.save({"state_dict": {f"backbone.{name}": tensor for name, tensor in huge.items()}}, tmp_path / "e.ckpt")
    with pytest.raises(UserError, match="vocab_embed.embedding is larger than what is stored of it"):
        read_weights(tmp_path / "e.ckpt", averaged=False)
    for change, message in (
        ({"blocks.99999999.x": torch.ones(1)}, "block 99999999 of 3: some are missing"),
        ({"blocks.1.norm1.weight": None}, "Missing key.*blocks.1.norm1.weight"),
        ({"blocks.1.extra": torch.ones(1)}, "Unexpected key.*blocks.1.extra"),
        ({"vocab_embed.embedding": torch.ones(3)}, "not the weights of MDLM's network"),
        ({"rotary_emb.inv_freq": None}, "give --n_heads"),
    ):
        changed = {name: tensor for name, tensor in {**weights, **change}.items() if tensor is not None}
        with pytest.raises(UserError, match=message):
            network_of(changed, model_length=32)


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A byte-level tokenizer without [MASK], as GPT-2's."""
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(SENTENCES, vocab_size=330, special_tokens=["<|endoftext|>"], show_progress=False)
    made = PreTrainedTokenizerFast(
        tokenizer_object=trainer._tokenizer,
        **dict.fromkeys(("eos_token", "bos_token", "unk_token"), "<|endoftext|>"),
    )
    made.save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def test_an_archive_that_unpacks_to_far_more_is_refused_before_it_is(tmp_path: Path) -> None:
    file = lightning(tmp_path / "a.ckpt", network(), network())
    read_weights(file, averaged=True)
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry))
        packed.writestr("a/data/bomb", bytes(50_000_000))
    with pytest.raises(UserError, match=r"b.ckpt: [0-9,]+ bytes that unpack to [0-9,]+; torch does not pack its files"):
        read_weights(tmp_path / "b.ckpt", averaged=True)


@pytest.mark.parametrize("process", ["mdlm", "sedd", "ar"])
def test_what_is_imported_all_scripts_take(monkeypatch, capsys, gpt2: Path, tmp_path: Path, process: str) -> None:
    size = json.loads((gpt2 / "tokenizer.json").read_text())["model"]["vocab"]
    made = network(causal=process == "ar", vocab_size=len(size) + 1)
    file = lightning(tmp_path / "a.ckpt", network(causal=process == "ar", vocab_size=len(size) + 1, seed=5), made)
    words = ["--source", file, "--tokenizer", gpt2, "--output_dir", tmp_path / "out", "--process", process]
    words += ["--max_length", 24, *(["--time_conditioning", "layerwise"] if process == "sedd" else [])]
    assert call(import_mdlm.main, monkeypatch, *words) == 0
    assert f"{sum(p.numel() for p in made.parameters()):,} parameters written" in capsys.readouterr().out
    run = load_checkpoint(str(tmp_path / "out"), torch.device("cpu"))
    torch.testing.assert_close(run.denoiser.network(IDS), made(IDS))
    assert run.process_name == process and run.tokenizer.mask_token_id == len(size)
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES[:5]) + "\n")
    words = ["--data", tmp_path / "text.txt", "--cache_dir", tmp_path / "cache"]
    assert call(compute_elbo.main, monkeypatch, "--checkpoint", tmp_path / "out", *words) == 0
    assert call(predict.main, monkeypatch, "--checkpoint", tmp_path / "out", "--num_samples", 2, "--num_steps", 0) == 0


def test_of_wrapped_rows_the_end_of_text_is_content_and_of_single_texts_it_is_not(gpt2: Path) -> None:
    """GPT-2's one special token is its unknown one, too; it must be drawn where texts follow each other."""
    tokenizer = import_mdlm.open_tokenizer(str(gpt2))
    size, end = len(tokenizer), tokenizer.eos_token_id
    for protocol, drawn in (("wrapped", True), ("unpadded", False), ("running", False)):
        settings = PROCESSES["mdlm"].settings()
        form = RowFormat(protocol)
        process = build_process(settings, torch.ones(size), tokenizer, size, form=form)
        assert bool(process.sampling_support[end].isfinite()) == bool(process.support[end].isfinite()) == drawn


def test_what_does_not_fit_is_one_line_and_nothing_is_written(monkeypatch, capsys, gpt2: Path, tmp_path: Path) -> None:
    file = lightning(tmp_path / "a.ckpt", network(), network())
    base = {"--source": file, "--tokenizer": gpt2, "--output_dir": tmp_path / "out"}
    for change, message in (
        ({"--source": tmp_path / "none.ckpt"}, "no such file or folder"),
        ({"--process": "ar"}, "process=ar: this network sees all"),
        ({"--process": "gan"}, "process"),
        ({"--process": "sedd"}, "a score depends on sigma; use layerwise"),
        ({}, f"the network {SMALL['vocab_size']}"),
        ({"--tokenizer": tmp_path / "nowhere"}, "nowhere"),
        ({"--output_dir": tmp_path}, "is not empty; give a new folder"),
    ):
        words = [word for pair in {**base, **change}.items() for word in pair]
        assert call(import_mdlm.main, monkeypatch, *words) == 2
        said = capsys.readouterr().err.strip()
        assert message in said and "\n" not in said and not (tmp_path / "out").exists()


class Hex:
    """Encoded again and again: each time twice as long, for ten bytes more."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __reduce__(self) -> tuple:
        return codecs.encode, (Hex(self.times - 1) if self.times else b"x", "hex")


class Buffer:
    """A buffer of two gigabytes in a few bytes."""

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
