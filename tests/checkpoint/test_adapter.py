"""adapter.py: training with LoRA adapters, and checkpoints that hold only these."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

import main
from checkpoint import TextModel
from checkpoint.adapter import fingerprint
from tests.conftest import SENTENCES, TINY, call
from tests.test_main import records
from training.clock import StopRequest
from utils.errors import UserError

peft = pytest.importorskip("peft")
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
START = TINY.index("--num_steps")
FLAGS = [*TINY[START : TINY.index("--config_overrides")], *TINY[TINY.index("--batch_size") :], "--lora_rank", 4]
FLAGS += ["--max_steps", 10, "--save_every", 5, "--eval_steps", 5, "--learning_rate", 1e-2]


@pytest.fixture
def base(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Return a folder with a small pretrained BERT, whose weights are random."""
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **SHAPE)).save_pretrained(tmp_path / "my bert")
    tokenizer.save_pretrained(tmp_path / "my bert")
    return tmp_path / "my bert"


def train(monkeypatch: pytest.MonkeyPatch, base: Path, corpus: Path, *flags: object, name: str = "run") -> Path:
    folder = corpus.parent / name
    where = ["--train_data", corpus, "--output_dir", folder, "--cache_dir", corpus.parent / "cache"]
    assert call(main.main, monkeypatch, "--model_name_or_path", base, *where, *FLAGS, *flags) == 0
    return folder


def weights(folder: Path, name: str = "adapter/adapter_model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint-last" / name)


def test_adapters_learn_and_the_network_stays_as_it_was(
    monkeypatch: pytest.MonkeyPatch, base: Path, corpus: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = train(monkeypatch, base, corpus, "--max_steps", 40, "--logging_steps", 10)
    output = capsys.readouterr().out
    # two layers, each with query, key, value, output [32, 32] and the two maps [64, 32] of the feed-forward network
    trained = 2 * 4 * (4 * 64 + 2 * 96)
    assert f"M parameters, of which {trained:,} are trained, " in output
    losses = [r["bits_per_token"] for r in records(folder, "train")]
    assert losses[-1] < losses[0] - 0.5
    model = TextModel.load(folder / "checkpoint-last")
    stock = AutoModelForMaskedLM.from_pretrained(base)
    assert fingerprint(model.parts.denoiser.network) == fingerprint(stock)  # bit for bit
    found = weights(folder)
    assert sum(tensor.numel() for tensor in found.values()) == trained
    assert all(tensor.any() for name, tensor in found.items() if "lora_B" in name)
    assert not list((folder / "checkpoint-last").glob("*.safetensors"))
    state = load_file(sorted((folder / "state").iterdir())[-1] / "weights.safetensors")
    assert sum(tensor.numel() for tensor in state.values()) == trained  # states hold the adapters only


def test_peft_loads_the_folder_and_gives_the_same_logits(
    monkeypatch: pytest.MonkeyPatch, base: Path, corpus: Path
) -> None:
    folder = train(monkeypatch, base, corpus)
    network = TextModel.load(folder).parts.denoiser.network
    whole = peft.PeftModel.from_pretrained(
        AutoModelForMaskedLM.from_pretrained(base), folder / "checkpoint" / "adapter"
    )
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        expected = whole.eval()(input_ids=ids).logits
        assert torch.allclose(network(input_ids=ids).logits, expected, atol=1e-5)
        plain = AutoModelForMaskedLM.from_pretrained(base).eval()(input_ids=ids).logits
        assert not torch.allclose(plain, expected, atol=1e-3)


def test_the_many_maps_of_a_deep_network_are_found_again(
    monkeypatch: pytest.MonkeyPatch, base: Path, corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """peft shortens the names of twenty maps or more to their common ends."""
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **SHAPE | {"num_hidden_layers": 5})).save_pretrained(base)
    folder = train(monkeypatch, base, corpus)
    saved = json.loads((folder / "checkpoint" / "adapter" / "adapter_config.json").read_text())
    assert len(saved["target_modules"]) < 20  # of 30
    apart = TextModel.load(folder / "checkpoint-last")
    assert sum("lora_A" in name for name in weights(folder)) == 30
    merged = train(monkeypatch, base, corpus, "--merge_lora", "true", name="merged")
    bounds = [m.nll(SENTENCES[:3], num_steps=8).nats for m in (apart, TextModel.load(merged / "checkpoint-last"))]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-4)


def test_a_merged_checkpoint_computes_the_same_without_adapters(
    monkeypatch: pytest.MonkeyPatch, base: Path, corpus: Path, capsys: pytest.CaptureFixture
) -> None:
    apart, merged = (
        train(monkeypatch, base, corpus, *flags, name=name)
        for name, flags in (("apart", []), ("merged", ["--merge_lora", "true"]))
    )
    assert not (merged / "checkpoint" / "adapter").exists()
    train(monkeypatch, base, corpus, "--merge_lora", "true", name="apart")  # it is done
    assert f"python -m checkpoint.merge {apart / 'checkpoint'} NEW_FOLDER" in capsys.readouterr().out
    models = [TextModel.load(folder / "checkpoint-last") for folder in (apart, merged)]
    bounds = [model.nll(SENTENCES[:5], num_steps=8).nats for model in models]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-4)
    assert models[0].sample(3, num_steps=8) == models[1].sample(3, num_steps=8)
    AutoModelForMaskedLM.from_pretrained(merged / "checkpoint")  # stock transformers opens it
    shutil.rmtree(base)
    TextModel.load(merged)  # which needs the pretrained network no more
    with pytest.raises(UserError, match="it holds adapters of the network .*my bert, which cannot be loaded"):
        TextModel.load(apart)


def test_a_stopped_training_resumes_to_equal_bytes(monkeypatch: pytest.MonkeyPatch, base: Path, corpus: Path) -> None:
    whole = train(monkeypatch, base, corpus, "--ema_decay", 0.9, name="whole")
    stopped = train_until(monkeypatch, base, corpus, 7)
    resumed = train(monkeypatch, base, corpus, "--ema_decay", 0.9, name="stopped")
    assert resumed == stopped
    for name in ("checkpoint", "checkpoint-last"):
        files = [folder / name / "adapter" / "adapter_model.safetensors" for folder in (whole, stopped)]
        assert files[0].read_bytes() == files[1].read_bytes()


def train_until(monkeypatch: pytest.MonkeyPatch, base: Path, corpus: Path, step: int) -> Path:
    """Train and stop as after a signal, at a step between two saved states."""
    with monkeypatch.context() as patch:
        takes = iter(range(1, 100))

        class Stop(StopRequest):
            signal_name = property(lambda self: "SIGTERM" if next(takes) >= step else "", lambda self, value: None)

        patch.setattr(main, "StopRequest", Stop)
        return train(patch, base, corpus, "--ema_decay", 0.9, name="stopped")


def test_other_weights_below_the_adapters_are_refused(
    monkeypatch: pytest.MonkeyPatch, base: Path, corpus: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = train(monkeypatch, base, corpus, "--max_steps", 5)
    network = BertForMaskedLM.from_pretrained(base)
    with torch.no_grad():
        network.bert.embeddings.word_embeddings.weight[7, 3] += 1e-3
    network.save_pretrained(base)
    with pytest.raises(UserError, match="the weights of .*my bert are not those that its adapters were trained on"):
        TextModel.load(folder)
    where = ["--train_data", corpus, "--output_dir", folder, "--cache_dir", corpus.parent / "cache"]
    more = [*FLAGS, "--max_steps", 20, "--resume", "true"]
    assert call(main.main, monkeypatch, "--model_name_or_path", base, *where, *more) == 2
    assert "holds a run on other network settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["--precision", "bf16"],
        ["--optimizer", "muon"],
        ["--gradient_checkpointing", "true"],
        ["--fused_loss", "true", "--accumulation_steps", 2],
        ["--time_conditioning", "layerwise"],
        ["--lora_targets", "decoder", "--precision", "bf16"],
        ["--lora_targets", "query,value", "--packing", "true", "--max_length", 32, "--batch_size", 8],
        ["--process", "mdlm"],
    ],
)
def test_adapters_train_with_every_setting(
    monkeypatch: pytest.MonkeyPatch, base: Path, corpus: Path, flags: list
) -> None:
    start = [*flags] if "mdlm" not in flags else [*flags, "--eval_step_size", 8]
    monkeypatch.setattr("tests.checkpoint.test_adapter.FLAGS", without_steps(FLAGS) if "mdlm" in flags else FLAGS)
    folder = train(monkeypatch, base, corpus, *start)
    found = weights(folder)
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert all(tensor.any() for name, tensor in found.items() if "lora_B" in name)  # each was trained
    assert TextModel.load(folder).sample(1, num_steps=8)


def without_steps(flags: list) -> list:
    """Leave out the number of diffusion steps, which a process in continuous time has not."""
    at = flags.index("--num_steps")
    return [*flags[:at], *flags[at + 2 :]]


def test_a_changed_configuration_below_the_adapters_is_refused(
    monkeypatch: pytest.MonkeyPatch, base: Path, corpus: Path
) -> None:
    """The weights are the same, and what they compute is not."""
    folder = train(monkeypatch, base, corpus, "--max_steps", 5, "--dropout", 0.3)
    TextModel.load(folder)
    whole = json.loads((base / "config.json").read_text())
    for key, value in (("layer_norm_eps", 0.5), ("num_attention_heads", 4), ("hidden_act", "relu")):
        (base / "config.json").write_text(json.dumps({**whole, key: value}))
        message = f"were trained with {key}='?{whole[key]}'? in the config.json of .*, which now has '?{value}'?; bring"
        with pytest.raises(UserError, match=message):
            TextModel.load(folder)


def test_a_network_that_the_run_would_replace_is_refused(
    monkeypatch: pytest.MonkeyPatch, base: Path, corpus: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = train(monkeypatch, base, corpus, "--max_steps", 5, "--merge_lora", "true")
    files = sorted(folder.rglob("*"))
    where = ["--train_data", corpus, "--output_dir", folder, "--cache_dir", corpus.parent / "cache"]
    again = ["--model_name_or_path", folder / "checkpoint", *where, *FLAGS, "--overwrite", "true"]
    for merge in ("true", "false"):
        assert call(main.main, monkeypatch, *again, "--merge_lora", merge) == 2
        assert "this run would replace" in capsys.readouterr().err and sorted(folder.rglob("*")) == files


DAMAGED = [
    ({"r": 10**7}, "r=10000000 must lie in 1..4096"),
    ({"lora_alpha": 10**400}, "lora_alpha=.* must be above 0"),
    ({"target_modules": [1, 2]}, "target_modules must be a list of names"),
    ({"target_modules": "(.*)*x"}, "target_modules must be a list of names"),
    ({"target_modules": ["bert.encoder"]}, "has no linear map 'bert.encoder'"),
    ({"use_rslora": True}, "'use_rslora' is True, which is not supported"),
    ({"alpha_pattern": {"query": 9}}, "'alpha_pattern' is .* not supported"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which is not supported"),
    ({"bias": "all"}, "'bias' is 'all', which is not supported"),
    ({"r": 8}, "do not fit the network"),
]


def test_settings_that_would_be_ignored_or_fill_the_memory_are_refused(
    monkeypatch: pytest.MonkeyPatch, base: Path, corpus: Path
) -> None:
    folder = train(monkeypatch, base, corpus, "--max_steps", 2, "--eval_steps", 2)
    file = folder / "checkpoint" / "adapter" / "adapter_config.json"
    whole = json.loads(file.read_text())
    for change, message in DAMAGED:
        file.write_text(json.dumps({**whole, **change}))
        with pytest.raises(UserError, match=message):
            TextModel.load(folder)
    file.write_text(json.dumps(whole))
    name = {**json.loads((file.parent / "base.json").read_text()), "name": "x" * 5000}
    (file.parent / "base.json").write_text(json.dumps(name))
    with pytest.raises(UserError, match="which cannot be loaded"):
        TextModel.load(folder)


def test_an_adapter_alone_is_no_network_to_start_from(
    monkeypatch: pytest.MonkeyPatch, base: Path, corpus: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = train(monkeypatch, base, corpus, "--max_steps", 2, "--eval_steps", 2)
    where = ["--train_data", corpus, "--output_dir", corpus.parent / "next", "--cache_dir", corpus.parent / "cache"]
    assert call(main.main, monkeypatch, "--model_name_or_path", folder / "checkpoint", *where, *FLAGS) == 2
    assert "it holds LoRA adapters of another network; merge them first" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["adapter_config.json", "base.json", "adapter_model.safetensors"])
def test_a_damaged_adapter_is_refused(monkeypatch: pytest.MonkeyPatch, base: Path, corpus: Path, file: str) -> None:
    folder = train(monkeypatch, base, corpus, "--max_steps", 5) / "checkpoint" / "adapter"
    whole = (folder / file).read_bytes()
    for content in (b"", whole[:-9], b"{}", b"[1]"):
        (folder / file).write_bytes(content)
        with pytest.raises(UserError, match="checkpoint .*adapter"):
            TextModel.load(folder.parent)
    if file.endswith(".json"):
        entries = json.loads(whole)
        entries.pop("r", entries.pop("sha256", None))
        (folder / file).write_text(json.dumps(entries))
        with pytest.raises(UserError, match="its folder adapter cannot be used"):
            TextModel.load(folder.parent)
