"""Every process through the same scripts: main.py, resuming, predict.py, pairs, compute_elbo.py."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import compute_elbo
import main
import predict
import predict_downstream_condition
from checkpoint.folder import load_checkpoint
from checkpoint.model_parts import PROCESSES
from tests.conftest import SENTENCES, TINY, call
from tests.test_main import records
from tests.training.test_resume import contents, logged, stop_after
from training.config import chosen_process
from utils.errors import UserError

CPU = torch.device("cpu")
T = TINY.index("--num_steps")
FLAGS = [*TINY[:T], *TINY[T + 2 :], "--optimizer", "muon", "--valid_fraction", 0.1, "--ema_decay", 0.9]
OWN = {
    "word_freq": ["--num_steps", 64, "--spindle", "none"],
    "mdlm": ["--noise", "cosine"],
    "d3pm": ["--num_steps", 64, "--time_conditioning", "layerwise"],
    "sedd": ["--time_conditioning", "layerwise", "--fused_loss", "true"],
    "ar": [],
    "score": [
        "--model_name_or_path", "score-lm-small",
        "--config_overrides",
        "hidden_size=64,embedding_size=32,intermediate_size=128,num_hidden_layers=2,num_attention_heads=2",
    ],
}  # fmt: skip
"""Training flags of each process; at least one is specific to it."""


def train(monkeypatch, name: str, data: Path, tmp_path: Path, *flags: object, run: str = "run") -> tuple[int, Path]:
    base = [*FLAGS, "--process", name, *OWN[name], "--train_data", data, "--cache_dir", tmp_path / "cache"]
    return call(main.main, monkeypatch, *base, "--output_dir", tmp_path / run, *flags), tmp_path / run


@pytest.fixture(scope="module", params=OWN)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, slow_setup: None
) -> tuple[str, Path]:
    """Return the name of a process and the folder of its run, trained on the sentences."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "corpus.txt").write_text("\n".join(SENTENCES) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        assert (
            train(patch, request.param, folder / "corpus.txt", folder, "--max_steps", 300, "--eval_steps", 150)[0] == 0
        )
    return request.param, folder / "run"


def test_every_process_learns_and_is_named_in_its_checkpoint(trained: tuple[str, Path]) -> None:
    name, folder = trained
    valid = records(folder, "valid")[-1]
    assert valid["bits_per_token"] < 0.6 * valid["unigram_bits_per_token"]
    run = load_checkpoint(str(folder), CPU)
    assert run.process_name == name and type(run.process) is PROCESSES[name].process
    assert json.loads((folder / "checkpoint" / "process.json").read_text())["process"] == name


def test_samples_of_every_process_are_text(trained: tuple[str, Path], monkeypatch, capsys) -> None:
    flags = ["--checkpoint", trained[1], "--threads", 1, "--num_samples", 30]
    assert call(predict.main, monkeypatch, *flags) == 0
    texts = capsys.readouterr().out.splitlines()
    known = set(" ".join(SENTENCES).replace(".", " .").split())
    words_of = [text.replace(".", " .").split() for text in texts]
    assert len(texts) == 30 and not any("[" in text for text in texts)
    share = sum(word in known for each in words_of for word in each) / sum(map(len, words_of))
    assert share > 0.75 and len(set(texts)) > 10


def test_the_bound_does_not_depend_on_the_batch_size(trained: tuple[str, Path], monkeypatch, capsys) -> None:
    name, folder = trained
    flags = ["--checkpoint", folder, "--data", folder.parent / "corpus.txt", "--cache_dir", folder.parent / "cache"]
    reports = []
    for size in (7, 64):
        assert call(compute_elbo.main, monkeypatch, *flags, "--limit", 40, "--json", "true", "--batch_size", size) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0]["nats_per_sequence"] == pytest.approx(reports[1]["nats_per_sequence"], rel=1e-4)
    steps = {"ar": 1, "mdlm": "inf", "sedd": "inf", "score": "inf"}.get(name, 64)
    assert reports[0]["num_steps"] == steps and reports[0]["bits_per_token"] < 5
    estimators = {"mdlm": "masked-count", "sedd": "masked-count", "score": "stratified"}
    assert reports[0]["estimator"] == estimators.get(name, "windows")


@pytest.mark.parametrize("name", OWN)
@pytest.mark.slow
def test_a_stopped_and_resumed_run_ends_in_the_same_state(name: str, monkeypatch, corpus: Path, tmp_path: Path) -> None:
    flags = ["--max_steps", 6, "--eval_steps", 4, "--save_every", 2, "--logging_steps", 1]
    assert train(monkeypatch, name, corpus, tmp_path, *flags, run="whole")[0] == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        train(patch, name, corpus, tmp_path, *flags)
    assert train(monkeypatch, name, corpus, tmp_path, *flags)[0] == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")


@pytest.mark.parametrize("name", OWN)
@pytest.mark.slow
def test_every_process_trains_and_predicts_on_pairs(name: str, monkeypatch, pairs_folder: Path, tmp_path: Path) -> None:
    code, folder = train(monkeypatch, name, pairs_folder, tmp_path, "--max_steps", 20)
    assert code == 0
    flags = ["--checkpoint", folder, "--data", pairs_folder / "test.jsonl", "--output", tmp_path / "out.jsonl"]
    sampling_flags = ["--mbr_size", 2, "--limit", 5, "--threads", 1]
    assert call(predict_downstream_condition.main, monkeypatch, *flags, *sampling_flags) == 0
    predictions = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(predictions) == 5


def test_the_process_is_chosen_before_its_flags_are_parsed(monkeypatch, capsys, corpus: Path, tmp_path: Path) -> None:
    assert [chosen_process(["--process", name]) for name in PROCESSES] == list(PROCESSES)
    assert chosen_process(["--process=sedd", "--seed", "3"]) == "sedd" and chosen_process([]) == "word_freq"
    assert set(PROCESSES) == set(OWN)
    for name, flags, message in (
        ("mdlm", ["--spindle", "paper"], "--spindle"),
        ("word_freq", ["--noise", "cosine"], "--noise"),
        ("sedd", ["--time_conditioning", "none"], "a score depends on sigma; use layerwise"),
        ("ar", ["--warm_start", 0.2], "warm_start is for masked processes"),
        ("ar", ["--model_name_or_path", "bert-small", "--process", "mdlm3"], "process"),
    ):
        assert train(monkeypatch, name, corpus, tmp_path, *flags)[0] == 2
        stderr = capsys.readouterr().err.strip()
        assert message in stderr and "\n" not in stderr and not (tmp_path / "run").exists()


def test_the_released_posterior_is_refused_for_other_processes(trained: tuple[str, Path]) -> None:
    name, folder = trained
    if name != "word_freq":
        with pytest.raises(UserError, match=f"posterior=released is for process=word_freq; .* has process={name}"):
            load_checkpoint(str(folder), CPU, posterior="released")


@pytest.mark.parametrize("value", [math.nan, -math.inf, 3e38])
def test_weights_that_are_not_finite_give_no_figure_and_no_text(
    monkeypatch, capsys, trained: tuple[str, Path], tmp_path: Path, value: float
) -> None:
    """A value that is not finite is refused in every tensor; one that is only large may give finite results."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(trained[1] / "checkpoint", folder)
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES[:3]) + "\n")
    weights = load_file(folder / "model.safetensors")
    for name in list(weights)[:: -(-len(weights) // 4)]:
        damaged = {**weights, name: weights[name].clone()}
        damaged[name].view(-1)[:: 7 if value == 3e38 else 10**9] = value
        save_file(damaged, folder / "model.safetensors", {"format": "pt"})
        scoring = ["--data", tmp_path / "text.txt", "--cache_dir", tmp_path / "cache", "--json"]
        scoring += [] if trained[0] in ("ar", "sedd") else ["--num_steps", 4]
        drawing = ["--num_samples", 2, *([] if trained[0] == "ar" else ["--num_steps", 4])]
        for script, flags in ((predict, drawing), (compute_elbo, scoring)):
            code = call(script.main, monkeypatch, "--checkpoint", folder, *flags)
            out, err = capsys.readouterr()
            assert code == 2 or math.isfinite(value), (name, value)
            assert code in (0, 2) and "NaN" not in out and "Infinity" not in out
            assert code == 0 or (not out and err.count("error: ") == 1 and "finite" in err), err


def test_the_left_to_right_model_begins_with_the_frequency_of_ends(monkeypatch, corpus: Path, tmp_path: Path) -> None:
    """The output bias is log p(w) up to a constant: every text has one end, and no [PAD], which counts 1."""
    code, folder = train(monkeypatch, "ar", corpus, tmp_path, "--max_steps", 1, "--ema_decay", 0)
    model = load_checkpoint(str(folder), CPU)
    bias, ids = model.denoiser.network.get_output_embeddings().bias, model.tokenizer
    number = sum(model.length_histogram)
    assert code == 0 and 200 < number < len(SENTENCES)
    difference = (bias[ids.sep_token_id] - bias[ids.pad_token_id]).item()
    assert difference == pytest.approx(math.log(number + 1), abs=0.05)
