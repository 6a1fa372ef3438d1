"""spans.py: options and answers are where the head looks, and are learned."""

import pytest
import torch
from torch import Generator
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from modular_prompts.arguments import PretrainArgs
from modular_prompts.options import PoolShape
from modular_prompts.pool import PromptPool, Router
from modular_prompts.pretraining import Pretraining
from modular_prompts.spans import IGNORED, SpanRow, Spans
from modular_prompts.tasks import Card, Row
from tests.modular_prompts.test_readouts import CARD, ROWS, ZERO, P, readout
from tests.modular_prompts.toy_tasks import few_rows
from utils.errors import UserError

EXTRACTION = Card("who", "extraction", ())
ASKED = [
    Row(("who is it?", "the old man never finds the red ball."), (), -1, "red ball"),
    Row(("what?", "a dog sees it."), (), -1, "a dog"),
    Row(("what?", "a dog sees it."), (), -1, "it."),
]


@pytest.fixture
def reader(tokenizer: PreTrainedTokenizerBase) -> Spans:
    return readout(Spans, tokenizer)


def test_the_spans_are_those_of_the_options(reader: Spans, tokenizer: PreTrainedTokenizerBase) -> None:
    for row, written in zip(ROWS, reader.rows(CARD, ROWS), strict=True):
        ids = written.ids.tolist()
        assert len(ids) <= reader.max_length and ids[1 : 1 + P] == reader.placeholders
        for option, (first, last) in zip(row.options, written.options, strict=True):
            assert tokenizer.decode(ids[first : last + 1]) == option
        ends = [last + 1 for _, last in written.options]
        mark = tokenizer(",", add_special_tokens=False)["input_ids"]
        assert [ids[end] for end in ends] == [*mark * (len(ends) - 1), tokenizer.sep_token_id]


def test_an_answer_is_the_span_of_the_text(reader: Spans, tokenizer: PreTrainedTokenizerBase) -> None:
    for row, written in zip(ASKED, reader.rows(EXTRACTION, ASKED), strict=True):
        ((first, last),) = written.options
        assert tokenizer.decode(written.ids[first : last + 1]).replace(" .", ".") == row.answer
        start, end = torch.zeros(2, len(written.ids)).unbind()
        start[first] = end[last] = 1
        assert written.answer(start, end, row.texts[-1]) == row.answer


def test_an_answer_that_was_cut_off_has_no_loss(reader: Spans) -> None:
    row = Row(("what?", "the old man never finds a tree. " * 20 + "a fish."), (), -1, "a fish")
    examples = reader.examples((EXTRACTION, [row, ASKED[1]]))
    assert examples.written[0].options == [(IGNORED, IGNORED)]
    alone = examples.loss(ZERO, torch.tensor([1]))
    assert torch.allclose(examples.loss(ZERO, torch.tensor([0, 1])), alone, atol=1e-4)
    assert examples.loss(ZERO, torch.tensor([0])) == 0


def test_the_answer_is_the_best_pair_in_order(reader: Spans) -> None:
    row = SpanRow(torch.zeros(6), [], text_begins=2, ends=[1, 3, 5])
    start, end = torch.tensor([9.0, 0, 0, 5, 0, 0]), torch.tensor([9.0, 0, 6, 0, 2, 9])
    assert row.answer(start, end, "a b c") == "b c"  # the end at "a" is before the start at "b"


def test_the_loss_of_extraction_is_the_mean_of_the_cross_entropies_of_start_and_end(reader: Spans) -> None:
    examples = reader.examples((EXTRACTION, ASKED[:1]))
    ((first, last),) = examples.written[0].options
    start, end = reader.logits(examples.written, ZERO)
    expected = -(start[0].log_softmax(-1)[first] + end[0].log_softmax(-1)[last]) / 2
    assert torch.allclose(examples.loss(ZERO, torch.tensor([0])), expected, atol=1e-5)


def test_neither_padding_nor_other_rows_and_tasks_change_a_loss(reader: Spans) -> None:
    card, rows = few_rows()
    examples = reader.examples((card, rows[:2]), (EXTRACTION, ASKED[:2]), (CARD, ROWS))
    prompts = torch.randn(7, 2, P, 32)
    each = [examples.loss(prompts[i : i + 1], torch.tensor([i])) for i in range(7)]
    together = examples.loss(prompts, torch.arange(7))
    assert torch.allclose(together, torch.stack(each).mean(), atol=1e-4)
    assert examples.sizes == (2, 2, 3)


def test_head_and_prompts_learn_options_and_answers(reader: Spans) -> None:
    card, rows = few_rows()
    words = [Row(("what?", row.texts[0]), (), -1, row.options[row.label]) for row in rows]
    parts = ((card, rows[:40]), (EXTRACTION, words[:40]))
    before = [value.clone() for value in reader.denoiser.state_dict().values()]
    pool, router = PromptPool(PoolShape(2, P, 32, 2), Generator().manual_seed(0)), Router(2, 2)
    args = PretrainArgs(300, 2, 16, prompt_rate=3e-2)
    training = Pretraining(pool, router, reader.examples(*parts), args, reader.head)
    for step in range(1, 301):
        training.step(step)
    fresh = reader.examples((EXTRACTION, words[40:]))
    prompts = [pool(router(torch.tensor([i]))) for i in range(2)]
    assert reader.examples(parts[0]).score(prompts[0]) > 0.95 and fresh.score(prompts[1]) > 0.95
    assert all(map(torch.equal, before, reader.denoiser.state_dict().values()))


def test_what_has_no_span_is_refused(reader: Spans) -> None:
    with pytest.raises(UserError, match="paraphrase: readout=spans cannot generate a text; use a checkpoint of pairs"):
        reader.rows(Card("paraphrase", "generation", ()), [Row(("a",), (), -1, "b")])
    with pytest.raises(UserError, match="a question of 40 leave no room for the text in max_length=40"):
        reader.rows(EXTRACTION, [Row(("it " * 40, "a dog"), (), -1, "dog")])
