"""text_model.py: the methods give what the scripts give at the same seed; wrong arguments are errors of one line."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import compute_elbo
import predict
import predict_downstream_condition
from checkpoint import TextModel
from checkpoint.rounds import Tally
from tests.conftest import PAIRS, SENTENCES, call, write_jsonl
from tests.diffusion import test_family
from utils.errors import UserError

SETTINGS = {"temperature": 0.7, "top_k": 9, "num_steps": 16}
FLAGS = [word for name, value in SETTINGS.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def model(trained: Path) -> TextModel:
    return TextModel.load(trained, device="cpu")


@pytest.fixture(scope="module")
def model_of_pairs(trained_pairs: Path) -> TextModel:
    return TextModel.load(str(trained_pairs / "checkpoint"), device="cpu")


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, trained: Path, *flags: object) -> list[str]:
    assert call(predict.main, monkeypatch, "--checkpoint", trained, "--device", "cpu", *FLAGS, *flags) == 0
    return capsys.readouterr().out.splitlines()


def test_samples_and_fillings_are_those_of_predict_py(monkeypatch, capsys, trained: Path, model: TextModel) -> None:
    text = "the [MASK] sees [MASK] ."
    expected = printed(monkeypatch, capsys, trained, "--num_samples", 5, "--seed", 3)
    assert model.sample(5, seed=3, **SETTINGS) == expected != model.sample(5, seed=4, **SETTINGS)
    assert model.sample(2, seed=3, batch_size=1, **SETTINGS) == expected[:2]
    filled = printed(monkeypatch, capsys, trained, "--infill", text, "--num_samples", 4, "--seed", 3)
    assert model.infill(text, 4, seed=3, **SETTINGS) == filled and "[MASK]" not in "".join(filled)


@pytest.mark.parametrize("estimator", ["auto", "stratified", "trajectory"])
def test_the_nats_are_those_of_compute_elbo_py(
    monkeypatch, capsys, trained: Path, model: TextModel, tmp_path: Path, estimator: str
) -> None:
    texts = [f" {sentence} " for sentence in SENTENCES[:7]]
    (tmp_path / "t.txt").write_text("\n".join(texts) + "\n")
    flags = ["--checkpoint", trained, "--data", tmp_path / "t.txt", "--cache_dir", tmp_path / "c", "--json", "true"]
    flags += ["--num_steps", 8, "--estimator", estimator, "--seed", 5, "--per_sentence", tmp_path / "n.jsonl"]
    assert call(compute_elbo.main, monkeypatch, *flags, "--device", "cpu") == 0
    report = json.loads(capsys.readouterr().out)
    nats = [json.loads(line)["nats"] for line in (tmp_path / "n.jsonl").read_text().splitlines()]
    found = model.nll(texts, num_steps=8, estimator=estimator, seed=5)
    assert found.nats == nats and sum(found.words) == report["num_words"] and sum(found.tokens) == report["num_tokens"]
    assert found.words == [len(text.split()) for text in texts]
    if estimator == "auto":
        assert found.draws_error is None
    else:
        total = sum(error**2 for error in found.draws_error) ** 0.5 / len(texts)
        assert total == pytest.approx(report["draws_error_nats"])


def test_targets_are_those_of_predict_downstream_condition_py(
    monkeypatch, model_of_pairs: TextModel, trained_pairs: Path, tmp_path: Path
) -> None:
    pairs = PAIRS[1:61:10]
    flags = ["--checkpoint", trained_pairs, "--data", write_jsonl(tmp_path / "d.jsonl", pairs), "--device", "cpu"]
    flags += ["--output", tmp_path / "p.jsonl", "--mbr_size", 3, "--seed", 2, *FLAGS]
    assert call(predict_downstream_condition.main, monkeypatch, *flags) == 0
    records = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    sources = [pair["src"] for pair in pairs]
    assert model_of_pairs.candidates(sources, 3, seed=2, **SETTINGS) == [r["candidates"] for r in records]
    chosen = model_of_pairs.generate(sources, candidates=3, seed=2, **SETTINGS)
    assert chosen == [r["prediction"] for r in records]
    assert model_of_pairs.generate([]) == []


def test_denoising_goes_from_masks_to_the_sample_and_no_token_changes(model: TextModel) -> None:
    for number in (0, 2):
        steps = model.denoise(number, seed=3, **SETTINGS)
        masks = [step.count("[MASK]") for step in steps]
        assert masks[0] == len(steps[0]) - 2 > masks[-1] == 0 and masks == sorted(masks, reverse=True)
        for before, after in zip(steps, steps[1:], strict=False):
            assert all(old in ("[MASK]", new) for old, new in zip(before, after, strict=True))
        ids = model.parts.tokenizer.convert_tokens_to_ids(steps[-1])
        text = model.parts.tokenizer.decode(ids, skip_special_tokens=True)
        assert text == model.sample(3, seed=3, **SETTINGS)[number]
    given = model.denoise(infill="the [MASK] sees", seed=1)
    assert given[0][1:-1] == ["the", "[MASK]", "sees"] and given[-1][1] == "the"


@pytest.mark.parametrize("name", ["f.html", "f.gif"])
def test_a_film_is_that_of_predict_py(monkeypatch, trained: Path, model: TextModel, tmp_path: Path, name: str) -> None:
    (tmp_path / "script").mkdir()
    flags = ["--checkpoint", trained, "--film", tmp_path / "script" / name, "--num_samples", 2, "--seed", 3, *FLAGS]
    assert call(predict.main, monkeypatch, *flags, "--device", "cpu") == 0
    model.film(tmp_path / name, 2, seed=3, **SETTINGS)
    assert (tmp_path / name).read_bytes() == (tmp_path / "script" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("process", ["ar", "score"])
def test_other_processes_sample_denoise_and_score(monkeypatch, corpus: Path, tmp_path: Path, process: str) -> None:
    code, folder = test_family.train(monkeypatch, process, corpus, tmp_path, "--max_steps", 1)
    model = TextModel.load(folder)
    assert code == 0 and len(model.sample(2)) == 2 and len(model.denoise()) > 1
    found = model.nll(SENTENCES[:3], num_steps=0 if process == "ar" else 8)
    assert all(nats > 0 for nats in found.nats) and len(found.words) == 3


def test_wrong_arguments_are_errors_of_one_line(model: TextModel, model_of_pairs: TextModel, tmp_path: Path) -> None:
    for wrong, message in (
        (lambda: model.sample(0), "num_samples=0 must lie in 1"),
        (lambda: model.sample(1, seed=-1), "seed=-1 must lie in 0"),
        (
            lambda: model.sample(1, temperatur=1),
            "temperatur: no setting of the sampler; the settings are temperature, ",
        ),
        (lambda: model.sample(1, temperature="0.5"), "temperature='0.5' must be a number"),
        (lambda: model.sample(1, sampler=True), "sampler=True must be a string"),
        (lambda: model.sample(1, temperature=0), "temperature=0 must lie in"),
        (lambda: model.sample(1, num_steps=65), "num_steps=65"),
        (lambda: model.sample(1, length=10**5), "exceed the"),
        (lambda: model.sample(2.5), "number=2.5 must be a whole number"),
        (lambda: model.sample(1, top_k=5.0), "top_k=5.0 must be a whole number"),
        (lambda: model.infill("no gap"), "no [MASK] in it"),
        (lambda: model.infill(""), "no [MASK] in it"),
        (lambda: model.infill(3), "no [MASK] in it"),
        (lambda: model.denoise(-1), "index=-1 must be 0 or more"),
        (lambda: model.nll(["the cat"], batch_size=-1), "batch_size=-1 must lie in 1"),
        (lambda: model.nll(["the cat"], seed=-1), "seed=-1 must lie in 0"),
        (lambda: model.nll(["the cat"], num_steps=8.7), "num_steps=8.7 must be a whole number"),
        (lambda: model.nll(["the cat"], num_steps=float("nan")), "num_steps=nan must be a whole number"),
        (lambda: model.film(tmp_path / "f.mp4"), "must end in .html or .gif"),
        (lambda: model.film(tmp_path / "f.html", 101), "a film of 101 texts: at most 100"),
        (lambda: TextModel.load(tmp_path, precision="half"), "no process.json"),
        (lambda: model.denoise(infill="a [MASK]", length=3), "give length or infill, not both"),
        (lambda: model.nll("one text"), "a list of texts is needed"),
        (lambda: model.nll(["a", 3]), "text 1 is 3, not a string"),
        (lambda: model.nll(["the cat", " \n"]), "text 1 is"),
        (lambda: model.nll(["the cat"], estimator="best"), "estimator="),
        (lambda: model.generate(["a"]), "trained on text; use sample, infill or nll"),
        (lambda: model_of_pairs.sample(), "trained on pairs; use generate"),
        (lambda: model_of_pairs.nll(["a"]), "trained on pairs; use generate"),
        (lambda: model_of_pairs.generate("one text"), "a list of texts is needed"),
        (lambda: model_of_pairs.generate(["a"], candidates=0), "mbr_size=0 must lie in 1"),
        (lambda: TextModel.load(tmp_path / "nothing"), "no such folder"),
    ):
        with pytest.raises(UserError) as error:
            wrong()
        assert message in str(error.value) and "\n" not in str(error.value)


def test_an_overlong_text_is_cut_with_a_note(model: TextModel, capsys) -> None:
    long = " ".join(SENTENCES[:30])
    found = model.nll([long, SENTENCES[0]], num_steps=4)
    assert "1 cut to the longest length" in capsys.readouterr().err
    assert found.tokens[0] == model.parts.max_length - 2 and found.words[0] < len(long.split())


def test_an_unknown_precision_is_refused(trained: Path) -> None:
    with pytest.raises(UserError, match="precision='half' must be one of auto, fp32, bf16, fp16"):
        TextModel.load(trained, precision="half")


def test_numbers_of_numpy_are_numbers(model: TextModel) -> None:
    drawn = model.sample(np.int64(2), seed=np.int64(3), top_k=np.int64(9), temperature=np.float64(0.7), num_steps=16)
    assert drawn == model.sample(2, seed=3, **SETTINGS)


def test_what_is_no_bound_or_not_finite_is_said(trained: Path, model: TextModel, monkeypatch, capsys) -> None:
    TextModel.load(trained, posterior="released").nll(SENTENCES[:2], num_steps=4)
    assert "not bounds" in capsys.readouterr().err
    monkeypatch.setattr(Tally, "means", lambda self: torch.tensor([float("nan")]))
    with pytest.raises(UserError, match="not finite"):
        model.nll(SENTENCES[:1], num_steps=4)


def test_the_exact_likelihood_of_the_ordered_sampler(model: TextModel) -> None:
    found = model.nll(SENTENCES[:3], estimator="exact", order="left-to-right", tokens_per_step=2)
    assert found.draws_error is None and all(0 < nats < math.inf for nats in found.nats)
    assert model.nll(SENTENCES[:3], estimator="exact", top_k=1).nats == [math.inf] * 3
    (text,) = model.sample(1, sampler="ordered", top_k=1, length=4)
    assert model.nll([text], estimator="exact", top_k=1).nats == [0.0]
    with pytest.raises(UserError, match="give tokens_per_step"):
        model.nll(SENTENCES[:1], estimator="exact", num_steps=4)
    with pytest.raises(UserError, match="order is for estimator=exact"):
        model.nll(SENTENCES[:1], order="margin")
    with pytest.raises(UserError, match="sampler: no setting of nll; the settings are temperature, "):
        model.nll(SENTENCES[:1], estimator="exact", sampler="ordered")
