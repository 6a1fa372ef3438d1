"""folder.py: saving and loading keep the model; stock transformers loads the folder; damage is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertTokenizerFast

from checkpoint.folder import load_checkpoint, save_checkpoint
from checkpoint.model_parts import ModelParts, build_process
from data.batch import collate
from data.tokenizers import encode
from diffusion.process_options import WordFreqArgs
from models.factory import build_denoiser
from models.options import NetworkArgs
from tests.conftest import SENTENCES
from utils.errors import UserError

CPU = torch.device("cpu")
SMALL = "hidden_size=32,num_hidden_layers=1,num_attention_heads=2,intermediate_size=64"


def make_run(tokenizer: BertTokenizerFast, conditioning: str = "none", posterior: str = "exact") -> ModelParts:
    args = WordFreqArgs(num_steps=16, posterior=posterior)
    network = NetworkArgs("bert-small", from_scratch=True, config_overrides=SMALL, time_conditioning=conditioning)
    denoiser = build_denoiser(network, tokenizer, 16).eval()
    if conditioning == "layerwise":
        torch.nn.init.normal_(denoiser.time.mlps[0][2].weight)
    counts = torch.zeros(denoiser.vocab_size, dtype=torch.long)
    for ids in encode(tokenizer, SENTENCES)["input_ids"]:
        counts += torch.bincount(torch.tensor(ids), minlength=len(counts))
    process = build_process(args, counts, tokenizer, denoiser.vocab_size)
    return ModelParts(denoiser, process, tokenizer, counts, [0, 0, 5, 3], 32, {"step": 7})


def batch_of(tokenizer: BertTokenizerFast):
    return collate([torch.tensor(ids).numpy() for ids in encode(tokenizer, SENTENCES[:4])["input_ids"]], tokenizer)


@pytest.mark.parametrize("conditioning", ["none", "layerwise", "token"])
@pytest.mark.parametrize("posterior", ["exact", "released"])
def test_a_loaded_checkpoint_equals_the_saved_model(
    tokenizer: BertTokenizerFast, tmp_path: Path, conditioning: str, posterior: str
) -> None:
    run = make_run(tokenizer, conditioning, posterior)
    save_checkpoint(tmp_path / "run", run)
    loaded = load_checkpoint(str(tmp_path / "run"), CPU)
    assert loaded.process.args == run.process.args and isinstance(loaded.process, type(run.process))
    assert (loaded.length_histogram, loaded.max_length, loaded.facts) == ([0, 0, 5, 3], 32, {"step": 7})
    assert torch.equal(loaded.token_counts, run.token_counts)
    bounds = [
        r.process.bound(r.denoiser, batch_of(tokenizer), 8, generator=torch.Generator().manual_seed(1)).total
        for r in (run, loaded)
    ]
    assert torch.equal(*bounds)


def test_stock_transformers_loads_the_folder(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    run = make_run(tokenizer)
    save_checkpoint(tmp_path / "run", run)
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path / "run").eval()
    batch = batch_of(tokenizer)
    ours = run.denoiser.decode(run.denoiser.encode(batch.input_ids, torch.ones(4).long(), batch.attention_mask))
    torch.testing.assert_close(
        stock(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits, ours
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "run").get_vocab() == tokenizer.get_vocab()


def test_saving_again_replaces_the_checkpoint_loaded_from_the_output_folder(
    tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    run = make_run(tokenizer)
    for step in (1, 2):
        run = replace(run, facts={"step": step})
        save_checkpoint(tmp_path / "out" / "checkpoint", run)
    assert load_checkpoint(str(tmp_path / "out"), CPU).facts == {"step": 2}
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["checkpoint"]


def test_an_interrupted_save_leaves_the_old_checkpoint(
    tokenizer: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tokenizer)
    save_checkpoint(tmp_path / "run", run)
    run = replace(run, facts={"step": 8})
    monkeypatch.setattr("checkpoint.folder.model_card", lambda run: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(UserError, match=r"run: cannot be written \(disk full\); make room"):
        save_checkpoint(tmp_path / "run", run)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert load_checkpoint(str(tmp_path / "run"), CPU).facts == {"step": 7}


# ---- damage ----------------------------------------------------------------------------------------------------------


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_process(folder: Path, **changes: object) -> None:
    file = folder / "process.json"
    edit(file, process_args={**json.loads(file.read_text())["process_args"], **changes})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: shutil.rmtree(d), "no such folder; train a model with main.py"),
        (lambda d: (d / "process.json").unlink(), "it has no process.json; give a folder made by main.py"),
        (lambda d: cut_in_half(d / "process.json"), "process.json is truncated or damaged"),
        (lambda d: edit(d / "process.json", process="dalle"), "unknown process 'dalle'"),
        (lambda d: edit(d / "process.json", format=99), "format 99, but this version reads format 1"),
        (lambda d: edit(d / "process.json", process_args={"new": 1}), "does not fit this version"),
        (lambda d: (d / "process.json").write_text("[" * 100000), "process.json is truncated or damaged"),
        (
            lambda d: edit(d / "process.json", length_histogram=["a"]),
            "length_histogram must be a list of at most",
        ),
        (
            lambda d: edit(d / "process.json", length_histogram=[0, -1]),
            "length_histogram must be a list of at most",
        ),
        (lambda d: edit(d / "process.json", length_histogram=[5]), "length_histogram must count at least one sentence"),
        (lambda d: edit(d / "process.json", max_length=-5), "max_length=-5 must be a whole number"),
        (lambda d: edit(d / "process.json", time_conditioning="foo"), "time_conditioning='foo' must be one of"),
        (lambda d: edit_process(d, schedule="foo"), "schedule='foo' must be one of mutual, cosine, linear"),
        (lambda d: edit_process(d, spindle=[]), r"spindle=\[\] must be one of paper"),
        (lambda d: edit_process(d, num_steps=16.5), "num_steps=16.5"),
        (lambda d: edit_process(d, num_steps="16"), "does not fit this version|num_steps=16"),
        (lambda d: edit(d / "config.json", num_attention_heads=0), "cannot read the network in"),
        (lambda d: (d / "config.json").write_text("3"), "cannot read the network in"),
        (lambda d: cut_in_half(d / "model.safetensors"), "cannot read the network in"),
        (lambda d: (d / "model.safetensors").unlink(), "cannot read the network in"),
        (lambda d: cut_in_half(d / "config.json"), "cannot read the network in"),
        (
            lambda d: cut_in_half(d / "time_conditioning.safetensors"),
            "time_conditioning.safetensors is missing, truncated",
        ),
        (
            lambda d: (d / "time_conditioning.safetensors").unlink(),
            "time_conditioning.safetensors is missing, truncated",
        ),
        (lambda d: cut_in_half(d / "tokenizer.json"), "cannot read the tokenizer in"),
        (lambda d: cut_in_half(d / "word_freq.json"), "word_freq.json: not JSON"),
        (lambda d: (d / "word_freq.json").unlink(), "word_freq.json: cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_reported_in_one_line(
    tokenizer: BertTokenizerFast, tmp_path: Path, damage, message: str
) -> None:
    folder = tmp_path / "run"
    save_checkpoint(folder, make_run(tokenizer, "token"))
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(str(folder), CPU)
    assert "\n" not in str(caught.value) and "run" in str(caught.value)


def test_a_pickled_checkpoint_is_refused_without_loading(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint-10.pt"
    file.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UserError, match="is a file; give a folder made by main.py .*no pickle is ever loaded"):
        load_checkpoint(str(file), CPU)
