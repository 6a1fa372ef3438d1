"""few_shot.py: each method trains what it says, from the same rows at the same seed."""

from dataclasses import replace

import pytest
import torch

from modular_prompts import few_shot
from modular_prompts.few_shot import Outcome, Problem, mixture, unless_worse_than_none
from modular_prompts.options import Search, Stage, Stages
from tests.modular_prompts.test_baselines import accuracy, problem_of

METHODS = [
    few_shot.uniform,
    few_shot.router,
    few_shot.prompts,
    few_shot.router_then_prompts,
    few_shot.random_prompt,
    few_shot.random_prompt_longer,
]


@pytest.mark.parametrize("method", METHODS)
def test_network_and_modules_stay_and_equal_seeds_give_equal_prompts(method, tokenizer) -> None:  # noqa: ANN001
    problem, again = problem_of(tokenizer), problem_of(tokenizer)
    before = [value.clone() for value in problem.readout.denoiser.state_dict().values()]
    modules = problem.saved.pool.free.detach().clone()
    first, second = method(problem), method(again)
    assert torch.equal(first.prompt, second.prompt) and first.prompt.shape == (1, 2, 3, 32)
    assert all(map(torch.equal, before, problem.readout.denoiser.state_dict().values()))
    assert torch.equal(modules, problem.saved.pool.free)


def test_the_router_is_k_numbers_and_its_prompt_the_mixture(tokenizer) -> None:  # noqa: ANN001
    problem = problem_of(tokenizer)
    outcome = few_shot.router(problem)
    assert outcome.trained == 4 and torch.equal(outcome.prompt, mixture(problem.saved.pool, outcome.router))
    train = problem.readout.examples(problem.few)
    rows = torch.arange(len(train.labels))
    assert train.loss(outcome.prompt, rows) <= train.loss(few_shot.uniform(problem).prompt, rows)


def test_the_second_stage_starts_at_the_mixture_and_is_kept_only_if_development_agrees(tokenizer) -> None:  # noqa: ANN001
    problem = problem_of(tokenizer)
    stages = Stages(problem.stages.router, Stage(0, 1e-2, 16, 5))
    problem = Problem(problem.readout, problem.saved, problem.few, problem.develop, problem.test, stages, 0)
    assert torch.equal(few_shot.router_then_prompts(problem).prompt, few_shot.router(problem).prompt)
    wild = Stages(problem.stages.router, Stage(5, 1e3, 16, 5))
    wild = Problem(problem.readout, problem.saved, problem.few, problem.develop, problem.test, wild, 0)
    develop = problem.readout.examples(problem.develop)
    kept, start = few_shot.router_then_prompts(wild).prompt, few_shot.router(problem).prompt
    assert develop.score(kept) >= develop.score(start)


def test_the_router_starts_at_the_seen_task_that_fits_best(tokenizer, monkeypatch) -> None:  # noqa: ANN001
    problem = problem_of(tokenizer)
    good = problem.tuned_router
    seen = {"bad": -good, "good": good, "animal": 2 * good}  # its own name is that of an earlier result
    stages = Stages(Stage(0, 0.1))
    saved = replace(problem.saved, routers=seen)
    assert torch.equal(replace(problem, saved=saved, stages=stages).tuned_router, good)
    monkeypatch.setattr(few_shot, "COMPARED", 16)
    seen_rows: list[torch.Tensor] = []
    fewer = replace(problem, saved=saved, stages=stages)
    original = type(problem.train).loss
    monkeypatch.setattr(
        type(problem.train), "loss", lambda own, prompt, rows: seen_rows.append(rows) or original(own, prompt, rows)
    )
    assert torch.equal(fewer.tuned_router, good)
    labels = fewer.train.labels[seen_rows[0]]
    assert (
        len(labels) == 16
        and all(torch.equal(rows, seen_rows[0]) for rows in seen_rows)
        and len(set(labels.tolist())) == 2
    )
    uniform = replace(problem, saved=saved, stages=replace(stages, from_seen=False)).tuned_router
    assert torch.equal(uniform, torch.zeros(1, 4))


def test_a_prompt_is_kept_unless_the_development_rows_are_answered_better_without(tokenizer) -> None:  # noqa: ANN001
    problem, wild = problem_of(tokenizer), 30 * torch.randn(1, 2, 3, 32, generator=torch.Generator().manual_seed(0))
    alone, learned = problem.readout.plain(), Outcome(192, wild, router=torch.zeros(1, 4))

    def answered_by(part, reader, prompt):  # noqa: ANN001, ANN202
        """Return rows with the labels that a prompt gives."""
        right = reader.examples(part).choices(prompt).tolist()
        return part[0], [replace(row, label=n) for row, n in zip(part[1], right, strict=True)]

    within = replace(problem, develop=answered_by(problem.develop, problem.readout, wild))
    assert unless_worse_than_none(within, learned) is learned
    few = answered_by(problem.few, problem.readout, wild)  # the training rows have no say
    without = replace(problem, few=few, develop=answered_by(problem.develop, alone, alone.nothing))
    assert without.score_alone == 1 > without.development.score(wild)
    dropped = unless_worse_than_none(without, learned)
    assert dropped.prompt.shape == (1, 1, 0, 32) and dropped.rejected is wild and dropped.trained == 192
    assert accuracy(dropped, without) == accuracy(Outcome(0, alone.nothing, test=alone.examples(problem.test)), without)
    assert unless_worse_than_none(replace(without, stages=Stages(drop_worse=False)), learned) is learned
    untrained = Outcome(0, wild)
    assert unless_worse_than_none(without, untrained) is untrained


def test_of_equal_scores_the_prompt_is_kept(tokenizer, monkeypatch) -> None:  # noqa: ANN001
    problem, learned = problem_of(tokenizer), Outcome(192, torch.randn(1, 2, 3, 32))
    monkeypatch.setattr(Problem, "score_alone", problem.development.score(learned.prompt))
    assert unless_worse_than_none(problem, learned) is learned


def test_labels_with_few_development_rows_count_as_the_others(tokenizer) -> None:  # noqa: ANN001
    problem = problem_of(tokenizer)
    card, rows = problem.develop
    uneven = [row for row in rows if row.label][:2] + [row for row in rows if not row.label]
    develop = replace(problem, develop=(card, uneven)).development
    always = replace(develop, scores=lambda rows, _: torch.tensor([[1.0, 0.0]]).expand(len(rows), 2))
    assert always.score(torch.zeros(1)) == 0.5 < always.accuracy(torch.zeros(1))


def test_a_longer_random_prompt_has_the_steps_of_both_stages(tokenizer, monkeypatch) -> None:  # noqa: ANN001
    steps: list[int] = []

    def noted(start, train, stage, *_):  # noqa: ANN001, ANN202
        steps.append(stage.steps)
        return start

    monkeypatch.setattr(few_shot, "tune_prompt", noted)
    problem = problem_of(tokenizer)
    for method in (few_shot.random_prompt, few_shot.random_prompt_longer, few_shot.router_then_prompts):
        method(problem)
    assert steps == [10, 30, 10]


def test_searches_count_their_calls(tokenizer) -> None:  # noqa: ANN001
    pytest.importorskip("cma")
    problem = problem_of(tokenizer, intrinsic_size=3)
    stages = Stages(search_router=Search(31, 5), search_code=Search(21, 5, 0.1))
    problem = Problem(problem.readout, problem.saved, problem.few, problem.develop, problem.test, stages, 0)
    first, second = few_shot.searched_router(problem), few_shot.searched_router_then_code(problem)
    assert (first.trained, first.calls) == (4, 31) and (second.trained, second.calls) == (4 + 2 * 3, 52)
    assert torch.equal(first.router, second.router)
    assert 0 <= accuracy(second, problem) <= 1
