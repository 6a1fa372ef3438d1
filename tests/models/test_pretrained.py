"""pretrained.py: code in a folder never runs, whatever stdin answers; sizes are checked before a network is built."""

import ast
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    MPNetConfig,
)

import compute_elbo
import compute_metric
import main
import predict
import word_freq
from checkpoint import import_mdlm
from models.networks import PRESETS, load_network
from models.pretrained import attention_of, make_network, read_config, read_network
from tests.conftest import SENTENCES, TINY, call
from tests.test_imports import EVERY_FILE, ROOT
from utils.errors import UserError

EVIL = """
from pathlib import Path
Path(__file__).with_name("executed").touch()
Path({mark!r}).touch()
class Evil:
    pass
"""
SMALL = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
MAP = {name: "evil.Evil" for name in ("AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM")}


def change(file: Path, **changes: object) -> None:
    """Set entries of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def hostile(folder: Path, mark: Path, **config: object) -> None:
    """Write a program into a folder, and its name wherever transformers looks for code."""
    (folder / "evil.py").write_text(EVIL.format(mark=str(mark)))
    change(folder / "config.json", auto_map=MAP, **config)
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})


@pytest.fixture
def yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer y to every question on stdin."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")


def commands(folder: Path, corpus: Path, out: Path) -> dict[str, tuple[object, list]]:
    """Commands that take a model folder, by name."""
    text = ["--train_data", corpus, "--cache_dir", out / "cache", "--vocab_size", 0, "--config_overrides", ""]
    return {
        "predict": (predict, ["--checkpoint", folder, "--num_samples", 1]),
        "score": (compute_elbo, ["--checkpoint", folder, "--data", corpus, "--limit", 1, "--cache_dir", out / "cache"]),
        "count": (word_freq, ["--train_data", corpus, "--tokenizer", folder, "--output", out / "counts.json"]),
        "train": (main, [*TINY, *text, "--output_dir", out / "run", "--max_steps", 1, "--model_name_or_path", folder,
                         "--tokenizer", folder]),
        "go on": (main, [*TINY, *text, "--output_dir", out / "run", "--max_steps", 1, "--model_name_or_path", folder,
                         "--from_scratch", "false", "--tokenizer", folder]),
        "judge": (compute_metric, ["--predictions", corpus, "--references", corpus, "--judge_model", folder]),
        "mauve": (compute_metric, ["--predictions", corpus, "--references", corpus, "--mauve_model", folder]),
        "import": (import_mdlm, ["--source", folder, "--tokenizer", folder, "--output_dir", out / "imported"]),
    }  # fmt: skip


@pytest.mark.parametrize("model_type", ["unheard_of", "modernbert"])
@pytest.mark.parametrize("name", list(commands(Path(), Path(), Path())))
def test_no_code_of_a_folder_is_run(
    monkeypatch, capfd, yes, tmp_path: Path, trained: Path, corpus: Path, name: str, model_type: str
) -> None:
    folder, mark = tmp_path / "given", tmp_path / "executed"
    shutil.copytree(trained / "checkpoint", folder)
    hostile(folder, mark, model_type=model_type)
    if name in ("judge", "mauve"):
        (folder / "process.json").unlink()
    corpus.write_text("\n".join(SENTENCES[:40]) + "\n")
    script, flags = commands(folder, corpus, tmp_path / "out")[name]
    began = time.monotonic()
    code = call(script.main, monkeypatch, *flags)
    stderr = capfd.readouterr().err
    assert not mark.exists() and not list(tmp_path.rglob("executed")), name
    supported = model_type == "modernbert" or name == "count"  # transformers implements this network, or none is needed
    assert "Traceback" not in stderr and code in ((0, 2) if supported else (2,)), stderr
    assert code == 0 or model_type != "unheard_of" or "which is never run" in stderr or name == "import"
    assert time.monotonic() - began < 15  # transformers waits 15 s for an answer


def test_a_kernel_that_a_configuration_names_is_not_fetched(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "checkpoint", tmp_path / "given")
    for name in ("_attn_implementation", "attn_implementation"):
        change(tmp_path / "given" / "config.json", **{name: "somebody/kernel"})
    assert load_network(str(tmp_path / "given")).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("file", EVERY_FILE, ids=lambda f: str(f.relative_to(ROOT)))
def test_models_are_loaded_in_one_module_and_never_with_remote_code(file: Path) -> None:
    loaders = {"from_pretrained", "from_config", "from_dict", "from_json_file", "get_class_from_dynamic_module"}
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in loaders and (file.parent.name, file.name) in (
            ("models", "pretrained.py"),
            ("data", "tokenizers.py"),
        ):
            assert given["trust_remote_code"].value is False
            called = node.func.value.id
            assert called in ("AutoConfig", "AutoTokenizer") or "attn_implementation" in given
        elif not {"tests", "benchmarks"} & set(file.parts):
            assert name not in loaders, f"{file.name}:{node.lineno}"
        assert "allow_all_kernels" not in given and "use_kernels" not in given


OUT_OF_BOUNDS: dict[str, tuple[dict, str]] = {
    "layers": ({"num_hidden_layers": 10**6}, "num_hidden_layers=1000000; it must be at most 1,000"),
    "labels": ({"num_labels": 10**9}, "num_labels=1000000000; it must be at most"),
    "vocabulary": ({"vocab_size": 10**12}, "vocab_size=1000000000000; it must be at most"),
    "width": ({"hidden_size": 10**10}, "hidden_size=10000000000; it must be at most"),
    "deep inside": ({"text_config": {"a": [{"num_layers": 2**40}]}}, "num_layers=1099511627776; it must be at most"),
    "nan": ({"hidden_dropout_prob": float("nan")}, "hidden_dropout_prob=nan; it must be a finite number"),
    "infinity": ({"layer_norm_eps": float("inf")}, "layer_norm_eps=inf; it must be a finite number"),
    "tuples": ({"return_dict": False}, "return_dict=false"),
    "quantised": ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
    "more than it holds": ({"hidden_size": 4096, "intermediate_size": 16384}, "config.json describes .* weights hold"),
    "wider than it holds": ({"max_position_embeddings": 2**22}, "config.json describes .* weights hold"),
}


@pytest.mark.parametrize("name", OUT_OF_BOUNDS)
def test_a_configuration_out_of_bounds_is_refused_before_it_is_built(tmp_path: Path, name: str) -> None:
    AutoModelForMaskedLM.from_config(BertConfig(**SMALL)).save_pretrained(tmp_path)
    changes, message = OUT_OF_BOUNDS[name]
    change(tmp_path / "config.json", **changes)
    began = time.monotonic()
    with pytest.raises(UserError, match=message):
        load_network(str(tmp_path))
    assert time.monotonic() - began < 10


def test_a_fresh_network_larger_than_the_machine_is_refused() -> None:
    config = BertConfig(**{**SMALL, "hidden_size": 2**17, "intermediate_size": 2**19, "num_hidden_layers": 40})
    with pytest.raises(UserError, match="its weights take [0-9,.]+ GiB and this machine has"):
        make_network(AutoModelForMaskedLM, config)


@pytest.mark.parametrize("name", ["bert-small", "modernbert-small", "ddit-tiny", "score-lm-small"])
def test_the_size_check_changes_no_weight(name: str) -> None:
    """The size check draws no random numbers, so the weights of a seed do not change."""
    kind, settings = PRESETS[name]
    special = dict.fromkeys(("pad_token_id", "cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id"), 1)
    config = kind(**{**settings, **special, "vocab_size": 60})
    weights = []
    for make in (lambda: AutoModelForMaskedLM.from_config(config), lambda: make_network(AutoModelForMaskedLM, config)):
        torch.manual_seed(3)
        weights.append(make().state_dict())
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(one, weights[1][name]) for name, one in weights[0].items())


# ---- loaded and missing tensors --------------------------------------------------------------------------------------


def renamed(weights: dict) -> dict:
    """Rename every key."""
    return {f"model.{name.removeprefix('bert.')}": tensor for name, tensor in weights.items()}


def without(part: str) -> Callable[[dict], dict]:
    """Remove the tensors whose name contains `part`."""
    return lambda weights: {name: tensor for name, tensor in weights.items() if part not in name}


def narrowed(weights: dict) -> dict:
    """Change the shape of one encoder tensor."""
    return {name: t[:8].contiguous() if "0.output.dense.weight" in name else t for name, t in weights.items()}


DAMAGED: dict[str, tuple[Callable[[dict], dict], str]] = {
    "renamed": (renamed, r"its weights lack \d+ of the \d+ tensors of BertForMaskedLM, e.g. bert.embeddings"),
    "a layer": (without("layer.1."), r"lack 16 of the \d+ tensors of BertForMaskedLM, e.g. bert.encoder.layer.1."),
    "one tensor": (without("layer.0.attention.self.key.bias"), "lack 1 of the .*layer.0.attention.self.key.bias"),
    "a shape": (narrowed, "lack 1 of the .*layer.0.output.dense.weight"),
    "positions": (without("position_embeddings"), "lack 1 of the .*position_embeddings"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_missing_encoder_tensors_are_refused_not_initialised(tmp_path: Path, name: str) -> None:
    AutoModelForMaskedLM.from_config(BertConfig(**SMALL)).save_pretrained(tmp_path)
    damage, message = DAMAGED[name]
    file = tmp_path / "model.safetensors"
    save_file(damage(load_file(file)), file, {"format": "pt"})
    with pytest.raises(UserError, match=message):
        load_network(str(tmp_path))


def test_the_loaded_tensors_are_reported_in_the_saved_configuration(tmp_path: Path) -> None:
    BertModel(BertConfig(**SMALL)).save_pretrained(tmp_path / "bare")
    AutoModelForMaskedLM.from_config(BertConfig(**SMALL)).save_pretrained(tmp_path / "whole")
    bare, whole = (load_network(str(tmp_path / name)) for name in ("bare", "whole"))
    assert whole.config.initialized_from == "44 of 44 tensors from whole"
    report = bare.config.initialized_from
    assert report.startswith("38 of 44 tensors from bare; 6 of the head are new and random (e.g. cls.")
    assert report.endswith(", tied to the embeddings; 2 tensors of the file are unused")
    bare.save_pretrained(tmp_path / "again")
    assert read_config(str(tmp_path / "again")).initialized_from == report


def test_a_folder_with_a_pickle_alone_is_refused_with_a_remedy(tmp_path: Path) -> None:
    stock = AutoModelForMaskedLM.from_config(BertConfig(**SMALL))
    stock.config.save_pretrained(tmp_path)
    torch.save(stock.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickle \(pytorch_model.bin\).* never opened; if you trust it, convert it"):
        load_network(str(tmp_path))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", [0, 7, -1])
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, value: float, which: int) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    name, tensor = list(model.named_parameters())[which]
    with torch.no_grad():
        tensor.view(-1)[-1] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"1 of the {tensor.numel():,} weights in {name} are not finite"):
        read_network(AutoModelForCausalLM, str(tmp_path))


def test_the_attention_is_one_that_the_class_supports() -> None:
    assert attention_of(AutoModelForMaskedLM, BertConfig(**SMALL)) == "sdpa"
    assert attention_of(AutoModelForMaskedLM, MPNetConfig(**SMALL)) == "eager"


# ---- files that an index or a configuration names --------------------------------------------------------------------


@pytest.mark.parametrize("named", ["pytorch_model.bin", "../outside.safetensors", "shard.safetensors", 3, ""])
def test_an_index_may_only_name_safetensors_of_its_folder(tmp_path: Path, named: object) -> None:
    """transformers would open a pickle, or a file outside the folder."""
    folder = tmp_path / "given"
    stock = AutoModelForMaskedLM.from_config(BertConfig(**SMALL))
    stock.save_pretrained(folder)
    torch.save(stock.state_dict(), folder / "pytorch_model.bin")
    for name in ("../outside.safetensors", "shard.safetensors"):
        shutil.copy(folder / "model.safetensors", folder / name)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(stock.state_dict(), named)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="index.json names .*; weights are read from model"):
        load_network(str(folder))


def test_sharded_weights_are_read(tmp_path: Path) -> None:
    stock = AutoModelForMaskedLM.from_config(BertConfig(**SMALL))
    stock.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded = load_network(str(tmp_path))
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in stock.state_dict().items())


def test_a_configuration_must_not_name_the_weights(tmp_path: Path) -> None:
    AutoModelForMaskedLM.from_config(BertConfig(**SMALL)).save_pretrained(tmp_path)
    change(tmp_path / "config.json", transformers_weights="shard.safetensors")
    with pytest.raises(UserError, match="config.json sets transformers_weights"):
        load_network(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (GPT2Config, {"n_layer": 10**6}, "n_layer=1000000; it must be at most 1,000"),
        (GPT2Config, {"n_positions": 2**26}, "config.json describes .* belong together"),
        (BertConfig, {"num_labels": 6 * 10**7}, "num_labels=60000000; it must be at most 100,000"),
        (BertConfig, {"id2label": {str(i): "x" for i in range(200_000)}}, "200,000 entries in id2label"),
    ],
)
def test_further_configurations_out_of_bounds_are_refused(
    tmp_path: Path, kind: type, changes: dict, message: str
) -> None:
    gpt2 = GPT2Config(vocab_size=60, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(gpt2) if kind is GPT2Config else AutoModelForMaskedLM.from_config(BertConfig(**SMALL))
    model.save_pretrained(tmp_path)
    change(tmp_path / "config.json", **changes)
    began = time.monotonic()
    with pytest.raises(UserError, match=message):
        load_network(str(tmp_path), causal=kind is GPT2Config)
    assert time.monotonic() - began < 10


def test_a_pipe_in_place_of_weights_is_refused(tmp_path: Path) -> None:
    AutoModelForMaskedLM.from_config(BertConfig(**SMALL)).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="not a regular file"):
        load_network(str(tmp_path))
