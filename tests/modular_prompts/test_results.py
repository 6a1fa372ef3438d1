"""results.py: means and errors are those of the definitions; lines are kept, and settings may not change."""

from pathlib import Path

import pytest

from modular_prompts.results import Results, table, without_prompt
from utils.errors import UserError


def line(task: str, method: str, seed: int, score: float, metric: str = "accuracy") -> dict:
    return {"task": task, "rows": "1", "method": method, "seed": seed, "score": score, "metric": metric}


def test_the_last_line_is_the_mean_over_tasks_with_its_error_over_seeds() -> None:
    records = [
        line("a", "x", 0, 0.5), line("a", "x", 1, 0.7), line("b", "x", 0, 0.1, "macro F1"), line("b", "x", 1, 0.5),
        line("a", "y", 0, 0.25),
    ]  # fmt: skip
    head, first, second, last = (row.split() for row in table(records, ["a", "b"], ["x", "y"]).splitlines())
    assert head == ["task", "x", "y"]
    assert first == ["a", "0.600", "±", "0.100", "0.250"]
    assert second == ["b*", "0.300", "±", "0.200", "-"]
    assert last == ["mean", "0.450", "±", "0.150", "-"]  # seeds 0.3 and 0.6; y lacks a task


def test_tasks_without_a_prompt_are_counted() -> None:
    records = [line("a", "x", seed, 0.5) for seed in (0, 1)] + [line("b", "x", 0, 0.5), line("a", "y", 0, 0.5)]
    for record in (records[1], records[2]):
        record["score_of_rejected"] = 0.25
    assert without_prompt(records, ["a", "b"], ["x", "y"]) == [
        "x: prompt dropped for a (1 of 2 seeds), b (1 of 1 seeds); the network alone is better on development rows"
    ]


def test_lines_are_found_again(tmp_path: Path) -> None:
    with Results.opened(tmp_path / "new", {"shots": 4, "seeds": "1"}) as results:
        results.add(line("a", "x", 0, 0.5))
    with Results.opened(tmp_path / "new", {"shots": 4, "seeds": "1,2"}) as results:
        assert results.has("a", "1", "x", 0) and not results.has("a", "1", "x", 1) and len(results.records) == 1
        with pytest.raises(UserError, match="holds results of another task a, or its files changed"):
            results.has("a", "2", "x", 0)


def test_other_settings_and_another_process_are_refused(tmp_path: Path) -> None:
    again = pytest.raises(UserError, match="another process writes there; wait for it")
    with Results.opened(tmp_path, {"shots": 4}), again, Results.opened(tmp_path, {"shots": 4}):
        pass
    with Results.opened(tmp_path, {"shots": 8}) as results:  # no line binds the folder yet
        results.add(line("a", "x", 0, 0.5))
    other = pytest.raises(UserError, match="made with shots=8, not 4; give another folder")
    with other, Results.opened(tmp_path, {"shots": 4}):
        pass
    (tmp_path / "settings.json").write_text("[]")
    damaged = pytest.raises(UserError, match=r"settings.json: missing or damaged; give another folder")
    with damaged, Results.opened(tmp_path, {"shots": 8}):
        pass


def test_an_interrupted_line_is_removed_and_a_damaged_one_refused(tmp_path: Path) -> None:
    with Results.opened(tmp_path, {}) as results:
        results.add(line("a", "x", 0, 0.5))
    file = tmp_path / "results.jsonl"
    whole = file.read_text()
    file.write_text(whole + whole[:20])
    with Results.opened(tmp_path, {}) as results:
        results.add(line("a", "x", 1, 0.5))
    assert file.read_text().startswith(whole) and len(file.read_text().splitlines()) == 2
    for content in ("{}", "[]", '{"task": 3', "\xff"):
        file.write_text(f"{content}\n{whole}", encoding="latin-1")
        damaged = pytest.raises(UserError, match=r"results.jsonl:1: damaged .*; remove that line")
        with damaged, Results.opened(tmp_path, {}):
            pass
