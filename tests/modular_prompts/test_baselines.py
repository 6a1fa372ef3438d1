"""baselines.py: what is trained, and that the frozen network stays as it is."""

import pytest
import torch
from torch import Generator

from modular_prompts import baselines
from modular_prompts.few_shot import Outcome, Problem
from modular_prompts.options import PoolShape, Stage, Stages
from modular_prompts.pool import PromptPool
from modular_prompts.readouts import Cosine, Verbaliser
from modular_prompts.tasks import Card, Row
from tests.modular_prompts.test_readouts import P
from tests.modular_prompts.toy_tasks import few_rows, saved_of, toy_readout
from utils.errors import UserError

QUICK = Stages(Stage(20, 0.3, 16, 5), Stage(10, 1e-2, 16, 5), Stage(30, 1e-3, 16, 5), Stage(30, 1e-2, 16, 5), rank=2)


def problem_of(tokenizer, kind: type = Verbaliser, intrinsic_size: int = 0) -> Problem:  # noqa: ANN001
    """Return a task of which 32 rows are for training, 16 for development and 32 for testing."""
    card, rows = few_rows()
    reader = toy_readout(tokenizer, kind)
    pool = PromptPool(PoolShape(4, P, 32, 2, intrinsic_size), Generator().manual_seed(0))
    parts = ((card, rows[i:j]) for i, j in ((0, 32), (32, 48), (48, 80)))
    return Problem(reader, saved_of(pool, reader), *parts, QUICK, 0)


def accuracy(outcome: Outcome, problem: Problem) -> float:
    if outcome.choices is None:
        return (outcome.test or problem.readout.examples(problem.test)).accuracy(outcome.prompt)
    right = torch.tensor([row.label for row in problem.test[1]])
    return float((outcome.choices == right).double().mean())


@pytest.mark.parametrize("kind", [Verbaliser, Cosine])
@pytest.mark.parametrize("method", [baselines.linear_probe, baselines.full_tuning, baselines.lora])
def test_a_word_of_the_text_is_learned_and_the_network_stays(kind: type, method, tokenizer) -> None:  # noqa: ANN001
    problem = problem_of(tokenizer, kind)
    before = {name: value.clone() for name, value in problem.readout.denoiser.state_dict().items()}
    outcome = method(problem)
    after = problem.readout.denoiser.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(p.requires_grad for p in problem.readout.denoiser.parameters())
    assert accuracy(outcome, problem) > 0.8


def test_the_numbers_that_are_trained_are_counted(tokenizer) -> None:  # noqa: ANN001
    problem = problem_of(tokenizer)
    total = sum(p.numel() for p in problem.readout.denoiser.parameters())
    assert baselines.no_prompt(problem).trained == 0
    assert baselines.linear_probe(problem).trained == 2 * 33
    assert baselines.full_tuning(problem).trained == total
    maps = 2 * (4 * 2 * 32 + 2 * (32 + 64))  # two layers of four maps 32 x 32, one 32 x 64 and one 64 x 32
    assert baselines.lora(problem).trained == QUICK.rank * maps


def test_without_a_prompt_rows_have_no_placeholders(tokenizer) -> None:  # noqa: ANN001
    problem = problem_of(tokenizer)
    outcome = baselines.no_prompt(problem)
    network, row = problem.readout.denoiser.network, problem.test[1][0]
    for option in row.options:
        assert len(tokenizer(option, add_special_tokens=False)["input_ids"]) == 1
    scores = outcome.test.scores(torch.tensor([0]), outcome.prompt)[0]
    text = f"which? [SEP] {row.texts[0]} [SEP] answer: [MASK]"
    log_p = network(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits[0, -2].log_softmax(-1)
    assert torch.allclose(scores, log_p[tokenizer.convert_tokens_to_ids(list(row.options))], atol=1e-4)


def test_the_probe_weighs_row_and_option_where_options_differ_by_row(tokenizer) -> None:  # noqa: ANN001
    problem = problem_of(tokenizer)
    card = Card("choice", "multiple-choice", ())
    turned = [
        [Row(row.texts, row.options[:: -1 if i % 2 else 1], row.label ^ (i % 2)) for i, row in enumerate(rows)]
        for _, rows in (problem.few, problem.develop, problem.test)
    ]
    parts = [(card, rows) for rows in turned]
    outcome = baselines.linear_probe(Problem(problem.readout, problem.saved, *parts, QUICK, 0))
    right = torch.tensor([row.label for row in parts[2][1]])
    assert outcome.trained == 33 and float((outcome.choices == right).double().mean()) > 0.8


def test_choices_of_the_probe_do_not_depend_on_other_test_rows(tokenizer) -> None:  # noqa: ANN001
    problem = problem_of(tokenizer)
    card = Card("choice", "multiple-choice", ())
    more = [
        Row(row.texts, (*row.options, f"the {row.options[i % 2]} it"), row.label)
        for i, row in enumerate(problem.test[1])
    ]
    parts = [(card, problem.few[1]), (card, problem.develop[1])]
    whole, first = (
        baselines.linear_probe(Problem(problem.readout, problem.saved, *parts, (card, rows), QUICK, 0)).choices
        for rows in ([*problem.test[1], *more], problem.test[1][:3])
    )
    assert torch.equal(whole[:3], first) and whole[:32].max() < 2  # where a row has fewer options


def test_the_probe_refuses_a_task_without_options(tokenizer) -> None:  # noqa: ANN001
    problem = problem_of(tokenizer)
    part = (Card("paraphrase", "generation", ()), [Row(("a",), (), -1, "b")])
    with pytest.raises(UserError, match="linear-probe: paraphrase has no options; leave that method out"):
        baselines.linear_probe(Problem(problem.readout, problem.saved, part, part, part, QUICK, 0))
