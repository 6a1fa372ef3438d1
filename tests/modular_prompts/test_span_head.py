"""span_head.py: the recorded loss, choices and extraction scores of the released program."""

import pytest
import torch

from modular_prompts.span_head import SpanHead, answer_f1, option_scores, span_loss
from tests.modular_prompts.test_pool import golden


def test_the_loss_is_the_recorded_one() -> None:
    recorded = golden("span_loss")
    head = SpanHead(4)
    with torch.no_grad():
        head.weight.copy_(torch.tensor(recorded["weight"]))
    start, end = head(torch.tensor(recorded["hidden"]))
    assert torch.allclose(start, torch.tensor(recorded["start_logits"]), atol=1e-6)
    assert torch.allclose(end, torch.tensor(recorded["end_logits"]), atol=1e-6)
    positions = (torch.tensor(recorded[f"{name}_positions"]) for name in ("start", "end"))
    assert span_loss(start, end, *positions).item() == pytest.approx(recorded["loss"], abs=1e-6)


@pytest.mark.parametrize("case", golden("option_scoring")["cases"], ids=lambda case: case["name"])
def test_options_are_scored_row_by_row_by_the_sum_of_logits(case: dict) -> None:
    start, end = torch.tensor(case["start_logits"]), torch.tensor(case["end_logits"])
    for released, key in ((False, "sum_scores"), (True, "released_scores")):
        found = option_scores(start, end, case["option_spans"], released=released)
        for row, expected in zip(found, case[key], strict=True):
            assert row[: len(expected)].tolist() == pytest.approx(expected, abs=1e-6)
            assert row[len(expected) :].eq(-torch.inf).all()
    assert option_scores(start, end, case["option_spans"]).argmax(1).tolist() == case["choice_by_sum"]
    if len({*map(len, case["option_spans"])}) == 1:  # the released program mixes rows of different numbers
        released = option_scores(start, end, case["option_spans"], released=True)
        assert released.argmax(1).tolist() == case["released_choice"]


@pytest.mark.parametrize("case", golden("extraction_score")["cases"])
def test_the_score_of_an_extracted_answer_is_that_of_squad(case: dict) -> None:
    prediction = " ".join(case["tokens"][case["start_argmax"] : case["end_argmax"] + 1])
    assert prediction == case["prediction"]
    assert answer_f1(prediction, case["answer"]) == pytest.approx(case["f1"], abs=1e-6)


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [("The cat.", "a cat", 1.0), ("", "", 1.0), ("", "cat", 0.0), ("dog", "cat", 0.0), ("cat cat", "cat", 2 / 3)],
)
def test_articles_and_punctuation_do_not_count(prediction: str, answer: str, score: float) -> None:
    assert answer_f1(prediction, answer) == pytest.approx(score)


def test_a_chinese_character_is_a_word() -> None:
    assert answer_f1("碎叶城", "碎叶。") == pytest.approx(0.8)  # 2 of 3, and 2 of 2
    assert answer_f1("the cat!", "A Cat") == 1.0 and answer_f1("カタ", "カ") == pytest.approx(2 / 3)
