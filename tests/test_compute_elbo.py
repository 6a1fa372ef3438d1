"""compute_elbo.py: keys and figures of its report, the warning about the released posterior, refused input."""

import json
from pathlib import Path

import pytest
import torch

import compute_elbo
from checkpoint.folder import load_checkpoint
from evaluation.likelihood_report import Likelihood
from tests.conftest import call

KEYS = {
    "nats_per_sequence", "bits_per_token", "ppl_token", "ppl_word", "num_steps", "num_sequences", "num_tokens",
    "num_words", "network_evaluations", "standard_error_nats",
}  # fmt: skip


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch, trained: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    def run(*flags: object) -> tuple[int, str, str]:
        base = [
            "--checkpoint",
            trained,
            "--data",
            corpus,
            "--cache_dir",
            tmp_path / "cache",
            "--limit",
            24,
            "--threads",
            1,
        ]
        code = call(compute_elbo.main, monkeypatch, *base, *flags)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_json_report_is_one_object_with_the_documented_keys(score) -> None:
    code, out, _ = score("--num_steps", 16, "--json")
    report = json.loads(out)
    assert code == 0 and set(report) >= KEYS and report["num_steps"] == 16 and report["num_sequences"] == 24
    assert report["bits_per_token"] < 0.7 * report["unigram_bits_per_token"]


def test_the_nats_of_each_sentence_are_written_with_its_number(score, tmp_path: Path) -> None:
    """Their mean is the reported one; a sentence scored alone has the same number of nats."""
    code, out, _ = score("--num_steps", 16, "--json", "--per_sentence", tmp_path / "each.jsonl")
    each = [json.loads(line) for line in (tmp_path / "each.jsonl").read_text().splitlines()]
    mean = sum(line["nats"] for line in each) / 24
    assert code == 0 and mean == pytest.approx(json.loads(out)["nats_per_sequence"])
    assert len({line["sentence"] for line in each}) == 24
    score("--num_steps", 16, "--limit", 0, "--per_sentence", tmp_path / "all.jsonl")
    whole = [json.loads(line)["nats"] for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert len(whole) == 240 and [whole[line["sentence"]] for line in each] == pytest.approx(
        [line["nats"] for line in each], rel=1e-5
    )


def test_a_path_that_cannot_be_written_is_refused_before_scoring(score, tmp_path: Path) -> None:
    code, _, err = score("--per_sentence", tmp_path)
    assert code == 2 and err.count("\n") == 1 and "per_sentence" in err


@pytest.mark.parametrize(
    ("flags", "steps"),
    [([], 64), (["--num_steps", 5], 5), (["--eval_step_size", 16], 4), (["--eval_step_size", 10], 7)],
)
def test_steps_are_given_by_number_or_by_size(score, flags: list, steps: int) -> None:
    assert json.loads(score("--json", "true", *flags)[1])["num_steps"] == steps


def test_the_text_report_shows_every_figure(score) -> None:
    _, out, err = score("--num_steps", 4)
    for word in ("bits/token", "per token", "per word", "nats/sequence", "standard error", "prior", "reconstruction",
                 "4 steps", "network evaluations", "24 sequences", "tokens", "words"):  # fmt: skip
        assert word in out
    assert err == ""


def test_the_released_posterior_is_reported_as_not_a_bound(score) -> None:
    _, out, err = score("--posterior", "released", "--json", "true")
    assert "not a bound" in err and json.loads(out)["bits_per_token"] > 0


def test_other_estimators_report_their_error_and_their_cost(score) -> None:
    reports = {}
    for name in ("stratified", "trajectory"):
        flags = ["--evaluations", 4] if name == "stratified" else []
        _, out, _ = score("--estimator", name, "--target_se", 0.05, "--json", "true", *flags)
        reports[name] = json.loads(out)
        assert reports[name]["estimator"] == name
        assert 0 < reports[name]["draws_error_nats"] <= 0.05 * reports[name]["nats_per_sequence"]
        assert reports[name]["network_evaluations"] >= 8


def test_bf16_changes_the_bound_by_at_most_2_percent(score) -> None:
    fp32, bf16 = (
        json.loads(score("--json", "true", "--num_steps", 8, "--precision", p)[1])["bits_per_token"]
        for p in ("fp32", "bf16")
    )
    assert bf16 == pytest.approx(fp32, rel=0.02) and bf16 != fp32


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_steps", 65], "must lie in 1..64"),
        (["--eval_step_size", 65], "must lie in 1..64"),
        (["--num_steps", 4, "--eval_step_size", 4], "not both"),
        (["--num_steps", -1], "num_steps=-1 must be a whole number in 0..1000000, or inf"),
        (["--data", "missing.txt"], "missing.txt: no such file"),
        (["--checkpoint", "nowhere"], "checkpoint nowhere: no such folder"),
        (["--batch_size", 0], "batch_size=0 must lie in 1..10000000"),
        (["--evaluations", 4], "does not apply to windows"),
        (["--estimator", "best"], "estimator"),
        (["--target_se", 2], "target_se=2.0 must lie in"),
        (["--estimator", "trajectory", "--posterior", "released"], "with a number of steps it has windows, stratified"),
        (["--estimator", "masked-count"], "estimator=masked-count does not suit this process"),
    ],
)
def test_bad_input_is_a_one_line_error_with_exit_code_2(score, flags: list, message: str) -> None:
    code, out, err = score(*flags)
    assert code == 2 and message in err and err.count("\n") == 1 and out == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_bound_is_an_error(score, monkeypatch, trained: Path, value: float) -> None:
    run = load_checkpoint(str(trained), torch.device("cpu"))
    name, weights = next((n, w) for n, w in run.denoiser.network.named_parameters() if w.ndim == 2)
    with torch.no_grad():
        weights[:, 3] = value
    monkeypatch.setattr("checkpoint.folder.load_checkpoint", lambda *_, **__: run)
    for flags in (["--json"], [], ["--estimator", "trajectory"], ["--estimator", "trajectory", "--target_se", 0.1]):
        code, out, err = score("--num_steps", 4, *flags)
        assert code == 2 and out == "" and err.count("\n") == 1 and "finite" in err
        assert "--target_se" in flags or f"{name} holds NaN or infinity" in err


def test_the_error_for_an_infinite_bound_names_a_remedy(score, monkeypatch) -> None:
    infinite = Likelihood(float("inf"), 1.0, 0.0, 1.0, 12.0, 1, 3, 2, 8)
    monkeypatch.setattr("evaluation.likelihood.score_text", lambda *_, **__: infinite)
    for precision, message in (("bf16", "precision=bf16 may be too coarse"), ("fp32", "--limit 1")):
        code, out, err = score("--precision", precision)
        assert code == 2 and out == "" and message in err and "nats_per_sequence is inf" in err


def test_the_exact_likelihood_of_the_ordered_sampler(score, tmp_path: Path) -> None:
    """No draws, one forward pass a token or fewer; the same at any batch size."""
    flags = ["--estimator", "exact", "--order", "margin", "--json", "--limit", 8]
    code, out, _ = score(*flags, "--per_sentence", tmp_path / "each.jsonl")
    one = json.loads(out)
    assert code == 0 and one["num_steps"] is None and one["draws_error_nats"] == 0 and one["excluded_sequences"] == 0
    assert (one["order"], one["tokens_per_step"], one["temperature"]) == ("margin", 1, 1.0)
    assert one["network_evaluations"] == pytest.approx(one["num_tokens"] / 8, abs=0.05)
    score(*flags, "--batch_size", 3, "--per_sentence", tmp_path / "other.jsonl")
    first, second = (
        [json.loads(line)["nats"] for line in (tmp_path / f"{name}.jsonl").open()] for name in ("each", "other")
    )
    assert first == pytest.approx(second, rel=1e-5) and sum(first) / 8 == pytest.approx(one["nats_per_sequence"])
    all_at_once = json.loads(score(*flags, "--tokens_per_step", 1000)[1])
    assert all_at_once["network_evaluations"] == 1
    assert all_at_once["nats_per_sequence"] > one["nats_per_sequence"]  # independent tokens predict worse
    _, out, _ = score("--estimator", "exact", "--limit", 8, "--temperature", 0.9)
    assert "exact -log p of sampler=ordered, order confidence, 1 token a step, temperature=0.9; " in out


def test_excluded_sentences_are_counted_and_never_a_number(score, tmp_path: Path) -> None:
    flags = ["--estimator", "exact", "--top_k", 1, "--limit", 8]
    code, out, _ = score(*flags, "--json", "--per_sentence", tmp_path / "each.jsonl")
    report = json.loads(out)
    each = [json.loads(line)["nats"] for line in (tmp_path / "each.jsonl").read_text().splitlines()]
    assert code == 0 and report["excluded_sequences"] == 8 == each.count(None)
    assert report["nats_per_sequence"] is report["bits_per_token"] is report["ppl_token"] is None
    assert report["standard_error_nats"] is None and report["unigram_bits_per_token"] > 0
    _, out, _ = score(*flags)
    assert out.startswith("infinite: the sampler never draws 8 of 8 sequences\nexact -log p of sampler=ordered")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--estimator", "exact", "--num_steps", 8], "num_steps=8: the sampler of estimator=exact has no time"),
        (["--order", "margin"], "order is for estimator=exact, not auto; add --estimator exact"),
        (["--estimator", "exact", "--evaluations", 8], "evaluations does not apply to estimator=exact"),
        (["--estimator", "exact", "--posterior", "released"], "estimator=exact is the likelihood of sampler=ordered"),
    ],
)
def test_settings_that_do_not_fit_an_exact_likelihood(score, flags: list, message: str) -> None:
    code, _, err = score(*flags)
    assert code == 2 and message in err and err.count("\n") == 1
