"""folder.py: a folder gives back the very same run, opens in stock transformers, and is refused when damaged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertTokenizerFast

from checkpoint.folder import load_checkpoint, save_checkpoint
from checkpoint.text_model import TextModel, build_process
from data.batch import collate
from data.tokenizers import encode
from data.word_counts import read_word_freq, write_word_freq
from diffusion.masked.word_freq_released import ReleasedWordFreqDiffusion
from diffusion_word_freq import WordFreqArgs
from models.factory import build_denoiser
from models.networks import BertArgs
from tests.conftest import SENTENCES
from utils.errors import UserError

CPU = torch.device("cpu")
SMALL = "hidden_size=32,num_hidden_layers=1,num_attention_heads=2,intermediate_size=64"


def make_run(tokenizer: BertTokenizerFast, conditioning: str = "none", posterior: str = "exact") -> TextModel:
    args = WordFreqArgs(num_steps=16, posterior=posterior)
    network = BertArgs("bert-small", from_scratch=True, config_overrides=SMALL, time_conditioning=conditioning)
    denoiser = build_denoiser(network, tokenizer, 16).eval()
    if conditioning == "layerwise":
        torch.nn.init.normal_(denoiser.time.mlps[0][2].weight)
    counts = torch.zeros(denoiser.vocab_size, dtype=torch.long)
    for ids in encode(tokenizer, SENTENCES)["input_ids"]:
        counts += torch.bincount(torch.tensor(ids), minlength=len(counts))
    process = build_process(args, counts, tokenizer, denoiser.vocab_size)
    return TextModel(denoiser, process, args, tokenizer, counts, [0, 0, 5, 3], 32, {"step": 7})


def batch_of(tokenizer: BertTokenizerFast):
    return collate([torch.tensor(ids).numpy() for ids in encode(tokenizer, SENTENCES[:4])["input_ids"]], tokenizer)


@pytest.mark.parametrize("conditioning", ["none", "layerwise", "token"])
@pytest.mark.parametrize("posterior", ["exact", "released"])
def test_a_run_comes_back_as_it_was(
    tokenizer: BertTokenizerFast, tmp_path: Path, conditioning: str, posterior: str
) -> None:
    run = make_run(tokenizer, conditioning, posterior)
    save_checkpoint(tmp_path / "run", run)
    loaded = load_checkpoint(str(tmp_path / "run"), CPU)
    assert loaded.process_args == run.process_args and isinstance(loaded.process, type(run.process))
    assert (loaded.length_histogram, loaded.max_length, loaded.facts) == ([0, 0, 5, 3], 32, {"step": 7})
    assert torch.equal(loaded.token_counts, run.token_counts)
    bounds = [
        r.process.nll_bound(r.denoiser, batch_of(tokenizer), 8, generator=torch.Generator().manual_seed(1))
        for r in (run, loaded)
    ]
    assert torch.equal(*bounds)


def test_stock_transformers_opens_the_folder(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    run = make_run(tokenizer)
    save_checkpoint(tmp_path / "run", run)
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path / "run").eval()
    batch = batch_of(tokenizer)
    ours = run.denoiser.decode(run.denoiser.encode(batch.input_ids, torch.ones(4).long(), batch.attention_mask))
    torch.testing.assert_close(
        stock(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits, ours
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "run").get_vocab() == tokenizer.get_vocab()


def test_the_posterior_can_be_chosen_on_loading(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "run", make_run(tokenizer))
    loaded = load_checkpoint(str(tmp_path / "run"), CPU, posterior="released")
    assert isinstance(loaded.process, ReleasedWordFreqDiffusion)


def test_saving_again_replaces_and_an_output_folder_stands_for_its_best_checkpoint(
    tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    run = make_run(tokenizer)
    for step in (1, 2):
        run.facts = {"step": step}
        save_checkpoint(tmp_path / "out" / "checkpoint", run)
    assert load_checkpoint(str(tmp_path / "out"), CPU).facts == {"step": 2}
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["checkpoint"]


def test_an_interrupted_save_leaves_the_old_checkpoint(
    tokenizer: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tokenizer)
    save_checkpoint(tmp_path / "run", run)
    run.facts = {"step": 8}
    monkeypatch.setattr("checkpoint.folder._model_card", lambda run: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(UserError, match=r"run: cannot be written \(disk full\); make room"):
        save_checkpoint(tmp_path / "run", run)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert load_checkpoint(str(tmp_path / "run"), CPU).facts == {"step": 7}


def test_text_specials_are_ruled_out_but_unknown_tokens_can_be_scored(tokenizer: BertTokenizerFast) -> None:
    process = make_run(tokenizer).process
    barred = {i for i, value in enumerate(process.support.tolist()) if value == -float("inf")}
    assert barred == set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    never_drawn = {i for i, value in enumerate(process.sampling_support.tolist()) if value == -float("inf")}
    assert never_drawn == set(tokenizer.all_special_ids)


def test_rows_of_the_output_that_stand_for_no_token_are_ruled_out(tokenizer: BertTokenizerFast) -> None:
    """Networks are padded to round sizes, and a vocabulary may have holes."""
    size = len(tokenizer) + 6
    process = build_process(WordFreqArgs(num_steps=16), torch.ones(size), tokenizer, size)
    assert (process.support[len(tokenizer) :] == -float("inf")).all()
    assert process.support[5 : len(tokenizer)].eq(0).all()


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
        (lambda d: shutil.rmtree(d), "no such folder; train one with main.py"),
        (lambda d: (d / "process.json").unlink(), r"not a DiffusionBERT checkpoint \(it has no process.json\)"),
        (lambda d: cut_in_half(d / "process.json"), "process.json is truncated or damaged"),
        (lambda d: edit(d / "process.json", process="dalle"), "of another process, 'dalle'"),
        (lambda d: edit(d / "process.json", format=99), "format 99, this version reads format 1"),
        (lambda d: edit(d / "process.json", process_args={"new": 1}), "does not fit this version"),
        (lambda d: (d / "process.json").write_text("[" * 100000), "process.json is truncated or damaged"),
        (lambda d: edit(d / "process.json", length_histogram=["a"]), "length_histogram must be a list of counts"),
        (lambda d: edit(d / "process.json", length_histogram=[0, -1]), "length_histogram must be a list of counts"),
        (lambda d: edit(d / "process.json", length_histogram=[5]), "length_histogram counts no sentence"),
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
def test_a_damaged_checkpoint_is_named_in_one_line(
    tokenizer: BertTokenizerFast, tmp_path: Path, damage, message: str
) -> None:
    folder = tmp_path / "run"
    save_checkpoint(folder, make_run(tokenizer, "token"))
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(str(folder), CPU)
    assert "\n" not in str(caught.value) and "run" in str(caught.value)


def test_a_pickled_checkpoint_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint-10.pt"
    file.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UserError, match="is a file; a checkpoint is a folder .*no pickle is ever loaded"):
        load_checkpoint(str(file), CPU)


# ---- word frequencies ------------------------------------------------------------------------------------------------


def test_word_frequencies_make_the_round_trip(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    counts = torch.arange(len(tokenizer)) * 3
    write_word_freq(tmp_path / "f.json", counts, tokenizer)
    assert torch.equal(read_word_freq(tmp_path / "f.json", tokenizer, len(tokenizer)), counts)
    listed = json.loads((tmp_path / "f.json").read_text())
    assert list(listed.values()) == sorted(listed.values(), reverse=True) and 0 not in listed.values()


def test_relative_frequencies_become_counts(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text('{"the": 0.5, "a": 0.25, "cat": 0.0625}')
    counts = read_word_freq(tmp_path / "f.json", tokenizer, len(tokenizer))
    assert [counts[tokenizer.convert_tokens_to_ids(t)].item() for t in ("the", "a", "cat", "dog")] == [8, 4, 1, 0]


def test_what_trains_is_what_is_saved(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    """Broken numbers become whole ones on reading, so that a checkpoint holds the very schedule it was trained with."""
    (tmp_path / "f.json").write_text('{"the": 2.7, "a": 0.4}')
    counts = read_word_freq(tmp_path / "f.json", tokenizer, len(tokenizer))
    write_word_freq(tmp_path / "g.json", counts, tokenizer)
    assert json.loads((tmp_path / "g.json").read_text()) == {"the": 7, "a": 1}
    assert torch.equal(read_word_freq(tmp_path / "g.json", tokenizer, len(tokenizer)), counts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"the": 1, "zebra": 2}', "of another vocabulary: 1 of 2 tokens, e.g. 'zebra'"),
        ("[1, 2]", "must map tokens to numbers"),
        ("{}", "no token has a count above 0"),
        ('{"the": 0}', "no token has a count above 0"),
        ('{"the": 1e308, "a": 1}', "must map tokens to numbers from 0 to 1e"),
        ('{"the": 1' + "0" * 400 + "}", "must map tokens to numbers from 0 to 1e"),
        ('{"the": 0.5, "a": 1e-300}', "more than 1e"),
        ('{"the": 1' + "0" * 5000 + "}", "not JSON"),
        ("[" * 100000, "not JSON"),
        ('{"the": -1}', "must map tokens to numbers"),
        ('{"the": NaN}', "must map tokens to numbers"),
        ('{"the": true}', "must map tokens to numbers"),
        ('{"the": "1"}', "must map tokens to numbers"),
        ("\x80\x04pickle", "not JSON"),
    ],
)
def test_frequencies_of_another_kind_are_refused(
    tokenizer: BertTokenizerFast, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "f.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_word_freq(tmp_path / "f.json", tokenizer, len(tokenizer))


def test_word_frequencies_are_read_with_their_byte_order_mark(tmp_path: Path, tokenizer) -> None:
    (tmp_path / "f.json").write_text('{"the": 3}', encoding="utf-8-sig")
    counts = read_word_freq(tmp_path / "f.json", tokenizer, len(tokenizer))
    assert counts.sum() == counts[tokenizer.get_vocab()["the"]] == 3
