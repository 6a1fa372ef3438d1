"""referee.py: every row of the table is what compute_elbo.py prints for that sampler alone."""

import json
import math
from pathlib import Path

import pytest

import compute_elbo
from diffusion.options import ORDERS, BoundArgs
from evaluation import referee
from evaluation.options import RefereeArgs
from tests.conftest import call
from tests.diffusion import test_family
from utils.errors import UserError

SMALL = ["--table_orders", "left-to-right,confidence", "--table_tokens", "1,3"]


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch, trained: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Return a function that scores 12 sentences; it returns exit code, standard output and error."""

    def run(*flags: object) -> tuple[int, str, str]:
        base = ["--checkpoint", trained, "--data", corpus, "--cache_dir", tmp_path / "cache", "--limit", 12]
        code = call(compute_elbo.main, monkeypatch, *base, "--threads", 1, *flags)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_rows_are_those_of_single_samplers(score) -> None:
    code, out, _ = score("--referee", *SMALL, "--json", "--table_steps", "16,500")
    rows = {row["sampler"]: row for row in json.loads(out)["samplers"]}
    assert code == 0
    orders = [f"{order}, {k} per pass" for order in ("left-to-right", "confidence") for k in (1, 3)]
    assert list(rows) == ["p_theta, 16 steps", "p_theta, 64 steps", *orders]  # T is 64
    for order, k in (("left-to-right", 3), ("confidence", 1)):
        alone = json.loads(score("--estimator", "exact", "--order", order, "--tokens_per_step", k, "--json")[1])
        row = rows[f"{order}, {k} per pass"]
        assert row["nats_per_sequence"] == pytest.approx(alone["nats_per_sequence"], rel=1e-6)
        assert row["ppl_token"] == pytest.approx(alone["ppl_token"], rel=1e-6) and row["draws_error_bits"] == 0
        assert row["forwards_per_token"] == pytest.approx(
            alone["network_evaluations"] * 12 / alone["num_tokens"], abs=0.01
        )
    bound = json.loads(score("--estimator", "trajectory", "--evaluations", 2, "--num_steps", 16, "--json")[1])
    assert rows["p_theta, 16 steps"]["nats_per_sequence"] == pytest.approx(bound["nats_per_sequence"], rel=1e-6)
    assert 0 < rows["p_theta, 16 steps"]["forwards_per_token"] <= 1
    assert rows["left-to-right, 1 per pass"]["forwards_per_token"] == pytest.approx(1, abs=1e-12)


def test_the_table_and_the_picture_show_every_sampler(score, tmp_path: Path) -> None:
    code, out, err = score("--referee", *SMALL, "--table_steps", 8, "--picture", tmp_path / "p.png")
    lines = out.splitlines()
    assert code == 0 and lines[0].split() == ["sampler", "passes/token", "bits/token", "PPL/token", "PPL/word"]
    assert len(lines) == 7 and lines[2].startswith("left-to-right, 1 per pass") and " 1.00 " in lines[2]
    assert lines[-1].startswith("12 sequences, ")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG") and "picture written to" in err


def test_filters_belong_to_the_orders_and_excluded_sentences_are_counted(score) -> None:
    flags = ["--referee", "--table_orders", "margin", "--table_tokens", 1, "--table_steps", 8]
    _, out, _ = score(*flags, "--top_k", 1)
    assert "infinite (12 of 12)" in out.splitlines()[2] and "±" in out.splitlines()[1]
    warm = json.loads(score(*flags, "--temperature", 2, "--json")[1])["samplers"]
    plain = json.loads(score(*flags, "--json")[1])["samplers"]
    assert score(*flags, "--temperature", 2)[1].splitlines()[-1].endswith("; temperature=2")
    assert (
        warm[1]["temperature"] == 2
        and warm[0] == plain[0]
        and warm[1]["nats_per_sequence"] > plain[1]["nats_per_sequence"]
    )


def test_a_judge_scores_samples_of_each_sampler(score, monkeypatch, tmp_path: Path, corpus: Path, capsys) -> None:
    assert test_family.train(monkeypatch, "ar", corpus, tmp_path, "--max_steps", 20)[0] == 0
    capsys.readouterr()
    flags = ["--referee", "--table_orders", "entropy", "--table_tokens", "1", "--table_steps", 8, "--json"]
    code, out, err = score(*flags, "--judge_model", tmp_path / "run", "--judge_samples", 5)
    assert code == 0, err
    rows = json.loads(out)["samplers"]
    assert all(row["gen_ppl"] > 1 and row["token_entropy"] > 0 and row["gen_tokens"] > 5 for row in rows)
    code, out, _ = score(*flags[:-1], "--judge_model", tmp_path / "run", "--judge_samples", 5)
    assert out.splitlines()[0].endswith("gen. PPL  entropy")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--referee", "--table_orders", "best"], "table_orders=best: 'best' is none of confidence, entropy"),
        (["--referee", "--table_tokens", "0"], "table_tokens=0: each must lie in 1"),
        (["--referee", "--table_tokens", "a"], "table_tokens=a: must be whole numbers, separated by commas"),
        (["--referee", "--table_steps", "-4"], "table_steps=-4: each must lie in 1"),
        (["--referee", "--num_steps", 8], "num_steps does not apply to --referee"),
        (["--referee", "--estimator", "windows"], "estimator, evaluations and target_se do not apply to --referee"),
        (["--referee", "--picture", "p.pdf"], "picture=p.pdf: must end in .png"),
        (["--picture", "p.png"], "picture is for the table of samplers; add --referee"),
        (["--table_steps", 8], "table_steps is for the table of samplers; add --referee"),
        (["--referee", "--order", "margin"], "order does not apply to --referee; give --table_orders margin"),
        (["--referee", "--tokens_per_step", 2], "give --table_tokens 2"),
        (["--referee", "--posterior", "released"], "has no sampler=ordered"),
        (["--referee", "--per_sentence", "each.jsonl"], "per_sentence does not apply to --referee"),
        (["--referee", "--judge_model", "nowhere"], "nowhere"),
    ],
)
def test_settings_that_do_not_fit(score, flags: list, message: str) -> None:
    code, out, err = score(*flags)
    assert code == 2 and message in err and err.count("\n") == 1 and not out


@pytest.mark.parametrize("name", ["sedd", "d3pm", "mdlm"])
def test_other_processes_have_a_table(name: str, monkeypatch, tmp_path: Path, corpus: Path, capsys) -> None:
    """SEDD has no bound at whole steps, D3PM none in the limit; a network with time input gets no count of passes."""
    assert test_family.train(monkeypatch, name, corpus, tmp_path, "--max_steps", 3)[0] == 0
    base = [
        "--checkpoint",
        tmp_path / "run",
        "--data",
        corpus,
        "--cache_dir",
        tmp_path / "cache",
        "--limit",
        4,
        "--json",
    ]
    capsys.readouterr()
    assert call(compute_elbo.main, monkeypatch, *base, "--threads", 1, "--referee", *SMALL, "--table_steps", 4) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)["samplers"]
    bounds = {"sedd": ["limit"], "d3pm": ["4 steps"], "mdlm": ["4 steps", "limit"]}[name]
    assert [row["sampler"] for row in rows[:-4]] == [f"p_theta, {which}" for which in bounds]
    assert all(row["ppl_token"] > 1 for row in rows) and rows[-1]["forwards_per_token"] < 1
    timed = "the network has a time input" in captured.err
    assert timed == (name != "mdlm") and all((row["forwards_per_token"] is None) == timed for row in rows[:-4])


def test_sentences_with_unknown_tokens_are_left_out(score, tmp_path: Path, corpus: Path) -> None:
    """They are scored by the bound, but never sampled."""
    lines = corpus.read_text().splitlines()[:5]
    (tmp_path / "odd.txt").write_text("\n".join([*lines, "the cat sees 猫."]) + "\n")
    odd = ["--data", tmp_path / "odd.txt", "--limit", 0, "--json"]
    _, out, err = score("--referee", *SMALL, *odd)
    assert "1 of 6 sentences contain [UNK], which is never sampled; left out" in err
    assert all(
        row["num_sequences"] == 5 and row["excluded_sequences"] in (0, None) for row in json.loads(out)["samplers"]
    )
    (tmp_path / "odd.txt").write_text("the cat sees 猫.\n")
    code, _, err = score("--estimator", "exact", *odd)
    assert code == 2 and "every sentence contains [UNK]" in err


def test_a_process_told_the_time_has_no_count_of_forward_passes() -> None:
    """Its bound is estimated by passes that no sampler makes."""

    class Process:
        estimators, limit_estimators = ("windows", "stratified", "trajectory"), ("masked-count", "trajectory")
        limit_samplers, num_steps = (), math.inf

    class Model:
        process = Process()
        denoiser = type("Denoiser", (), {"time_conditioned": True})

    steps, limit, *orders = referee.samplers(Model(), RefereeArgs(referee=True, table_steps="128"), BoundArgs())
    assert steps.bound.estimator == "windows" and steps.num_steps == 128
    assert limit.bound.estimator == "masked-count" and limit.sampling is None
    assert len(orders) == 4 * len(ORDERS)
    with pytest.raises(UserError, match="each must lie in"):
        RefereeArgs(referee=True, table_tokens="1,-2")
