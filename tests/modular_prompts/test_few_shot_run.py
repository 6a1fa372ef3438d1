"""few_shot_run.py: tune and blackbox write results and prompts, go on where they ended, and refuse what cannot be."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modular_prompts import few_shot, few_shot_run
from modular_prompts.few_shot import Outcome, Problem
from modular_prompts.frozen import open_prompts
from modular_prompts.tasks import load_task
from tests.conftest import PAIRS, write_jsonl
from tests.modular_prompts.test_frozen import Machine
from tests.modular_prompts.toy_tasks import TINY, WORDS, command, make_network, make_task

QUICK = ("--router_steps", 10, "--prompt_steps", 10, "--network_steps", 5)


@pytest.fixture
def world(tmp_path: Path, tokenizer, monkeypatch, capsys):  # noqa: ANN001, ANN201
    """Return a function that runs a command on a new task; it returns exit code, standard output and error."""
    network = make_network(tmp_path / "net", tokenizer)
    make_task(tmp_path / "animal", WORDS["animal"])
    make_task(tmp_path / "verb", WORDS["verb"])
    base = ["--model_name_or_path", network, *TINY]
    flags = ["--num_modules", 3, "--prompt_length", 2, "--max_steps", 4, "--eval_steps", 4, "--max_length", 40]
    flags += ["--tasks", tmp_path / "animal", "--output_dir", tmp_path / "pre", "--intrinsic_size", 4]
    assert command(monkeypatch, "pretrain", *base, *flags) == 0

    def run(name: str, output: str, *flags: object) -> tuple[int, str, str]:
        capsys.readouterr()
        where = ["--prompts", tmp_path / "pre" / "checkpoint", "--tasks", tmp_path / "verb"]
        more = ["--shots", 8, "--output_dir", tmp_path / output, *(QUICK if name == "tune" else ())]
        code = command(monkeypatch, name, *base, *where, *more, *flags)
        return code, *capsys.readouterr()

    return run


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_every_method_has_a_line_a_seed_and_a_column(world, tmp_path: Path) -> None:  # noqa: ANN001
    methods = "none,uniform,router,router-then-prompts,prompts,random-prompt,linear-probe,full,lora"
    code, out, _ = world("tune", "t", "--methods", methods, "--seeds", "3,5")
    lines = lines_of(tmp_path / "t")
    assert code == 0 and [(line["seed"], line["method"]) for line in lines] == [
        (seed, method) for seed in (3, 5) for method in methods.split(",")
    ]
    head, row, mean = out.splitlines()[:3]
    assert head.split() == ["task", *methods.split(",")] and row.split()[0] == "verb" and mean.split()[0] == "mean"
    expected = sum(line["score"] for line in lines if line["method"] == "router") / 2
    assert float(row.split()[1 + 3 * 2]) == pytest.approx(expected, abs=6e-4)
    trained = {line["method"]: line["trained"] for line in lines}
    assert (trained["none"], trained["uniform"], trained["router"], trained["prompts"]) == (0, 0, 3, 2 * 2 * 32)
    assert trained["router-then-prompts"] == 3 + trained["random-prompt"]


def test_the_prompts_of_the_first_seed_are_saved_and_give_its_score(world, tmp_path: Path) -> None:  # noqa: ANN001
    code, out, _ = world("tune", "t", "--seeds", "3,5")
    line = next(
        line for line in lines_of(tmp_path / "t") if (line["method"], line["seed"]) == ("router-then-prompts", 3)
    )
    reader, saved = open_prompts(str(tmp_path / "t" / "checkpoint"), str(tmp_path / "net"), Machine)
    task = load_task(tmp_path / "verb")
    examples = reader.examples((task.card, task.test))
    assert examples.accuracy(saved.prompt("verb")) == line["accuracy"]
    assert sorted(saved.routers) == ["animal", "verb"] and saved.cards["verb"] == task.card
    assert code == 0 and "predict --prompts" in out and "--task verb --data MY_ROWS.jsonl" in out


def test_a_task_that_is_answered_better_alone_gets_no_prompt(world, tmp_path: Path, monkeypatch, capsys) -> None:  # noqa: ANN001
    monkeypatch.setattr(Problem, "score_alone", 2.0)
    wild = 30 * torch.randn(1, 2, 2, 32, generator=torch.Generator().manual_seed(1))
    monkeypatch.setitem(few_shot_run.BY_GRADIENT, "router", lambda _: Outcome(3, wild, torch.zeros(1, 3)))
    code, out, _ = world("tune", "t", "--seeds", 3, "--methods", "none,router")
    assert code == 0 and "router: prompt dropped for verb (1 of 1 seeds); the network alone" in out
    none, router = lines_of(tmp_path / "t")
    assert "score_of_rejected" not in none and none["score"] == router["score"]
    prompts = tmp_path / "t" / "checkpoint"
    reader, saved = open_prompts(str(prompts), str(tmp_path / "net"), Machine)
    task = load_task(tmp_path / "verb")
    assert reader.examples((task.card, task.test)).accuracy(wild) == router["score_of_rejected"]
    assert saved.prompt("verb").shape == (1, 1, 0, 32)
    base = ["--model_name_or_path", tmp_path / "net", *TINY, "--prompts", prompts]
    assert command(monkeypatch, "evaluate", *base, "--tasks", tmp_path / "verb") == 0
    assert len(set(capsys.readouterr().out.splitlines()[1].split()[3:5])) == 1  # without, with the task's prompt
    assert command(monkeypatch, "predict", *base, "--task", "verb", "--data", tmp_path / "verb" / "test.jsonl") == 0
    found = [json.loads(line)["prediction"] for line in capsys.readouterr().out.splitlines()]
    right = [line == row.options[row.label] for line, row in zip(found, task.test, strict=True)]
    assert sum(right) / len(right) == none["accuracy"]


def test_a_dropped_prompt_does_not_replace_an_earlier_one(world, tmp_path: Path, monkeypatch) -> None:  # noqa: ANN001
    assert world("tune", "t", "--seeds", 3, "--methods", "router", "--drop_worse", "false")[0] == 0
    kept = (tmp_path / "t" / "checkpoint" / "prompts.safetensors").read_bytes()
    monkeypatch.setattr(few_shot, "unless_worse_than_none", lambda _, own: replace(own, rejected=own.prompt))
    again = ["--seeds", 3, "--drop_worse", "false", "--methods", "router,router-then-prompts"]
    assert world("tune", "t", *again)[0] == 0
    assert (tmp_path / "t" / "checkpoint" / "prompts.safetensors").read_bytes() == kept


@pytest.mark.parametrize("name", ["tune", "blackbox"])
def test_worse_prompts_are_kept_on_demand(world, tmp_path: Path, monkeypatch, name: str) -> None:  # noqa: ANN001
    pytest.importorskip("cma")
    monkeypatch.setattr(Problem, "score_alone", 2.0)
    flags = ["--seeds", 3, "--methods", "router"]
    assert world(name, "yes", *flags)[0] == 0
    assert world(name, "no", *flags, "--drop_worse", "false")[0] == 0
    (dropped,), (kept,) = lines_of(tmp_path / "yes"), lines_of(tmp_path / "no")
    assert dropped["score_of_rejected"] == kept["score"] and "score_of_rejected" not in kept


@pytest.mark.parametrize("name", ["tune", "blackbox"])
def test_the_development_rows_are_as_many_as_wanted(world, monkeypatch, name: str) -> None:  # noqa: ANN001
    pytest.importorskip("cma")
    numbers: list[int] = []

    def noted(problem, outcome):  # noqa: ANN001, ANN202
        numbers.append(len(problem.develop[1]))
        return outcome

    monkeypatch.setattr(few_shot, "unless_worse_than_none", noted)
    assert world(name, "t", "--seeds", 3, "--methods", "uniform", "--develop_shots", 2)[0] == 0
    assert numbers == [2 * 2]


def test_a_second_call_adds_what_is_missing(world, tmp_path: Path, monkeypatch) -> None:  # noqa: ANN001
    assert world("tune", "t", "--methods", "uniform,router", "--seeds", "3")[0] == 0
    first = (tmp_path / "t" / "results.jsonl").read_text()
    assert world("tune", "t", "--methods", "router,prompts", "--seeds", "3,5")[0] == 0
    text = (tmp_path / "t" / "results.jsonl").read_text()
    assert text.startswith(first) and [(line["method"], line["seed"]) for line in lines_of(tmp_path / "t")[2:]] == [
        ("prompts", 3), ("router", 5), ("prompts", 5)
    ]  # fmt: skip
    code, _, err = world("tune", "t", "--shots", 4)
    assert code == 2 and "results were made with shots=8, not 4; give another folder" in err


def test_a_black_box_search_reports_its_calls(world, tmp_path: Path) -> None:  # noqa: ANN001
    pytest.importorskip("cma")
    flags = ["--calls", 21, "--code_calls", 11, "--population", 5, "--seeds", 3]
    code, out, _ = world("blackbox", "b", *flags, "--methods", "uniform,router,router-then-code")
    calls = {line["method"]: line.get("calls") for line in lines_of(tmp_path / "b")}
    assert code == 0 and calls == {"uniform": None, "router": 21, "router-then-code": 32}
    _, saved = open_prompts(str(tmp_path / "b" / "checkpoint"), str(tmp_path / "net"), Machine)
    assert not torch.equal(saved.prompts["verb"], torch.zeros(2, 2, 32))


def test_prompts_are_kept_as_soon_as_they_are_learned(world, tmp_path: Path, monkeypatch) -> None:  # noqa: ANN001
    original = few_shot_run.BY_GRADIENT["router"]

    def interrupted(problem):  # noqa: ANN001, ANN202
        if problem.seed == 5:
            raise KeyboardInterrupt
        return original(problem)

    monkeypatch.setitem(few_shot_run.BY_GRADIENT, "router", interrupted)
    assert world("tune", "t", "--seeds", "3,5", "--methods", "router")[0] == 130
    about = json.loads((tmp_path / "t" / "checkpoint" / "prompts.json").read_text())
    assert "verb" in about["tasks"] and len(lines_of(tmp_path / "t")) == 1
    monkeypatch.setitem(few_shot_run.BY_GRADIENT, "router", original)
    code, out, _ = world("tune", "t", "--seeds", "3,5", "--methods", "router")
    assert code == 0 and len(lines_of(tmp_path / "t")) == 2 and "--task verb" in out


def test_results_of_other_prompts_or_rows_are_not_reused(world, tmp_path: Path) -> None:  # noqa: ANN001
    assert world("tune", "t", "--seeds", "3", "--methods", "uniform")[0] == 0
    with (tmp_path / "verb" / "train.jsonl").open("a") as file:
        file.write(json.dumps({"text": "the cat likes new things", "label": "likes"}) + "\n")
    code, _, err = world("tune", "t", "--seeds", "3", "--methods", "uniform")
    assert code == 2 and "holds results of another task verb, or its files changed" in err
    tensors = load_file(tmp_path / "pre" / "checkpoint" / "prompts.safetensors")
    save_file(
        {**tensors, "pool.codes": tensors["pool.codes"] + 1}, tmp_path / "pre" / "checkpoint" / "prompts.safetensors"
    )
    code, _, err = world("tune", "t", "--seeds", "3", "--methods", "uniform")
    assert code == 2 and "its results were made with prompts_sha256=" in err


def test_too_many_shots_are_refused_at_once_and_leave_the_folder_free(world, tmp_path: Path) -> None:  # noqa: ANN001
    code, _, err = world("tune", "t", "--shots", 1000)
    assert code == 2 and "shots=1000: label 'likes' of verb has" in err
    assert world("tune", "t", "--seeds", "3", "--methods", "none,uniform")[0] == 0


def test_the_prompt_of_the_last_method_stays(world, tmp_path: Path) -> None:  # noqa: ANN001
    assert world("tune", "t", "--seeds", "3", "--methods", "router-then-prompts")[0] == 0
    kept = (tmp_path / "t" / "checkpoint" / "prompts.safetensors").read_bytes()
    assert world("tune", "t", "--seeds", "3", "--methods", "uniform,router-then-prompts,random-prompt")[0] == 0
    assert (tmp_path / "t" / "checkpoint" / "prompts.safetensors").read_bytes() == kept


def test_only_the_wanted_seeds_are_averaged(world, tmp_path: Path) -> None:  # noqa: ANN001
    assert world("tune", "t", "--seeds", "1,2,3", "--methods", "router")[0] == 0
    _, out, _ = world("tune", "t", "--seeds", "1", "--methods", "router")
    score = next(line["score"] for line in lines_of(tmp_path / "t") if line["seed"] == 1)
    assert out.splitlines()[1].split() == ["verb", f"{score:.3f}"]


def test_what_a_method_needs_is_checked_before_the_first_runs(world, tmp_path: Path, monkeypatch) -> None:  # noqa: ANN001
    write_jsonl(tmp_path / "who" / "train.jsonl", [{"src": f"a {i}", "trg": "b"} for i in range(40)])
    write_jsonl(tmp_path / "who" / "valid.jsonl", [{"src": "c", "trg": "d"}])
    tasks = f"{tmp_path / 'verb'},{tmp_path / 'who'}"
    code, _, err = world("tune", "t", "--methods", "none,linear-probe", "--tasks", tasks)
    assert code == 2 and "methods=linear-probe: who has no options" in err
    monkeypatch.setitem(sys.modules, "cma", None)
    code, _, err = world("blackbox", "b")
    assert code == 2 and "a black-box search needs the package cma" in err
    assert not (tmp_path / "t").exists() and not (tmp_path / "b").exists()


def test_prompts_are_not_replaced_by_their_own_results(world, tmp_path: Path) -> None:  # noqa: ANN001
    before = (tmp_path / "pre" / "checkpoint" / "prompts.json").read_bytes()
    code, _, err = world("tune", "pre")
    assert code == 2 and "it holds the prompts themselves, which would be replaced" in err
    assert (tmp_path / "pre" / "checkpoint" / "prompts.json").read_bytes() == before


def test_a_loss_that_is_not_finite_leaves_earlier_prompts(world, tmp_path: Path, monkeypatch) -> None:  # noqa: ANN001
    assert world("tune", "t", "--seeds", "3", "--methods", "router")[0] == 0
    kept = (tmp_path / "t" / "checkpoint" / "prompts.safetensors").read_bytes()
    monkeypatch.setattr("modular_prompts.tuning.Examples.loss", lambda *_: torch.tensor(torch.nan))
    code, _, err = world("tune", "t", "--seeds", "3", "--methods", "prompts")
    assert code == 2 and "the loss of tuning is nan; lower the learning rates" in err
    assert (tmp_path / "t" / "checkpoint" / "prompts.safetensors").read_bytes() == kept


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods", "magic"], "methods=magic: 'magic' is none of none, uniform"),
        (["--methods", ","], "methods=,: '' is none of none, uniform"),
        (["--shots", 100], "label 'likes' of verb has"),
        (["--prompts", "nowhere"], "prompts nowhere: no prompts.json there"),
        (["--tasks", "nowhere"], "tasks=nowhere: no task there"),
    ],
)
def test_bad_settings_are_refused_in_one_line(world, tmp_path: Path, flags: list, message: str) -> None:  # noqa: ANN001
    code, out, err = world("tune", "t", *flags)
    assert code == 2 and message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "t" / "checkpoint").exists()


def test_pairs_are_learned_on_a_checkpoint(trained_pairs: Path, tmp_path: Path, monkeypatch, capsys) -> None:  # noqa: ANN001
    for name in ("seen", "new"):
        rows = [{"src": pair["src"], "trg": pair["trg"] + " " + name} for pair in PAIRS[:100]]
        write_jsonl(tmp_path / name / "train.jsonl", rows[:80])
        write_jsonl(tmp_path / name / "valid.jsonl", rows[80:])
    base = ["--model_name_or_path", trained_pairs, *TINY]
    flags = ["--tasks", tmp_path / "seen", "--output_dir", tmp_path / "pre", "--prompt_length", 3, "--max_steps", 5]
    assert command(monkeypatch, "pretrain", *base, *flags) == 0
    methods = ["none", "uniform", "router", "router-then-prompts", "random-prompt", "full", "lora"]
    flags = ["--prompts", tmp_path / "pre" / "checkpoint", "--tasks", tmp_path / "new", "--output_dir", tmp_path / "t"]
    flags += ["--seeds", 1, "--shots", 16, *QUICK, "--methods", ",".join(methods)]
    assert command(monkeypatch, "tune", *base, *flags) == 0
    lines = {line["method"]: line for line in lines_of(tmp_path / "t")}
    assert list(lines) == methods and all(line["metric"] == "1 - bound / log V" for line in lines.values())
    assert lines["full"]["score"] > lines["none"]["score"]
    assert command(monkeypatch, "tune", *base, *flags, "--methods", "linear-probe") == 2
    assert "linear-probe: new has no options" in capsys.readouterr().err
