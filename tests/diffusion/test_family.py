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
from checkpoint.text_model import PROCESSES
from tests.conftest import SENTENCES, TINY, call
from tests.test_main import records
from tests.training.test_resume import contents, logged, stop_after
from training.config import chosen_process
from utils.errors import UserError

CPU = torch.device("cpu")
T = TINY.index("--num_steps")
WORDS = [*TINY[:T], *TINY[T + 2 :], "--optimizer", "muon", "--valid_fraction", 0.1, "--ema_decay", 0.9]
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
"""What each is trained with; one flag or more that others do not have."""


def train(monkeypatch, name: str, data: Path, tmp_path: Path, *words: object, run: str = "run") -> tuple[int, Path]:
    base = [*WORDS, "--process", name, *OWN[name], "--train_data", data, "--cache_dir", tmp_path / "cache"]
    return call(main.main, monkeypatch, *base, "--output_dir", tmp_path / run, *words), tmp_path / run


@pytest.fixture(scope="module", params=OWN)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, slow_setup: None
) -> tuple[str, Path]:
    """Its name, and where it has learnt the sentences."""
    place = tmp_path_factory.mktemp(request.param)
    (place / "corpus.txt").write_text("\n".join(SENTENCES) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        assert train(patch, request.param, place / "corpus.txt", place, "--max_steps", 300, "--eval_steps", 150)[0] == 0
    return request.param, place / "run"


def test_it_learns_and_its_checkpoint_says_what_it_is(trained: tuple[str, Path]) -> None:
    name, folder = trained
    valid = records(folder, "valid")[-1]
    assert valid["bits_per_token"] < 0.6 * valid["unigram_bits_per_token"]
    run = load_checkpoint(str(folder), CPU)
    assert run.process_name == name and type(run.process) is PROCESSES[name].process
    assert json.loads((folder / "checkpoint" / "process.json").read_text())["process"] == name


def test_its_samples_are_text(trained: tuple[str, Path], monkeypatch, capsys) -> None:
    words = ["--checkpoint", trained[1], "--threads", 1, "--num_samples", 30]
    assert call(predict.main, monkeypatch, *words) == 0
    texts = capsys.readouterr().out.splitlines()
    known = set(" ".join(SENTENCES).replace(".", " .").split())
    words_of = [text.replace(".", " .").split() for text in texts]
    assert len(texts) == 30 and not any("[" in text for text in texts)
    share = sum(word in known for each in words_of for word in each) / sum(map(len, words_of))
    assert share > 0.75 and len(set(texts)) > 10


def test_its_bound_is_scored_alike_in_any_batch(trained: tuple[str, Path], monkeypatch, capsys) -> None:
    name, folder = trained
    words = ["--checkpoint", folder, "--data", folder.parent / "corpus.txt", "--cache_dir", folder.parent / "cache"]
    reports = []
    for size in (7, 64):
        assert call(compute_elbo.main, monkeypatch, *words, "--limit", 40, "--json", "true", "--batch_size", size) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0]["nats_per_sequence"] == pytest.approx(reports[1]["nats_per_sequence"], rel=1e-4)
    steps = {"ar": 1, "mdlm": "inf", "sedd": "inf", "score": "inf"}.get(name, 64)
    assert reports[0]["num_steps"] == steps and reports[0]["bits_per_token"] < 5
    estimators = {"mdlm": "masked-count", "sedd": "masked-count", "score": "stratified"}
    assert reports[0]["estimator"] == estimators.get(name, "windows")


@pytest.mark.parametrize("name", OWN)
@pytest.mark.slow
def test_stopping_changes_nothing(name: str, monkeypatch, corpus: Path, tmp_path: Path) -> None:
    words = ["--max_steps", 6, "--eval_steps", 4, "--save_every", 2, "--logging_steps", 1]
    assert train(monkeypatch, name, corpus, tmp_path, *words, run="whole")[0] == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        train(patch, name, corpus, tmp_path, *words)
    assert train(monkeypatch, name, corpus, tmp_path, *words)[0] == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")


@pytest.mark.parametrize("name", OWN)
@pytest.mark.slow
def test_pairs_are_conditioned_by_the_same_mask(name: str, monkeypatch, pairs_folder: Path, tmp_path: Path) -> None:
    code, folder = train(monkeypatch, name, pairs_folder, tmp_path, "--max_steps", 20)
    assert code == 0
    words = ["--checkpoint", folder, "--data", pairs_folder / "test.jsonl", "--output", tmp_path / "out.jsonl"]
    more = ["--mbr_size", 2, "--limit", 5, "--threads", 1]
    assert call(predict_downstream_condition.main, monkeypatch, *words, *more) == 0
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(found) == 5


def test_the_process_is_found_before_the_line_is_read(monkeypatch, capsys, corpus: Path, tmp_path: Path) -> None:
    assert [chosen_process(["--process", name]) for name in PROCESSES] == list(PROCESSES)
    assert chosen_process(["--process=sedd", "--seed", "3"]) == "sedd" and chosen_process([]) == "word_freq"
    assert set(PROCESSES) == set(OWN)
    for name, words, message in (
        ("mdlm", ["--spindle", "paper"], "--spindle"),
        ("word_freq", ["--noise", "cosine"], "--noise"),
        ("sedd", ["--time_conditioning", "none"], "a score depends on sigma; use layerwise"),
        ("ar", ["--warm_start", 0.2], "warm_start is for masked processes"),
        ("ar", ["--model_name_or_path", "bert-small", "--process", "mdlm3"], "process"),
    ):
        assert train(monkeypatch, name, corpus, tmp_path, *words)[0] == 2
        said = capsys.readouterr().err.strip()
        assert message in said and "\n" not in said and not (tmp_path / "run").exists()


def test_what_is_for_word_freq_alone_is_refused_for_others(trained: tuple[str, Path]) -> None:
    name, folder = trained
    if name != "word_freq":
        with pytest.raises(UserError, match=f"posterior=released is for process=word_freq; .* has process={name}"):
            load_checkpoint(str(folder), CPU, posterior="released")


@pytest.mark.parametrize("value", [math.nan, -math.inf, 3e38])
def test_no_figure_and_no_text_comes_of_weights_that_are_no_numbers(
    monkeypatch, capsys, trained: tuple[str, Path], tmp_path: Path, value: float
) -> None:
    """Whichever tensor it is in: refused, or, if it is only large, finite."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(trained[1] / "checkpoint", folder)
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES[:3]) + "\n")
    weights = load_file(folder / "model.safetensors")
    for name in list(weights)[:: -(-len(weights) // 4)]:
        spoilt = {**weights, name: weights[name].clone()}
        spoilt[name].view(-1)[:: 7 if value == 3e38 else 10**9] = value
        save_file(spoilt, folder / "model.safetensors", {"format": "pt"})
        scoring = ["--data", tmp_path / "text.txt", "--cache_dir", tmp_path / "cache", "--json"]
        scoring += [] if trained[0] in ("ar", "sedd") else ["--num_steps", 4]
        drawing = ["--num_samples", 2, *([] if trained[0] == "ar" else ["--num_steps", 4])]
        for script, words in ((predict, drawing), (compute_elbo, scoring)):
            code = call(script.main, monkeypatch, "--checkpoint", folder, *words)
            out, err = capsys.readouterr()
            assert code == 2 or math.isfinite(value), (name, value)
            assert code in (0, 2) and "NaN" not in out and "Infinity" not in out
            assert code == 0 or (not out and err.count("error: ") == 1 and "finite" in err), err
