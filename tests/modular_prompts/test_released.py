"""released.py: rows, draws and learning rates are those recorded from the released program."""

import json

import pytest

from modular_prompts.released import Marks, batch_of_draw, learning_rates, row_with_answer, row_with_options
from tests.conftest import GOLDEN

MARKS = Marks(101, 102, range(1000, 1050), 8024)
TEXTS = {
    "classification": ('情感分析："很好吃"的情感是？选项：', ["负面", "正面"]),
    "pair": ('意思判别："怎么还款"与"如何还款"的意思是？选项：', ["矛盾", "相似"]),
    "multiple choice": ('诗句理解：与句子"明月"最相近的诗句是？选项：', ["床前", "山高月小", "白日"]),
}
ANSWERS = {
    "extractive": ('抽取式问答：文本"', "李白生于碎叶", '问题"生于哪里', "碎叶"),
    "extractive without an answer": ('抽取式问答（可能没有答案）：文本"', "李白生于碎叶", '问题"几岁', "没有答案"),
}


def recorded(name: str) -> dict:
    return json.loads((GOLDEN / f"mp2_{name}.json").read_text())


def tokens(text: str) -> list[int]:
    """Encode as the recording did: one token a character."""
    return [8024 if c == "，" else 3000 + ord(c) % 5000 for c in text]


@pytest.mark.parametrize("case", recorded("templates")["cases"], ids=lambda case: case["kind"])
def test_rows_are_those_of_the_recording(case: dict) -> None:
    kind = case["kind"]
    if kind in TEXTS:
        text, options = TEXTS[kind]
        row = row_with_options(tokens, text, options, 1, MARKS, multiple_choice=kind == "multiple choice")
        assert row.marked == case["label_mask"]
    else:
        row = row_with_answer(tokens, *ANSWERS[kind], MARKS)
    assert row.ids == case["input_ids"]
    assert (row.start, row.end) == (case["start_position"], case["end_position"])


def test_a_long_text_loses_its_question() -> None:
    found = recorded("templates")["truncation"]
    text = f'情感分析："{"好" * 600}"的情感是？选项：'
    row = row_with_options(tokens, text, ["负面", "正面"], 0, MARKS, multiple_choice=False)
    assert len(row.ids) == found["length"]
    assert (tokens("？")[0] in row.ids) == found["question_kept"]


def test_draws_are_those_of_the_recording() -> None:
    found = recorded("task_sampling")
    for draw in found["draws"]:
        expected = (draw["task"], draw["rows"])
        assert batch_of_draw(draw["index"], found["tasks_rows_div_batch"], found["batch_size"]) == expected


@pytest.mark.parametrize("variant", ["deep", "shallow_defaults"])
def test_learning_rates_are_those_of_the_recording(variant: str) -> None:
    found = recorded("two_stages")[variant]
    given = found["arguments"]
    for line in found["lr"]:
        factors = given["gamma_router"], given["gamma_prompt"]
        rates = learning_rates(line["step"], given["lr_router"], given["lr_prompt"], factors, given["switch"])
        assert rates == pytest.approx([line["lr_router"], line["lr_prompt_and_head"]], rel=1e-9)
